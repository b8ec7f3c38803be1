"""A job's event stream in Redis, and the training metrics told in it, which outlive its trimming.

Events, by type, and what their data holds:

- `status`: `status`, `reason`
- `phase`: `phase`, which has started
- `api`: `api` (its id), `state`, `planned`, `reason`
- `budget`: `api`, `chunk`, `outcome` (confirmed, released, unconfirmed), `images`
- `progress`: `phase`, `fraction` in [0, 1]
- `metrics`: `step`, `steps` and the newest value of each training metric
- `changed`: the fields that a person changed (`name`, `tags`, `notes`, `budget`)
- `warning`: `message`, and `api` where it is about one
- `published`: `meta_model`
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from contracts.job_records import Event, EventPage, MetricPage, MetricPoint
from contracts.jobs import JobStatus
from contracts.problems import Fault, ProblemError
from meta_server.store import keys
from metering.scripts import Scripts, store_errors

EVENTS_KEPT = 20_000  # of one job

STREAM_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"  # 20 digits may be more than Redis can count to


class Events:
    """What jobs tell, in pages; `meta_server.hub` follows it. `status` gives a job's status, or raises `not-found`."""

    def __init__(self, redis: Any, scripts: Scripts, status: Callable[[str], Awaitable[JobStatus]]) -> None:
        self._redis = redis
        self._scripts = scripts
        self._status = status

    async def page(self, job_id: str, *, after: str | None = None, limit: int = 100) -> EventPage:
        """Events after the id `after`, oldest first. Raises `ProblemError` (`not-found`, `invalid-request`, `gone`)."""
        await self.resumable(job_id, after)
        items = list(await read(self._redis, job_id, after=after, limit=limit))
        return EventPage(items=items, last=items[-1].id if items else after)

    async def resumable(self, job_id: str, after: str | None) -> None:
        """Whether events can be told from behind `after`. Raises `ProblemError` (`not-found`, `invalid-request`, `gone`)."""
        await self._status(job_id)
        await _held(self._redis, job_id, after=after)

    async def trim(self, job_id: str) -> int:
        """Delete events beyond the newest `EVENTS_KEPT`: how many. Raises `StoreUnavailable`."""
        deleted = await self._scripts.run(
            "stream_trim",
            keys=[keys.job(job_id, "events"), keys.job(job_id, "record")],
            args=[EVENTS_KEPT, EVENTS_KEPT // 10],
        )
        return int(deleted)

    async def metrics(self, job_id: str, *, after: str | None = None, limit: int = 1000) -> MetricPage:
        """Training metrics after the event `after`, oldest first, also those whose events were trimmed since.

        Raises `ProblemError` (`not-found`, `invalid-request`), `StoreUnavailable`.
        """
        await self._status(job_id)
        points = [_point(told) for told in await read(self._redis, job_id, after=after, limit=limit, part="metrics")]
        return MetricPage(items=points, last=points[-1].id if len(points) == limit else None)


async def read(
    redis: Any, job_id: str, *, after: str | None, limit: int, part: Literal["events", "metrics"] = "events"
) -> Sequence[Event]:
    """Events after the id `after`, oldest first; of `metrics`, those that tell metrics, which are kept apart.

    Raises `ProblemError` (`invalid-request`), `StoreUnavailable`.
    """
    start = f"({stream_id(after)}" if after is not None else "-"
    with store_errors():
        entries = await redis.xrange(keys.job(job_id, part), min=start, count=limit)
    return [event(*entry) for entry in entries]


async def _held(redis: Any, job_id: str, *, after: str | None) -> None:
    """Raises `ProblemError` (`gone`; its `first` is the first event still held) if events after `after` were trimmed."""
    if after is None:
        return
    with store_errors():
        trimmed = await redis.hget(keys.job(job_id, "record"), "trimmed")
    if trimmed is None or place(stream_id(after)) >= place(trimmed.decode()):
        return
    page = await read(redis, job_id, after=trimmed.decode(), limit=1)
    first = page[0].id if page else None
    raise ProblemError(
        "gone", f"events before {first} are no longer held: follow without an id for what is left", first=first
    )


def place(event_id: str) -> tuple[int, int]:
    """An id as numbers that are ordered as the stream is."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    """An entry of the stream."""
    name = entry_id.decode()
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(name.partition("-")[0]))
    return Event(id=name, time=when, type=fields[b"type"].decode(), data=json.loads(fields[b"data"]))


def _point(told: Event) -> MetricPoint:
    values = {name: float(value) for name, value in told.data.items() if name not in ("step", "steps")}
    return MetricPoint(id=told.id, time=told.time, step=told.data["step"], steps=told.data["steps"], values=values)


def stream_id(after: str) -> str:
    """`after`, if it is the id of an entry. Raises `ProblemError` (`invalid-request`)."""
    if not re.fullmatch(STREAM_ID, after):
        fault = Fault(field="after", message="must be the id of an event, such as 1700000000000-0")
        raise ProblemError("invalid-request", "the event id is malformed", errors=[fault])
    return after
