"""Records that change state: a status moves along a table of legal moves, and fields, indexes and events change with it.

A write under a lease passes its fence or is refused. Readers of the event stream never see an event without its state.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metering.leases import Lease, LeaseLost
from metering.scripts import MICROSECONDS, Scripts

Moves = Mapping[Any, Iterable[str]]
"""Status -> statuses it may move to."""


class MoveRefused(Exception):
    """The record's `status` ("" when there is no such record) does not allow the move."""

    def __init__(self, status: str, to: str) -> None:
        super().__init__(f"{status or 'a missing record'} cannot become {to}")
        self.status = status
        self.to = to


class StillAtWork(Exception):
    """Somebody holds a lease of the record: the move must wait until it is given back or has run out."""


@dataclass(frozen=True, slots=True)
class RecordKeys:
    """The Redis keys of one record. `index` + status names the sorted set of all records in that status."""

    leases: str
    record: str
    budget: str
    apis: str
    events: str
    index: str
    index_all: str
    open: str


@dataclass(frozen=True, slots=True)
class Series:
    """A stream of what was measured, apart from the events: at most twice `points` are kept, `seconds` after the last one."""

    key: str
    points: int
    seconds: int


@dataclass(frozen=True, slots=True)
class IdempotencyMark:
    """Where a creation is remembered, the digest of its body, and for how many seconds."""

    key: str
    digest: str
    seconds: float


class KeyReused(Exception):
    """The idempotency key was used with another body."""


class TooManyOpen(Exception):
    """The tenant has `open` records that have not ended, and may have no more."""

    def __init__(self, open: int) -> None:
        super().__init__(f"{open} are open")
        self.open = open


class Records:
    """Creates and changes records. `moves` is the table of legal moves between statuses; `ends` are those of its ends."""

    def __init__(self, scripts: Scripts, moves: Moves, *, ends: Iterable[str]) -> None:
        self._scripts = scripts
        self._moves = {str(status): frozenset(map(str, to)) for status, to in moves.items()}
        self._ends = frozenset(map(str, ends))

    async def create(
        self,
        keys: RecordKeys,
        record_id: str,
        *,
        record: Mapping[str, str],
        budget: Mapping[str, str],
        apis: Mapping[str, str],
        mark: IdempotencyMark | None,
        quota: str,
    ) -> tuple[str, str | None]:
        """Store a queued record: its id and when (microseconds); or the id of what the same key and body made, and None.

        `quota`: the hash whose `running_jobs`, if it has it, says how many records of its `tenant` may be open.
        Raises `KeyReused`, `TooManyOpen`, `StoreUnavailable`.
        """
        verdict, *rest = await self._scripts.run(
            "record_create",
            keys=[
                mark.key if mark else keys.record,
                *(keys.record, keys.budget, keys.apis, keys.events, keys.index_all, f"{keys.index}queued", keys.open),
                quota,
            ],
            args=[
                record_id,
                mark.digest if mark else "",
                round(mark.seconds * MICROSECONDS) if mark else 0,
                *map(json.dumps, (dict(record), dict(budget), dict(apis), {"status": "queued", "reason": None})),
                record.get("tenant", "default"),
            ],
        )
        if verdict == b"reused":
            raise KeyReused
        if verdict == b"full":
            raise TooManyOpen(rest[0])
        told = rest[0].decode()
        return (told, None) if verdict == b"exists" else (record_id, told)

    async def move(
        self,
        keys: RecordKeys,
        to: str,
        *,
        lease: Lease | None = None,
        only_from: Iterable[str] | None = None,
        fields: Mapping[str, str] | None = None,
        reason: str | None = None,
        idle: bool = False,
    ) -> None:
        """Move to status `to`, for `reason`. `only_from` narrows where from; `idle`: nobody may hold a lease.

        Raises `MoveRefused`, `StillAtWork`, `LeaseLost`, `StoreUnavailable`.
        """
        sources = {status for status, targets in self._moves.items() if to in targets}
        if only_from is not None:
            sources &= set(map(str, only_from))
        ordered = sorted(sources)
        verdict, *rest = await self._scripts.run(
            "record_move",
            keys=[keys.leases, keys.record, keys.events, keys.index + to, *(keys.index + one for one in ordered)],
            args=[
                *_proof(lease),
                to,
                int(to in self._ends),
                int(idle),
                json.dumps({"reason": reason or "", **(fields or {})}),
                json.dumps({"status": to, "reason": reason}),
                *ordered,
            ],
        )
        _check(verdict, rest, to, lease)

    async def retry(self, keys: RecordKeys, *, set_back: Mapping[str, str], quota: str) -> None:
        """Queue a failed record again with its attempts counted anew; `set_back` are fields of the hash `apis`.

        `quota`: the hash whose `running_jobs`, if it has it, says how many records of its `tenant` may be open.
        Raises `MoveRefused`, `StillAtWork`, `TooManyOpen`, `StoreUnavailable`.
        """
        verdict, *rest = await self._scripts.run(
            "record_retry",
            keys=[
                *(keys.leases, keys.record, keys.events, keys.apis, keys.open),
                *(f"{keys.index}failed", f"{keys.index}queued", quota),
            ],
            args=[json.dumps(dict(set_back)), json.dumps({"status": "queued", "reason": None})],
        )
        if verdict == b"full":
            raise TooManyOpen(rest[0])
        _check(verdict, rest, "queued", None)

    async def change(
        self,
        keys: RecordKeys,
        *,
        read: tuple[str, str],
        fields: Mapping[str, str],
        budget: Mapping[str, str],
        apis: Mapping[str, str],
        event: Mapping[str, Any],
        never_in: Iterable[str] = (),
    ) -> bool:
        """Set fields of the record, of its budget and of the hash `apis`, and announce `event` (of type `changed`).

        False, and nothing is done, when the field and value `read` are no longer what stands. Raises `MoveRefused` in one of
        the statuses `never_in`, `StoreUnavailable`.
        """
        verdict, *rest = await self._scripts.run(
            "record_change",
            keys=[keys.record, keys.budget, keys.apis, keys.events],
            args=[
                *read,
                *map(json.dumps, (dict(fields), dict(budget), dict(apis), dict(event))),
                *sorted(map(str, never_in)),
            ],
        )
        if verdict == b"refused":
            raise MoveRefused(rest[0].decode(), "changed")
        return bool(verdict == b"changed")

    async def delete(self, keys: RecordKeys, others: Iterable[str]) -> None:
        """Delete a record that has ended, and the keys `others`.

        Raises `MoveRefused` when it has not, `StillAtWork`, `StoreUnavailable`.
        """
        statuses = sorted(self._moves)
        verdict, *rest = await self._scripts.run(
            "record_delete",
            keys=[
                *(keys.leases, keys.record, keys.index_all, keys.open, *(keys.index + status for status in statuses)),
                *(keys.budget, keys.apis, keys.events, *others),
            ],
            args=[len(statuses), *sorted(self._ends)],
        )
        _check(verdict, rest, "deleted", None)

    async def write(
        self,
        keys: RecordKeys,
        lease: Lease,
        *,
        fields: Mapping[str, str],
        into: str | None = None,
        event: tuple[str, Mapping[str, Any]] | None = None,
        progress: bool = False,
    ) -> None:
        """Set fields of the record, or of the hash `into`, and announce `event` (type, data).

        progress: this is durable progress; attempts are counted anew. Raises `LeaseLost`, `StoreUnavailable`.
        """
        name, data = event or ("", {})
        verdict, *rest = await self._scripts.run(
            "record_write",
            keys=[keys.leases, into or keys.record, keys.events],
            args=[*_proof(lease), json.dumps(dict(fields)), int(progress), name, json.dumps(dict(data))],
        )
        _check(verdict, rest, "", lease)

    async def measure(
        self,
        keys: RecordKeys,
        lease: Lease,
        *,
        fields: Mapping[str, str],
        event: tuple[str, Mapping[str, Any]],
        series: Series,
    ) -> None:
        """Set fields of the record, announce `event` (type, data), and keep it in `series` under the same id.

        Raises `LeaseLost`, `StoreUnavailable`.
        """
        name, data = event
        verdict, *rest = await self._scripts.run(
            "record_measure",
            keys=[keys.leases, keys.record, keys.events, series.key],
            args=[
                *_proof(lease),
                *(json.dumps(dict(fields)), name, json.dumps(dict(data))),
                *(series.points, series.seconds),
            ],
        )
        _check(verdict, rest, "", lease)

    async def decide(self, keys: RecordKeys, lease: Lease, field: str, value: str) -> str:
        """Set a field unless it is set; the value that stands. Raises `LeaseLost`, `StoreUnavailable`."""
        verdict, *rest = await self._scripts.run(
            "record_once", keys=[keys.leases, keys.record], args=[*_proof(lease), field, value]
        )
        _check(verdict, rest, "", lease)
        standing: bytes = rest[0]
        return standing.decode()

    async def phase(self, keys: RecordKeys, lease: Lease, phase: str, rank: int) -> None:
        """Note that `phase`, at place `rank` of the order, has started. Raises `LeaseLost`, `StoreUnavailable`."""
        verdict, *rest = await self._scripts.run(
            "record_phase",
            keys=[keys.leases, keys.record, keys.events],
            args=[*_proof(lease), phase, rank, json.dumps({"phase": phase})],
        )
        _check(verdict, rest, phase, lease)

    async def publish(
        self,
        keys: RecordKeys,
        lease: Lease,
        *,
        published_id: str,
        published_key: str,
        published_index: str,
        published: str,
        folder: str,
        fields: Mapping[str, str],
    ) -> None:
        """Make `published` (JSON) visible and the record succeeded, in one step.

        Raises `MoveRefused`, `LeaseLost`, `StoreUnavailable`.
        """
        verdict, *rest = await self._scripts.run(
            "record_publish",
            keys=[
                *(keys.leases, keys.record, keys.events, f"{keys.index}running", f"{keys.index}succeeded"),
                *(published_key, published_index),
            ],
            args=[
                *(*_proof(lease), published_id, published, folder, json.dumps(dict(fields))),
                json.dumps({"meta_model": published_id}),
                json.dumps({"status": "succeeded", "reason": None}),
            ],
        )
        _check(verdict, rest, "succeeded", lease)


def _proof(lease: Lease | None) -> tuple[str, str]:
    return (lease.role, str(lease.fence)) if lease else ("", "")


def _check(verdict: bytes, rest: list[Any], to: str, lease: Lease | None) -> None:
    if verdict == b"stale":
        raise LeaseLost(lease.role if lease else to)
    if verdict == b"busy":
        raise StillAtWork(to)
    if verdict == b"refused":
        raise MoveRefused(rest[0].decode(), to)
