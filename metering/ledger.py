"""The write-ahead ledger of a job's budget: images, their cost in millionths of a currency's unit, seconds of work.

A chunk (a range of an API's query set, named by the SHA-256 of the bytes to be sent) is recorded and its budget held before
it is sent; the answer is stored; then one script settles the hold and announces it. Whatever dies in between leaves an open
hold that says exactly what to send again. Always `confirmed + unconfirmed + reserved <= limit`, for every API as well.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

from redis.asyncio import Redis

from contracts import money
from contracts.jobs import ApiSpend, BudgetState, CostState
from metering.leases import Lease, LeaseLost
from metering.scripts import MICROSECONDS, Scripts, store_errors

PARTS = ("confirmed", "unconfirmed", "reserved")


class Outcome(StrEnum):
    """How a hold ended."""

    CONFIRMED = "confirmed"  # answered, and the answer is stored
    RELEASED = "released"  # refused by the API, or never sent: nothing was charged
    UNCONFIRMED = "unconfirmed"  # sent, outcome unknown for good: counted as spent


class BudgetSpent(Exception):
    """Holding this many images would pass a limit of the job, in images, money or seconds. `left` may still be held."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} images are left in the budget")
        self.left = left


class QuotaReached(Exception):
    """The tenant may send no more images today; from midnight UTC, in `seconds`, it may again."""

    def __init__(self, seconds: int) -> None:
        super().__init__("the tenant's quota of queries a day is used up: resume the job after midnight UTC")
        self.seconds = seconds


class JobClosed(Exception):
    """The job is not running any more (`status`): nothing new may be sent."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the job is {status}")
        self.status = status


class AlreadySettled(Exception):
    """The chunk was settled before; its outcome stands."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images `start` to `stop` (exclusive) of one API's query set, sent in one request. `number` counts the API's chunks."""

    api: str
    number: int
    start: int
    stop: int
    digest: str  # SHA-256 of the request's body

    @property
    def id(self) -> str:
        """Name within the job."""
        return f"{self.api}.{self.number}"

    @property
    def images(self) -> int:
        """How many images it holds budget for."""
        return self.stop - self.start

    def key(self, job: str) -> str:
        """The idempotency key under which it is sent, each time the same."""
        return sha256("\n".join([job, self.api, self.id, self.digest]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Hold:
    """A chunk whose outcome is not known, and when it was recorded (seconds since the epoch)."""

    chunk: Chunk
    since: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A chunk, how it ended and where its answer lies (None unless confirmed)."""

    chunk: Chunk
    outcome: Outcome
    path: str | None


@dataclass(frozen=True, slots=True)
class LedgerKeys:
    """The Redis keys of one job that its ledger uses."""

    leases: str
    record: str
    budget: str
    holds: str
    settled: str
    events: str
    tenants: str = ""  # prefix of the keys of tenants' quotas; the record's field `tenant` goes behind it


class Ledger:
    """One job's budget. Every write goes through the fence of `lease`."""

    def __init__(self, redis: Redis, scripts: Scripts, keys: LedgerKeys) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._scripts = scripts
        self._keys = keys

    async def reserve(self, lease: Lease, chunk: Chunk) -> None:
        """Record `chunk` and hold its budget; again for the same chunk changes nothing.

        Raises `BudgetSpent`, `QuotaReached`, `JobClosed`, `AlreadySettled`, `LeaseLost`, `StoreUnavailable`; `ValueError`
        when another chunk has this id or there are no images.
        """
        if chunk.images < 1:
            raise ValueError(f"chunk {chunk.id} holds no images")
        keys = self._keys
        verdict, *rest = await self._scripts.run(
            "hold_reserve",
            keys=[keys.leases, keys.record, keys.budget, keys.holds, keys.settled, keys.tenants],
            args=[lease.role, lease.fence, chunk.api, chunk.id, chunk.images, json.dumps(asdict(chunk))],
        )
        match verdict.decode():
            case "stale":
                raise LeaseLost(lease.role)
            case "closed":
                raise JobClosed(rest[0].decode())
            case "spent":
                raise BudgetSpent(rest[0])
            case "quota":
                raise QuotaReached(rest[0])
            case "settled":
                raise AlreadySettled(rest[0].decode())
            case "open" if _chunk(json.loads(rest[0])) != chunk:
                raise ValueError(f"chunk {chunk.id} is already recorded with other contents")

    async def settle(self, lease: Lease, chunk: Chunk, outcome: Outcome, *, path: str | None = None) -> None:
        """End the hold of `chunk`, once, and announce it. `path` is where its answer lies, if confirmed.

        Raises `AlreadySettled`, `LeaseLost`, `StoreUnavailable`; `ValueError` when it was never reserved.
        """
        keys = self._keys
        event = {"api": chunk.api, "chunk": chunk.id, "outcome": outcome, "images": chunk.images}
        verdict, *rest = await self._scripts.run(
            "hold_settle",
            keys=[keys.leases, keys.budget, keys.holds, keys.settled, keys.events],
            args=[lease.role, lease.fence, chunk.id, outcome, path or "", json.dumps(event)],
        )
        match verdict.decode():
            case "stale":
                raise LeaseLost(lease.role)
            case "already":
                raise AlreadySettled(rest[0].decode())
            case "unknown":
                raise ValueError(f"chunk {chunk.id} was never reserved")

    async def abandon(self) -> int | None:
        """Settle every open hold of a job that ended or is ending as unconfirmed: how many images that were.

        None while a lease is held or the job runs: then whoever works on it resolves its holds. Raises `StoreUnavailable`.
        """
        keys = self._keys
        verdict, *rest = await self._scripts.run(
            "holds_abandon",
            keys=[keys.leases, keys.record, keys.budget, keys.holds, keys.settled, keys.events],
            args=[],
        )
        return int(rest[0]) if verdict == b"abandoned" else None

    async def open_holds(self, api: str | None = None) -> list[Hold]:
        """Chunks recorded and not settled, of one API or of all, oldest first. Raises `StoreUnavailable`."""
        with store_errors():
            held = await self._redis.hgetall(self._keys.holds)
        holds = [_hold(json.loads(value)) for value in held.values()]
        return sorted((hold for hold in holds if api in (None, hold.chunk.api)), key=lambda hold: _order(hold.chunk))

    async def settled(self, api: str | None = None) -> list[Settled]:
        """Chunks that are settled, of one API or of all, oldest first. Raises `StoreUnavailable`."""
        with store_errors():
            values = (await self._redis.hgetall(self._keys.settled)).values()
        found = [_settled(json.loads(value)) for value in values]
        return sorted((one for one in found if api in (None, one.chunk.api)), key=lambda one: _order(one.chunk))

    async def state(self) -> BudgetState:
        """Where the budget stands. Raises `StoreUnavailable`."""
        with store_errors():
            return budget_state(await self._redis.hgetall(self._keys.budget))


def budget_fields(
    limit: int,
    queries_per_api: int | None,
    *,
    cost: int | None = None,
    seconds: float | None = None,
    prices: Mapping[str, int] | None = None,
    currency: str = "",
) -> dict[str, str]:
    """The fields of a new budget hash. `cost` is in millionths, `prices` by API in millionths per 1,000 images."""
    fields = {"limit": str(limit), "currency": currency}
    fields |= {f"price:{api}": str(price) for api, price in (prices or {}).items()}
    if queries_per_api is not None:
        fields["queries_per_api"] = str(queries_per_api)
    if cost is not None:
        fields["cost_limit"] = str(cost)
    if seconds is not None:
        fields["seconds"] = str(round(seconds * MICROSECONDS))
    return fields


def budget_state(fields: dict[bytes, bytes]) -> BudgetState:
    """The fields of a budget hash as a record."""
    totals = {part: int(fields.get(part.encode(), 0)) for part in PARTS}
    per_api: dict[str, dict[str, int]] = {}
    for field, value in fields.items():
        part, _, api = field.decode().partition(":")
        if api and part in PARTS:
            per_api.setdefault(api, {})[part] = int(value)
    limit = int(fields[b"limit"])
    return BudgetState(
        limit=limit,
        left=limit - sum(totals.values()),
        cost=_cost_state(fields),
        per_api={api: ApiSpend(**spend) for api, spend in sorted(per_api.items(), key=lambda item: int(item[0][1:]))},
        **totals,
    )


def _cost_state(fields: dict[bytes, bytes]) -> CostState | None:
    """What was spent in money; None when no API has a price."""
    limit = fields.get(b"cost_limit")
    if limit is None and not any(field.startswith(b"price:") for field in fields):
        return None
    totals = {part: int(fields.get(f"cost_{part}".encode(), 0)) for part in PARTS}
    return CostState(
        currency=fields[b"currency"].decode(),
        limit=None if limit is None else money.told(int(limit)),
        left=None if limit is None else money.told(int(limit) - sum(totals.values())),
        **{part: money.told(total) for part, total in totals.items()},
    )


def _chunk(fields: dict[str, Any]) -> Chunk:
    return Chunk(**{name: fields[name] for name in Chunk.__dataclass_fields__})


def _hold(fields: dict[str, Any]) -> Hold:
    return Hold(chunk=_chunk(fields), since=fields["since"])


def _settled(fields: dict[str, Any]) -> Settled:
    return Settled(chunk=_chunk(fields), outcome=Outcome(fields["outcome"]), path=fields["path"] or None)


def _order(chunk: Chunk) -> tuple[str, int]:
    return chunk.api, chunk.number
