"""What stands before every answer of a zoo: one script decides rate, budget and replay of a request, and charges it.

    admission = await gate.admit(...)      # charged, and durable, before anything is computed
    answer = compute()
    await gate.settle(admission, answer)   # before the answer leaves
    await gate.refund(admission)           # instead, when it ends in anything but an answer

A granted request with an idempotency key leaves a mark. Under the same key the same request gets the same answer for 24 hours
and is not charged again, also when the process that charged it died: its mark is a lease, and who comes after it computes in
its place. Only the newest turn may settle or refund, once. Of a request without such a key the charge is all there is to know:
it is charged in one step, and settling it asks Redis for nothing but its slot, where requests at once are counted.
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal

import anyio
from redis.asyncio import Redis

from metering import keyring
from metering.refusals import (
    UNLIMITED,
    BudgetSpent,
    BurstExceeded,
    InProgress,
    KeyExpired,
    KeyReused,
    KeyRevoked,
    Limits,
    ModelForbidden,
    Rate,
    RateExceeded,
    Refused,
    TakenOver,
    TooMany,
)
from metering.scripts import MICROSECONDS, Scripts, StoreUnavailable, store_errors
from metering.turnstile import Turnstile

REPLAY_SECONDS = 24 * 3600.0
LEASE_SECONDS = 65.0  # the longest that a request may run, and 5 s
LARGEST_ANSWER = 256 * 1024  # bytes kept for replay
REMEMBERED = 10_000  # keys whose last request was granted, and marks


@dataclass(slots=True)
class Admission:
    """A request that may be answered.

    charged: computed and paid for now. resumed: paid for before by a process that did not finish it. replayed: `answer`
    holds what was answered before. `cost` is what was charged when it was charged.
    """

    kind: Literal["charged", "resumed", "replayed"]
    charge: str
    cost: int
    answer: bytes | None
    limits: Limits
    key_id: str
    model: str
    mark: str  # Redis key of its mark, empty unless it is repeatable
    turn: int  # counts the processes that computed it
    repeatable: bool = True  # it came with an idempotency key
    day: str = ""  # of the charge, as usage is counted
    ended: bool = False  # settled or refunded here
    kept: bool = False  # charged with its answer at hand: nothing is left to do


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a key's audit stream: images charged, given back, added to the budget; or the key's end, of 0 images."""

    id: str  # place in the stream; ids grow
    kind: Literal["charge", "refund", "top-up", "revoke"]
    key_id: str
    images: int
    time: datetime
    charge: str | None  # of charges, and of refunds of them
    model: str | None


class Gate:
    """Admits requests of keys. `lease_seconds` must outlast any request."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        *,
        replay_seconds: float = REPLAY_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._lease = round(lease_seconds * MICROSECONDS)
        self._turnstile = Turnstile(scripts, lease=self._lease, replay=round(replay_seconds * MICROSECONDS))
        self._name, self._charges = secrets.token_hex(10), count()  # ids of charges: of this gate alone, each once
        # hints: of keys whose last request was granted here, whether none are counted at once; and marks that were asked about
        self._granted: dict[str, bool] = {}
        self._seen: dict[str, bool] = {}

    def granted_last(self, key_id: str) -> bool:
        """Whether this gate granted the key's last request. A hint of what comes, no promise."""
        return key_id in self._granted

    def likely_new(self, key_id: str, idempotency_key: str) -> bool:
        """Whether the key's last request was granted, its requests at once are not counted, and no such idempotency key was
        seen here. A hint of what comes, no promise.
        """
        return self._granted.get(key_id, False) and keyring.mark(key_id, idempotency_key) not in self._seen

    async def admit(
        self,
        key_id: str,
        *,
        model: str,
        images: int,
        idempotency_key: str | None,
        digest: str,
        at_hand: bytes = b"",
    ) -> Admission:
        """Decide one request of `images` images, whose body has the SHA-256 `digest`, and charge it if it is granted.

        Raises a `Refused`; or `StoreUnavailable`, after which the charge may have happened: the same request under its
        idempotency key is charged once at most. A caller that is cancelled waits for the decision, and gives back the charge.

        `at_hand` is the answer of a request with an idempotency key, where it is known already, up to `LARGEST_ANSWER` bytes:
        if it is charged now, it is kept in the same step, and there is nothing left to settle or to give back.
        """
        if images < 1:
            raise ValueError(f"{images} images cannot be charged: ask for one at least")
        charge = f"{self._name}{next(self._charges):012x}"
        mark = ""
        if idempotency_key is not None:
            mark = keyring.mark(key_id, idempotency_key)
            _remember(self._seen, mark, True)
        asked = self._turnstile.ask(
            key_id, model=model, images=images, digest=digest, charge=charge, mark=mark or None, at_hand=at_hand
        )
        try:
            found = await asyncio.shield(asked)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._give_back(asked, key_id, model, mark)
            raise
        admission = self._decided(found, key_id, model, mark)
        admission.kept = bool(at_hand and mark) and admission.kind == "charged"
        return admission

    async def _give_back(self, asked: "asyncio.Future[list[Any]]", key_id: str, model: str, mark: str) -> None:
        """Refund what was asked by a caller who has left."""
        with suppress(Refused, StoreUnavailable):
            await self.refund(self._decided(await asked, key_id, model, mark))

    def _decided(self, found: list[Any], key_id: str, model: str, mark: str) -> Admission:
        """What `gate_admit` answered, as an admission. Raises a `Refused`."""
        verdict = found[0]
        if verdict != b"charged":
            self._granted.pop(key_id, None)
        elif key_id not in self._granted:
            _remember(self._granted, key_id, _limits(found[1]).concurrency is None)
        if verdict == b"unknown":
            raise KeyRevoked("there is no such key")
        limits, rest = _limits(found[1]), found[2:]
        match verdict.decode():
            case "charged" | "resumed" as kind:
                charge, cost, turn = rest[0].decode(), int(rest[1]), int(rest[2])
                day = rest[3].decode() if kind == "charged" else ""
                return Admission(kind, charge, cost, None, limits, key_id, model, mark, turn, bool(mark), day)
            case "replayed":
                return Admission("replayed", rest[0].decode(), int(rest[1]), rest[2], limits, key_id, model, mark, 0)
            case "revoked":
                raise KeyRevoked("the key was revoked")
            case "expired":
                raise KeyExpired("the key has expired")
            case "reused":
                raise KeyReused("the idempotency key came with another request before")
            case "running":
                raise InProgress(int(rest[0]) / MICROSECONDS)
            case "forbidden":
                raise ModelForbidden(f"the key may not use {model}")
            case "large":
                raise BurstExceeded(limits.images.burst if limits.images else 0)
            case "spent":
                raise BudgetSpent(limits.budget_left or 0, limits)
            case "busy":
                raise TooMany(limits)
            case "fast":
                raise RateExceeded(int(rest[0]) / MICROSECONDS, limits)
            case other:
                raise AssertionError(f"gate_admit answered {other!r}")

    async def settle(self, admission: Admission, answer: bytes) -> None:
        """End the request with an answer, which is kept for replay up to `LARGEST_ANSWER` bytes; call before it leaves.

        Raises `TakenOver` or `StoreUnavailable`: the answer must not leave.
        """
        if admission.kind == "replayed" or admission.kept:
            return
        kept = answer if len(answer) <= LARGEST_ANSWER else b""
        if admission.ended or not await self._end("answered", admission, kept):
            raise TakenOver
        admission.ended = True

    async def refund(self, admission: Admission) -> None:
        """End the request without an answer: its images go back to the budget, unless another process has taken it over
        or it was answered before. May be called again after `StoreUnavailable`: images are given back once.
        """
        if admission.kind != "replayed" and not (admission.ended or admission.kept):
            await self._end("refunded", admission, b"")
            admission.ended = True

    async def audit(self, key_id: str, *, after: str | None = None, limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries of a key's audit stream, oldest first, from behind the entry `after`."""
        start = "-" if after is None else f"({after}"
        with store_errors():
            found: Any = await self._redis.xrange(keyring.audit(key_id), start, "+", count=limit)
        return [
            Entry(
                id=entry.decode(),
                kind=fields[b"kind"].decode(),
                key_id=key_id,
                images=int(fields[b"images"]),
                time=datetime.fromtimestamp(int(fields[b"at"]) / MICROSECONDS, UTC),
                charge=fields[b"charge"].decode() if b"charge" in fields else None,
                model=fields[b"model"].decode() if b"model" in fields else None,
            )
            for entry, fields in found
        ]

    async def _end(self, outcome: str, admission: Admission, answer: bytes) -> bool:
        mark = admission.mark or keyring.mark(admission.key_id, admission.charge)
        keys, charge = _keys(admission.key_id, mark), [outcome, admission.charge, admission.model]
        if admission.repeatable:
            return bool(await self._scripts.run("gate_settle", keys=keys, args=[*charge, admission.turn, answer]))
        if outcome == "refunded" or admission.limits.concurrency is not None:
            await self._scripts.run(
                "gate_end", keys=keys, args=[*charge, admission.cost, admission.day, 2 * self._lease]
            )
        return True


def _keys(key_id: str, mark: str) -> list[str]:
    return [keyring.record(key_id), mark, keyring.audit(key_id), keyring.slots(key_id), keyring.usage(key_id)]


def _remember(hints: dict[str, bool], name: str, told: bool) -> None:
    if len(hints) >= REMEMBERED:
        hints.clear()  # hints: each comes back with its next request
    hints[name] = told


def _limits(state: list[bytes]) -> Limits:
    """From what the script tells, empty where unlimited."""
    if not state:
        return UNLIMITED
    return Limits(_rate(state[0:4]), _rate(state[4:8]), *(int(count) if count else None for count in state[8:12]))


def _rate(state: list[bytes]) -> Rate | None:
    if not state[0]:
        return None
    burst, left, reset, rate = state
    return Rate(int(burst), int(left), int(reset) / MICROSECONDS, float(rate))
