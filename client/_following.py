"""Following a job, by its stream of events or by looking at it now and then; does no I/O."""

import time
from collections.abc import Callable

from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from client import _job_requests, _retry
from client._flow import Flow, Pause, Request, call
from client.errors import InvalidAnswer, JobFailed, MetazooError, TimedOut
from contracts.job_records import Event
from contracts.jobs import ENDED, MOVES, Job, JobStatus

RECONNECTS = 10  # fruitless attempts after which following gives up: about a minute
LONGEST_POLL = 3.0  # seconds between two looks at a job that is waited for
FINAL = frozenset(status for status, moves in MOVES.items() if not moves)  # a failed job may be retried


class Follower:
    """Where a followed stream stands, across connections; does no I/O."""

    def __init__(self, job_id: str, after: str | None, retries: int) -> None:
        self.ended = False
        self._job_id = job_id
        self._last = after
        self._retries = retries
        self._failures = 0
        self._heard = False  # an event in this connection
        self._at_end = False  # the last event told of an end; of a failed job it may not be the last
        self._closing = False  # the job had ended before this connection began

    def connect(self) -> Request:
        """The next connection, resuming after the last event seen."""
        self._heard = False
        resume = {"Last-Event-ID": self._last} if self._last else {}
        return Request(
            "GET", f"{_job_requests.path_of(self._job_id)}/events", headers={"Accept": "text/event-stream", **resume}
        )

    def read(self, message: ServerSentEvent) -> Event | None:
        """The event in a message, if it holds one. Raises `InvalidAnswer` when it cannot be read."""
        if not message.data:
            return None
        try:
            event = Event.model_validate_json(message.data)
        except ValidationError:
            raise InvalidAnswer(
                f"job {self._job_id}: an event cannot be read; is this client as new as the server?"
            ) from None
        self._last, self._failures, self._heard = event.id, 0, True
        status = event.data.get("status") if event.type == "status" else None
        self.ended, self._at_end = status in FINAL, status in ENDED
        return event

    def disconnected(self) -> Flow[None]:
        """What to do when the server ended the stream: resume, unless the job had ended and there was no more to tell.

        The job is looked at before the next connection, not after it, so that its last events cannot fall between.
        """
        if self.ended:
            return
        if self._closing and (self._at_end or not self._heard):
            self.ended = True
            return
        job = yield from call(_job_requests.retrieve(self._job_id), Job, retries=self._retries)
        self._closing = job.status in ENDED
        if not self._closing:
            yield Pause(_retry.FIRST)

    def broken(self, error: MetazooError) -> float:
        """Seconds to wait after a lost connection; raises `error` when another attempt is of no use."""
        wait = _retry.pause(error, attempt=self._failures, retries=RECONNECTS, repeatable=True)
        if wait is None:
            raise error
        self._failures += 1
        return wait


def wait(
    job_id: str,
    timeout: float | None,
    retries: int,
    *,
    look: Callable[[Job], object],
    clock: Callable[[], float] = time.monotonic,
) -> Flow[None]:
    """Look at the job at growing intervals until it has ended; each time `look` is given what was seen."""
    give_up = None if timeout is None else clock() + timeout
    interval = 0.2
    while True:
        job = yield from call(_job_requests.retrieve(job_id), Job, retries=retries)
        look(job)
        if job.status is JobStatus.SUCCEEDED:
            return
        if job.status is JobStatus.CANCELLED:
            raise JobFailed("cancelled", job.reason or "it was cancelled", job=job)
        if job.status is JobStatus.FAILED:
            raise JobFailed(job.error.code if job.error else "failed", job.error.message if job.error else "", job=job)
        left = LONGEST_POLL if give_up is None else give_up - clock()
        if left <= 0:
            raise TimedOut(f"job {job_id} is still {job.status} after {timeout} s; it goes on: wait again")
        yield Pause(min(interval, left))
        interval = min(interval * 1.5, LONGEST_POLL)
