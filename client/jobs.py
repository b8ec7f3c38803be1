"""Jobs: start them, look at them, follow what happens, wait for the end."""

import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio

from client import _job_requests
from client._download import download_file
from client._flow import AsyncDriver, Driver, Request, retried
from client._following import Follower, wait
from client.errors import MetazooError
from contracts.estimates import Estimate
from contracts.jobs import (
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
        return self._driver.call(_job_requests.create(request, idempotency_key), Job)

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
        return self._driver.call(_job_requests.estimate(request, probe, probe_images), Estimate)

    def retrieve(self, job_id: str) -> Job:
        """The job as it is now. Raises `NotFound`."""
        return self._driver.call(_job_requests.retrieve(job_id), Job)

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
        return self._driver.call(_job_requests.page(after, limit, status, tag, name), JobPage)

    def change(self, job_id: str, change: JobChange | Mapping[str, Any]) -> Job:
        """Name, tag or annotate a job, or raise its budget; what is left out stays.

            metazoo.jobs.change(job.id, {"notes": "more data", "budget": {"queries": 20_000}})

        A raise counts from when work is next begun: pause a running job, raise, resume. Raises `InvalidRequest` for a limit
        below the one there, `Conflict` for the budget of a job that spends nothing any more.
        """
        return self._driver.call(_job_requests.change(job_id, change), Job)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended: record, events, answers, checkpoints; not its meta-model. Raises `Conflict`."""
        self._driver.run(retried(Request("DELETE", _job_requests.path_of(job_id)), retries=self._driver.retries))

    def budget(self, job_id: str) -> BudgetState:
        """Where the job's budget stands, by API too. Raises `NotFound`."""
        return self._driver.call(Request("GET", f"{_job_requests.path_of(job_id)}/budget"), BudgetState)

    def metrics(self, job_id: str) -> Iterator[MetricPoint]:
        """Training metrics so far, oldest first."""
        after: str | None = None
        while True:
            page = self._driver.call(_job_requests.metrics(job_id, after), MetricPage)
            yield from page.items
            after = page.last
            if after is None:
                return

    def answers(self, job_id: str) -> Iterator[PaidAnswer]:
        """What was paid for: every chunk of images that an API answered; `download_answer` fetches one."""
        after: str | None = None
        while True:
            page = self._driver.call(_job_requests.answers(job_id, after), AnswerPage)
            yield from page.items
            after = page.next
            if after is None:
                return

    def download_answer(self, job_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file: safetensors `indices` and `probabilities`. Returns the path."""
        return self._driver.run(
            download_file(f"{_job_requests.path_of(job_id)}/answers/{quote(name, safe='')}", path, self._driver.retries)
        )

    def download_images(self, job_id: str, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first images that the job asks about into a PNG file. Raises `Conflict` before the probe has begun."""
        return self._driver.run(
            download_file(f"{_job_requests.path_of(job_id)}/images", path, self._driver.retries, count=count)
        )

    def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; what it has paid for is kept. Raises `Conflict` when it has ended already."""
        return self._driver.call(_job_requests.move(job_id, "cancel"), Job)

    def pause(self, job_id: str) -> Job:
        """Let a job rest: requests under way are answered first. Raises `Conflict` when it has ended or is ending.

        metazoo.jobs.pause(job.id)
        metazoo.jobs.resume(job.id)  # later; it goes on from its last answer or checkpoint
        """
        return self._driver.call(_job_requests.move(job_id, "pause"), Job)

    def resume(self, job_id: str) -> Job:
        """Go on with a paused job. Raises `Conflict` when it is still pausing or has ended."""
        return self._driver.call(_job_requests.move(job_id, "resume"), Job)

    def retry(self, job_id: str) -> Job:
        """Go on with a failed job: all it paid for and its checkpoints are kept. Raises `Conflict` when it has not failed."""
        return self._driver.call(_job_requests.move(job_id, "retry"), Job)

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
        return self._driver.run(wait(job_id, timeout, self._driver.retries))

    def _so_far(self, job_id: str, after: str | None) -> Iterator[Event]:
        while True:
            page = self._driver.call(_job_requests.events(job_id, after), EventPage)
            yield from page.items
            if len(page.items) < _job_requests.PAGE:
                return
            after = page.last

    def _follow(self, follower: Follower) -> Iterator[Event]:
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
        return await self._driver.call(_job_requests.create(request, idempotency_key), Job)

    async def estimate(
        self, request: JobRequest | Mapping[str, Any], *, probe: bool = False, probe_images: int = 8
    ) -> Estimate:
        """What a job would come to; see `Jobs.estimate`."""
        return await self._driver.call(_job_requests.estimate(request, probe, probe_images), Estimate)

    async def retrieve(self, job_id: str) -> Job:
        """The job as it is now. Raises `NotFound`."""
        return await self._driver.call(_job_requests.retrieve(job_id), Job)

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
        return await self._driver.call(_job_requests.page(after, limit, status, tag, name), JobPage)

    async def change(self, job_id: str, change: JobChange | Mapping[str, Any]) -> Job:
        """Name, tag or annotate a job, or raise its budget; see `Jobs.change`."""
        return await self._driver.call(_job_requests.change(job_id, change), Job)

    async def delete(self, job_id: str) -> None:
        """Delete a job that has ended; see `Jobs.delete`."""
        await self._driver.run(retried(Request("DELETE", _job_requests.path_of(job_id)), retries=self._driver.retries))

    async def budget(self, job_id: str) -> BudgetState:
        """Where the job's budget stands; see `Jobs.budget`."""
        return await self._driver.call(Request("GET", f"{_job_requests.path_of(job_id)}/budget"), BudgetState)

    async def metrics(self, job_id: str) -> AsyncIterator[MetricPoint]:
        """Training metrics so far, oldest first."""
        after: str | None = None
        while True:
            page = await self._driver.call(_job_requests.metrics(job_id, after), MetricPage)
            for point in page.items:
                yield point
            after = page.last
            if after is None:
                return

    async def answers(self, job_id: str) -> AsyncIterator[PaidAnswer]:
        """What was paid for; see `Jobs.answers`."""
        after: str | None = None
        while True:
            page = await self._driver.call(_job_requests.answers(job_id, after), AnswerPage)
            for answer in page.items:
                yield answer
            after = page.next
            if after is None:
                return

    async def download_answer(self, job_id: str, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file; see `Jobs.download_answer`."""
        url = f"{_job_requests.path_of(job_id)}/answers/{quote(name, safe='')}"
        return await self._driver.run(download_file(url, path, self._driver.retries))

    async def download_images(self, job_id: str, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first images that the job asks about into a PNG file; see `Jobs.download_images`."""
        return await self._driver.run(
            download_file(f"{_job_requests.path_of(job_id)}/images", path, self._driver.retries, count=count)
        )

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; what it has paid for is kept. Raises `Conflict` when it has ended already."""
        return await self._driver.call(_job_requests.move(job_id, "cancel"), Job)

    async def pause(self, job_id: str) -> Job:
        """Let a job rest; see `Jobs.pause`."""
        return await self._driver.call(_job_requests.move(job_id, "pause"), Job)

    async def resume(self, job_id: str) -> Job:
        """Go on with a paused job; see `Jobs.resume`."""
        return await self._driver.call(_job_requests.move(job_id, "resume"), Job)

    async def retry(self, job_id: str) -> Job:
        """Go on with a failed job; see `Jobs.retry`."""
        return await self._driver.call(_job_requests.move(job_id, "retry"), Job)

    def events(self, job_id: str, *, after: str | None = None, follow: bool = False) -> AsyncIterator[Event]:
        """What happened to a job, oldest first; see `Jobs.events`."""
        if follow:
            return self._follow(Follower(job_id, after, self._driver.retries))
        return self._so_far(job_id, after)

    async def wait(self, job_id: str, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as the blocking one
        """The job, once it has succeeded; see `Jobs.wait`."""
        return await self._driver.run(wait(job_id, timeout, self._driver.retries))

    async def _so_far(self, job_id: str, after: str | None) -> AsyncIterator[Event]:
        while True:
            page = await self._driver.call(_job_requests.events(job_id, after), EventPage)
            for event in page.items:
                yield event
            if len(page.items) < _job_requests.PAGE:
                return
            after = page.last

    async def _follow(self, follower: Follower) -> AsyncIterator[Event]:
        while not follower.ended:
            try:
                async for message in self._driver.events(follower.connect()):
                    if (event := follower.read(message)) is not None:
                        yield event
                await self._driver.run(follower.disconnected())
            except MetazooError as error:
                await anyio.sleep(follower.broken(error))
