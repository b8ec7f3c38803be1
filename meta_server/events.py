"""A job's events as a server-sent stream: resumable by `Last-Event-ID`, never silent for long."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent

from contracts.job_records import Event
from contracts.problems import ProblemError
from meta_server.hub import Hub
from metering.scripts import StoreUnavailable

RECONNECT_MS = 1000  # how soon a browser connects again
_OWN_HEARTBEATS = 24 * 3600  # the store's own ticks keep the connection alive, not a second clock


def stream(hub: Hub, job_id: str, after: str | None) -> EventSourceResponse:
    """Events after `after` as they happen, until the job has ended; each message's data is an `Event` as JSON."""
    return EventSourceResponse(_messages(hub, job_id, after), ping=_OWN_HEARTBEATS, headers={"X-Accel-Buffering": "no"})


async def _messages(hub: Hub, job_id: str, after: str | None) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="following", retry=RECONNECT_MS)
    try:
        async for event in hub.follow(job_id, after=after):
            yield _message(event) if event is not None else ServerSentEvent(comment="heartbeat")
    except (ProblemError, StoreUnavailable):
        return  # the job was deleted, or Redis is away: the reader connects again, and is told there


def _message(event: Event) -> ServerSentEvent:
    return ServerSentEvent(id=event.id, event=event.type, data=event.model_dump_json())
