"""`python -m benchmarks.chaos.launch ARGUMENTS`: the `metazoo` command, changed as the environment asks.

METAZOO_BENCH_LEASE: seconds of every lease, and all that hangs together with it in proportion, so that a short run sees many
takeovers. METAZOO_BENCH_DEFECT: one seeded defect, so that a control run shows that the audit sees it. Production code knows
neither.
"""

import itertools
import os
import secrets

DEFECTS = ("settle", "key")


def main() -> None:
    """Change what is asked for, then run the command."""
    if lease := os.environ.get("METAZOO_BENCH_LEASE"):
        _shorten(float(lease))
    if defect := os.environ.get("METAZOO_BENCH_DEFECT"):
        {"settle": _skip_settles, "key": _forget_keys}[defect]()
    from metazoo.cli import main as metazoo

    metazoo()


def _shorten(seconds: float) -> None:
    from metering import leases

    part = seconds / leases.SECONDS
    leases.SECONDS *= part
    leases.RENEW_EVERY *= part
    leases.Leases.__init__.__kwdefaults__["seconds"] = leases.SECONDS  # type: ignore[index]
    from meta_server import reaper

    reaper.PATIENCE *= part
    reaper.LONGEST *= part
    reaper.Reaper.__init__.__kwdefaults__["every"] = reaper.EVERY * part  # type: ignore[index]


def _skip_settles() -> None:
    """Every third answer that a process gets is stored, and its hold never settled."""
    from metering import ledger

    settle = ledger.Ledger.settle
    confirmed = itertools.count(1)

    async def skipping(self, lease, chunk, outcome, **where):
        if outcome is not ledger.Outcome.CONFIRMED or next(confirmed) % 3:
            await settle(self, lease, chunk, outcome, **where)

    ledger.Ledger.settle = skipping  # type: ignore[method-assign]


def _forget_keys() -> None:
    """Every attempt at a chunk has another idempotency key, so that each is charged."""
    from metering import ledger

    ledger.Chunk.key = lambda self, job: secrets.token_hex(32)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
