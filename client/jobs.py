"""Jobs: start them, look at them, follow what happens, wait for the end."""

import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from httpx_sse import ServerSentEvent
from pydantic import BaseModel, SecretStr, ValidationError

from client import _retry
from client._flow import AsyncDriver, Driver, Flow, Pause, Request, call, retried
from client.errors import InvalidAnswer, JobFailed, MetazooError, TimedOut
from contracts.estimates import Estimate
from contracts.jobs import (
    ENDED,
    MOVES,
    AnswerPage,
    BudgetState,
    Event,
    EventPage,
    Job,
    JobChange,
    JobPage,
    JobRequest,
    JobStatus,
    MetricPage,
    MetricPoint,
    PaidAnswer,
)

PAGE = 100  # events asked for at a time
RECONNECTS = 10  # fruitless attempts after which following gives up: about a minute
LONGEST_POLL = 3.0  # seconds between two looks at a job that is waited for


class Jobs:
    """`Metazoo.jobs`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def create(self, request: JobRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Start a job; it is queued at once and paid for as it runs.

            job = metazoo.jobs.create({"apis": [{"url": url, "api_key": key}], "budget": {"queries": 5000}})

        Repetitions of a lost request carry one key, so there is one job; pass your own to cover several calls. Raises
        `InvalidRequest` with every fault by field.
        """
        return self._driver.call(_create(request, idempotency_key), Job)

    def estimate(
        self, request: JobRequest | Mapping[str, Any], *, probe: bool = False, probe_images: int = 8
    ) -> Estimate:
        """What a job would come to: queries, cost and expected accuracy. Nothing is stored.

            told = metazoo.jobs.estimate({"apis": [{"url": url, "price_per_1k": "1.50"}], "budget": {"queries": 5000}})
            print(told.queries, told.cost, told.accuracy)

        With `probe`, workers ask each API about at most `probe_images` images, which it charges for; `told.probe` says how many
        were charged and what the APIs showed, `told.seconds` how long asking takes at the rates they state. Such a call is not
        repeated by itself. Raises `InvalidRequest` with every fault by field, `ApiUnavailable` when no worker told in time.
        """
        return self._driver.call(_estimate(request, probe, probe_images), Estimate)

    def retrieve(self, job_id: str) -> Job:
        """The job as it is now. Raises `NotFound`."""
        return self._driver.call(_job(job_id), Job)

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | str | None = None,
        tag: str | None = None,
        name: str | None = None,
    ) -> JobPage:
        """A page of jobs, newest first; its `next` is the `after` of the following page.

        `status`, `tag` and `name` (a part of it) filter; a filtered page may be short although there are more.
        """
        return self._driver.call(_list(after, limit, status, tag, name), JobPage)

    def change(self, job_id: str, change: JobChange | Mapping[str, Any]) -> Job:
        """Name, tag or annotate a job, or raise its budget; what is left out stays.

            metazoo.jobs.change(job.id, {"notes": "more data", "budget": {"queries": 20_000}})

        A raise counts from when work is next begun: pause a running job, raise, resume. Raises `InvalidRequest` for a limit
        below the one there, `Conflict` for the budget of a job that spends nothing any more.
        """
        return self._driver.call(_change(job_id, change), Job)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended: record, events, answers, checkpoints; not its meta-model. Raises `Conflict`."""
        self._driver.run(retried(Request("DELETE", _path(job_id)), retries=self._driver.retries))

    def budget(self, job_id: str) -> BudgetState:
        """Where the job's budget stands, by API too. Raises `NotFound`."""
        return self._driver.call(Request("GET", f"{_path(job_id)}/budget"), BudgetState)

    def metrics(self, job_id: str) -> Iterator[MetricPoint]:
        """Training metrics so far, oldest first."""
        after: str | None = None
        while True:
            page = self._driver.call(_metrics(job_id, after), MetricPage)
            yield from page.items
            after = page.last
            if after is None:
                return

    def answers(self, job_id: str) -> Iterator[PaidAnswer]:
        """What was paid for: every chunk of images that an API answered; `download_answer` fetches one."""
        after: str | None = None
        while True:
            page = self._driver.call(_answers(job_id, after), AnswerPage)
            yield from page.items
            after = page.next
            if after is None:
                return

    def download_answer(self, job_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file: safetensors `indices` and `probabilities`. Returns the path."""
        return self._driver.run(
            _download(f"{_path(job_id)}/answers/{quote(name, safe='')}", path, self._driver.retries)
        )

    def download_images(self, job_id: str, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first images that the job asks about into a PNG file. Raises `Conflict` before the probe has begun."""
        return self._driver.run(_download(f"{_path(job_id)}/images", path, self._driver.retries, count=count))

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; what it has paid for is kept. Raises `Conflict` when it has ended already."""
        return self._driver.call(_move(job_id, "cancel"), Job)

    def pause(self, job_id: str) -> Job:
        """Let a job rest: requests under way are answered first. Raises `Conflict` when it has ended or is ending.

        metazoo.jobs.pause(job.id)
        metazoo.jobs.resume(job.id)  # later; it goes on from its last answer or checkpoint
        """
        return self._driver.call(_move(job_id, "pause"), Job)

    def resume(self, job_id: str) -> Job:
        """Go on with a paused job. Raises `Conflict` when it is still pausing or has ended."""
        return self._driver.call(_move(job_id, "resume"), Job)

    def retry(self, job_id: str) -> Job:
        """Go on with a failed job: all it paid for and its checkpoints are kept. Raises `Conflict` when it has not failed."""
        return self._driver.call(_move(job_id, "retry"), Job)

    def events(self, job_id: str, *, after: str | None = None, follow: bool = False) -> Iterator[Event]:
        """What happened to a job, oldest first, after the event with the id `after`.

        With `follow` it goes on, across lost connections, with nothing lost or doubled, until the job has ended.
        """
        if follow:
            return self._follow(Follower(job_id, after, self._driver.retries))
        return self._so_far(job_id, after)

    def wait(self, job_id: str, *, timeout: float | None = None) -> Job:
        """The job, once it has succeeded. Raises `JobFailed` when it failed or was cancelled, `TimedOut` after
        `timeout` seconds.
        """
        return self._driver.run(_wait(job_id, timeout, self._driver.retries))

    def _so_far(self, job_id: str, after: str | None) -> Iterator[Event]:
        while True:
            page = self._driver.call(_events(job_id, after), EventPage)
            yield from page.items
            if len(page.items) < PAGE:
                return
            after = page.last

    def _follow(self, follower: "Follower") -> Iterator[Event]:
        while not follower.ended:
            try:
                for message in self._driver.events(follower.connect()):
                    if (event := follower.read(message)) is not None:
                        yield event
                self._driver.run(follower.disconnected())
            except MetazooError as error:
                time.sleep(follower.broken(error))


class AsyncJobs:
    """`AsyncMetazoo.jobs`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def create(self, request: JobRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Start a job; see `Jobs.create`."""
        return await self._driver.call(_create(request, idempotency_key), Job)

    async def estimate(
        self, request: JobRequest | Mapping[str, Any], *, probe: bool = False, probe_images: int = 8
    ) -> Estimate:
        """What a job would come to; see `Jobs.estimate`."""
        return await self._driver.call(_estimate(request, probe, probe_images), Estimate)

    async def retrieve(self, job_id: str) -> Job:
        """The job as it is now. Raises `NotFound`."""
        return await self._driver.call(_job(job_id), Job)

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | str | None = None,
        tag: str | None = None,
        name: str | None = None,
    ) -> JobPage:
        """A page of jobs, newest first; see `Jobs.list`."""
        return await self._driver.call(_list(after, limit, status, tag, name), JobPage)

    async def change(self, job_id: str, change: JobChange | Mapping[str, Any]) -> Job:
        """Name, tag or annotate a job, or raise its budget; see `Jobs.change`."""
        return await self._driver.call(_change(job_id, change), Job)

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended; see `Jobs.delete`."""
        await self._driver.run(retried(Request("DELETE", _path(job_id)), retries=self._driver.retries))

    async def budget(self, job_id: str) -> BudgetState:
        """Where the job's budget stands; see `Jobs.budget`."""
        return await self._driver.call(Request("GET", f"{_path(job_id)}/budget"), BudgetState)

    async def metrics(self, job_id: str) -> AsyncIterator[MetricPoint]:
        """Training metrics so far, oldest first."""
        after: str | None = None
        while True:
            page = await self._driver.call(_metrics(job_id, after), MetricPage)
            for point in page.items:
                yield point
            after = page.last
            if after is None:
                return

    async def answers(self, job_id: str) -> AsyncIterator[PaidAnswer]:
        """What was paid for; see `Jobs.answers`."""
        after: str | None = None
        while True:
            page = await self._driver.call(_answers(job_id, after), AnswerPage)
            for answer in page.items:
                yield answer
            after = page.next
            if after is None:
                return

    async def download_answer(self, job_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file; see `Jobs.download_answer`."""
        url = f"{_path(job_id)}/answers/{quote(name, safe='')}"
        return await self._driver.run(_download(url, path, self._driver.retries))

    async def download_images(self, job_id: str, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first images that the job asks about into a PNG file; see `Jobs.download_images`."""
        return await self._driver.run(_download(f"{_path(job_id)}/images", path, self._driver.retries, count=count))

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; what it has paid for is kept. Raises `Conflict` when it has ended already."""
        return await self._driver.call(_move(job_id, "cancel"), Job)

    async def pause(self, job_id: str) -> Job:
        """Let a job rest; see `Jobs.pause`."""
        return await self._driver.call(_move(job_id, "pause"), Job)

    async def resume(self, job_id: str) -> Job:
        """Go on with a paused job; see `Jobs.resume`."""
        return await self._driver.call(_move(job_id, "resume"), Job)

    async def retry(self, job_id: str) -> Job:
        """Go on with a failed job; see `Jobs.retry`."""
        return await self._driver.call(_move(job_id, "retry"), Job)

    def events(self, job_id: str, *, after: str | None = None, follow: bool = False) -> AsyncIterator[Event]:
        """What happened to a job, oldest first; see `Jobs.events`."""
        if follow:
            return self._follow(Follower(job_id, after, self._driver.retries))
        return self._so_far(job_id, after)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as the blocking one
        """The job, once it has succeeded; see `Jobs.wait`."""
        return await self._driver.run(_wait(job_id, timeout, self._driver.retries))

    async def _so_far(self, job_id: str, after: str | None) -> AsyncIterator[Event]:
        while True:
            page = await self._driver.call(_events(job_id, after), EventPage)
            for event in page.items:
                yield event
            if len(page.items) < PAGE:
                return
            after = page.last

    async def _follow(self, follower: "Follower") -> AsyncIterator[Event]:
        while not follower.ended:
            try:
                async for message in self._driver.events(follower.connect()):
                    if (event := follower.read(message)) is not None:
                        yield event
                await self._driver.run(follower.disconnected())
            except MetazooError as error:
                await anyio.sleep(follower.broken(error))


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
        return Request("GET", f"{_path(self._job_id)}/events", headers={"Accept": "text/event-stream", **resume})

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
        job = yield from call(_job(self._job_id), Job, retries=self._retries)
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


FINAL = frozenset(status for status, moves in MOVES.items() if not moves)  # a failed job may be retried


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _job(job_id: str) -> Request:
    return Request("GET", _path(job_id))


def _move(job_id: str, move: str) -> Request:
    return Request("POST", f"{_path(job_id)}/{move}")


def _create(request: JobRequest | Mapping[str, Any], idempotency_key: str | None) -> Request:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Request("POST", "/v1/jobs", headers=headers, content=json.dumps(request, default=_revealed).encode())


def _estimate(request: JobRequest | Mapping[str, Any], probe: bool, probe_images: int) -> Request:
    body = _revealed(request) | ({"probe": True, "probe_images": probe_images} if probe else {})
    content = json.dumps(body, default=_revealed).encode()
    headers = {"Content-Type": "application/json"}
    return Request("POST", "/v1/jobs/estimate", headers=headers, content=content, repeatable=not body.get("probe"))


def _revealed(value: object) -> Any:
    """Models as what the caller set in them; keys as they are, because this is where they are meant to go."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a job cannot hold a {type(value).__name__}")


def _change(job_id: str, change: JobChange | Mapping[str, Any]) -> Request:
    headers = {"Content-Type": "application/json"}
    return Request("PATCH", _path(job_id), headers=headers, content=json.dumps(change, default=_revealed).encode())


def _metrics(job_id: str, after: str | None) -> Request:
    return Request("GET", f"{_path(job_id)}/metrics", params={"after": after} if after else {})


def _answers(job_id: str, after: str | None) -> Request:
    return Request("GET", f"{_path(job_id)}/answers", params={"limit": 1000} | ({"after": after} if after else {}))


def _download(url: str, path: str | os.PathLike[str], retries: int, **params: int) -> Flow[Path]:
    """Whole or not at all: what arrives lies beside `path` until it is complete."""
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        yield from retried(Request("GET", url, params=params, save_to=part), retries=retries)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _list(after: str | None, limit: int, status: JobStatus | str | None, tag: str | None, name: str | None) -> Request:
    given = {"after": after, "limit": limit, "status": status, "tag": tag, "name": name}
    return Request("GET", "/v1/jobs", params={name: value for name, value in given.items() if value is not None})


def _events(job_id: str, after: str | None) -> Request:
    resume = {"after": after} if after else {}
    return Request("GET", f"{_path(job_id)}/events", params={"limit": PAGE, **resume})


def _wait(
    job_id: str, timeout: float | None, retries: int, *, clock: Callable[[], float] = time.monotonic
) -> Flow[Job]:
    """Look at the job at growing intervals until it has ended."""
    give_up = None if timeout is None else clock() + timeout
    interval = 0.2
    while True:
        job = yield from call(_job(job_id), Job, retries=retries)
        if job.status is JobStatus.SUCCEEDED:
            return job
        if job.status is JobStatus.CANCELLED:
            raise JobFailed("cancelled", job.reason or "it was cancelled", job=job)
        if job.status is JobStatus.FAILED:
            raise JobFailed(job.error.code if job.error else "failed", job.error.message if job.error else "", job=job)
        left = LONGEST_POLL if give_up is None else give_up - clock()
        if left <= 0:
            raise TimedOut(f"job {job_id} is still {job.status} after {timeout} s; it goes on: wait again")
        yield Pause(min(interval, left))
        interval = min(interval * 1.5, LONGEST_POLL)
