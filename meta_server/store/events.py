"""A job's event stream in Redis: pages of it, and the training metrics told in it.

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
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.jobs import Event, MetricPage, MetricPoint
from contracts.problems import Fault, ProblemError
from meta_server.store import keys
from metering.scripts import store_errors

SCAN = 1000  # entries read at a time in search of metrics

STREAM_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"  # 20 digits may be more than Redis can count to


async def read(redis: Any, job_id: str, *, after: str | None, limit: int) -> Sequence[Event]:
    """Events after the id `after`, oldest first. Raises `ProblemError` (`invalid-request`), `StoreUnavailable`."""
    start = f"({stream_id(after)}" if after is not None else "-"
    with store_errors():
        entries = await redis.xrange(keys.job(job_id, "events"), min=start, count=limit)
    return [event(*entry) for entry in entries]


async def held(redis: Any, job_id: str, *, after: str | None) -> None:
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


async def metrics(redis: Any, job_id: str, *, after: str | None, limit: int) -> MetricPage:
    """Training metrics after the event `after`, oldest first. Raises as `read` does."""
    points: list[MetricPoint] = []
    while True:
        page = await read(redis, job_id, after=after, limit=SCAN)
        for one in page:
            after = one.id
            if one.type == "metrics":
                values = {name: float(value) for name, value in one.data.items() if name not in ("step", "steps")}
                points.append(
                    MetricPoint(id=one.id, time=one.time, step=one.data["step"], steps=one.data["steps"], values=values)
                )
            if len(points) == limit:
                return MetricPage(items=points, last=after)
        if len(page) < SCAN:
            return MetricPage(items=points, last=None)


def event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    """An entry of the stream."""
    name = entry_id.decode()
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(name.partition("-")[0]))
    return Event(id=name, time=when, type=fields[b"type"].decode(), data=json.loads(fields[b"data"]))


def stream_id(after: str) -> str:
    """`after`, if it is the id of an entry. Raises `ProblemError` (`invalid-request`)."""
    if not re.fullmatch(STREAM_ID, after):
        fault = Fault(field="after", message="must be the id of an event, such as 1700000000000-0")
        raise ProblemError("invalid-request", "the event id is malformed", errors=[fault])
    return after
