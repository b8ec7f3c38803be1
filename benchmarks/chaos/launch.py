"""`python -m benchmarks.chaos.launch ARGUMENTS`: the `metazoo` command as on its own machine, changed as the environment asks.

A server sees which workers of its machine are gone; here it sees none, as where each runs on another: leases must run out.
METAZOO_BENCH_LEASE: seconds of every lease, and all that hangs together with it in proportion, so that a short run sees many
takeovers. METAZOO_BENCH_DEFECT: seeded defects, so that a control run shows that the audit sees them. Production code knows
neither.
"""

import itertools
import os
import secrets

DEFECTS = ("settle", "twice", "hold", "reaper")


def main() -> None:
    """Change what is asked for, then run the command."""
    _move_away()
    if lease := os.environ.get("METAZOO_BENCH_LEASE"):
        _shorten(float(lease))
    for defect in filter(None, os.environ.get("METAZOO_BENCH_DEFECT", "").split(",")):
        {"settle": _skip_settles, "twice": _ask_twice, "hold": _hold_less, "reaper": _send_nothing_again}[defect]()
    from metazoo.cli import main as metazoo

    metazoo()


def _move_away() -> None:
    from meta_server.store import holders

    machine = secrets.token_hex(8)
    holders._machine = lambda: machine  # type: ignore[assignment]


def _shorten(seconds: float) -> None:
    from metering import leases

    part = seconds / leases.SECONDS
    leases.SECONDS *= part
    leases.RENEW_EVERY *= part
    leases.Leases.__init__.__kwdefaults__["seconds"] = leases.SECONDS  # type: ignore[index]
    from meta_server import reaper

    for name in ("EVERY", "SECONDS", "PATIENCE", "LONGEST"):
        setattr(reaper, name, getattr(reaper, name) * part)
    reaper.Reaper.__init__.__kwdefaults__["beat"] = reaper.BEAT * part  # type: ignore[index]


def _skip_settles() -> None:
    """Every third answer that a process gets is stored, and its hold never settled."""
    from metering import ledger

    settle = ledger.Ledger.settle
    confirmed = itertools.count(1)

    async def skipping(self, lease, chunk, outcome, **where):
        if outcome is not ledger.Outcome.CONFIRMED or next(confirmed) % 3:
            await settle(self, lease, chunk, outcome, **where)

    ledger.Ledger.settle = skipping  # type: ignore[method-assign]


def _ask_twice() -> None:
    """Every third request is made twice, the first time under a key of its own: both are charged."""
    from client import model

    infer = model.AsyncModel.infer
    asked = itertools.count(1)

    async def asking_twice(self, body, headers, *, idempotency_key=None):
        if next(asked) % 3 == 0:
            await infer(self, body, headers, idempotency_key=secrets.token_hex(32))
        return await infer(self, body, headers, idempotency_key=idempotency_key)

    model.AsyncModel.infer = asking_twice  # type: ignore[method-assign]


def _hold_less() -> None:
    """Budget is held for one image less than is sent."""
    from dataclasses import replace

    from metering import ledger

    reserve = ledger.Ledger.reserve

    async def holding_less(self, lease, chunk):
        await reserve(self, lease, replace(chunk, stop=max(chunk.start + 1, chunk.stop - 1)))

    ledger.Ledger.reserve = holding_less  # type: ignore[method-assign]


def _send_nothing_again() -> None:
    """The reaper looks at jobs, and never sends again what lost its holder."""
    from meta_server import reaper

    async def looking(self, job_id, job):
        pass

    reaper.Reaper._look = looking  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
