"""A job in hand: what the service last told of it, and what can be done with it."""

import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import anyio
from pydantic import PrivateAttr

from client import _job_requests
from client._download import download_file
from client._flow import AsyncDriver, Driver, Request, retried
from client._following import Follower, wait
from client.errors import MetazooError
from contracts import jobs
from contracts._base import Record
from contracts.job_records import AnswerPage, Event, EventPage, MetricPage, MetricPoint, PaidAnswer
from contracts.jobs import BudgetRaise


class JobChanges(TypedDict, total=False):
    """What of a job may be changed; what is left out stays."""

    name: str | None  # None takes it away
    tags: list[str]
    notes: str
    budget: BudgetRaise | Mapping[str, Any]


class Job(jobs.Job):
    """A job, as `Metazoo.jobs` gives it.

        job = metazoo.jobs.create({"apis": [{"url": url}], "budget": {"queries": 5000}})
        for event in job.stream():
            print(event.type, event.data)
        print(job.wait().meta_model)

    Its fields are what the service told last: `refresh` asks anew, and whatever else asks about the whole job (`wait`,
    `stream` at its end, `cancel`, …) leaves it as told then. They cannot be set: `change` changes a job. Every method
    raises `NotFound` once the job was deleted.
    """

    _driver: Driver = PrivateAttr()

    def refresh(self) -> Self:
        """Ask how the job stands now.

        print(job.refresh().status)
        """
        return self._told(_job_requests.retrieve(self.id))

    def wait(self, *, timeout: float | None = None) -> Self:
        """Return once the job has succeeded.

            metazoo.meta_models.download(job.wait().meta_model, "model")

        Raises `JobFailed` when it failed or was cancelled, `TimedOut` after `timeout` seconds.
        """
        self._driver.run(wait(self.id, timeout, self._driver.retries, look=self._take))
        return self

    def stream(self, *, after: str | None = None) -> Iterator[Event]:
        """What happens to the job, as it happens, until it has ended: from its first event, or from that after `after`.

            for event in job.stream():
                print(event.type, event.data)

        It outlives lost connections and restarts of the server: each goes on after the last event seen, with nothing
        lost or doubled. Raises `ApiUnavailable` after about a minute in which the server cannot be reached.
        """
        follower = Follower(self.id, after, self._driver.retries)
        while not follower.ended:
            try:
                for message in self._driver.events(follower.connect()):
                    if (event := follower.read(message)) is not None:
                        yield event
                self._driver.run(follower.disconnected())
            except MetazooError as error:
                time.sleep(follower.broken(error))
        self.refresh()

    def events(self, *, after: str | None = None) -> Iterator[Event]:
        """What has happened so far, oldest first, after the event with the id `after`.

        warnings = [event.data["message"] for event in job.events() if event.type == "warning"]
        """
        while True:
            page = self._driver.call(_job_requests.events(self.id, after), EventPage)
            yield from page.items
            if len(page.items) < _job_requests.PAGE:
                return
            after = page.last

    def cancel(self) -> Self:
        """Ask the job to stop; what it has paid for is kept. Raises `Conflict` when it has ended already.

        job.cancel()
        """
        return self._told(_job_requests.move(self.id, "cancel"))

    def pause(self) -> Self:
        """Let the job rest: requests under way are answered first. Raises `Conflict` when it has ended or is ending.

        job.pause()
        job.resume()  # later; it goes on from its last answer or checkpoint
        """
        return self._told(_job_requests.move(self.id, "pause"))

    def resume(self) -> Self:
        """Go on with a paused job. Raises `Conflict` when it is still pausing or has ended.

        job.resume().wait()
        """
        return self._told(_job_requests.move(self.id, "resume"))

    def retry(self) -> Self:
        """Go on with a failed job: all it paid for and its checkpoints are kept. Raises `Conflict` when it has not failed.

        job.retry().wait()
        """
        return self._told(_job_requests.move(self.id, "retry"))

    def change(self, **changes: Unpack[JobChanges]) -> Self:
        """Name, tag or annotate the job, or raise its budget; what is left out stays.

            job.change(notes="more data", budget={"queries": 20_000})

        A raise counts from when work is next begun: pause a running job, raise, resume. Raises `InvalidRequest` for a
        limit below the one there, `Conflict` for the budget of a job that spends nothing any more.
        """
        return self._told(_job_requests.change(self.id, changes))

    def delete(self) -> None:
        """Delete a job that has ended: record, events, answers, checkpoints; not its meta-model. Raises `Conflict`.

        job.delete()
        """
        self._driver.run(retried(_job_requests.delete(self.id), retries=self._driver.retries))

    def history(self) -> Iterator[MetricPoint]:
        """Training metrics so far, oldest first; the field `metrics` holds the newest.

        losses = [point.values["loss"] for point in job.history() if "loss" in point.values]
        """
        after: str | None = None
        while True:
            page = self._driver.call(_job_requests.metrics(self.id, after), MetricPage)
            yield from page.items
            after = page.last
            if after is None:
                return

    def answers(self) -> Iterator[PaidAnswer]:
        """What was paid for: every chunk of images that an API answered.

        for answer in job.answers():
            job.download_answer(answer.name, f"{answer.name}.safetensors")
        """
        after: str | None = None
        while True:
            page = self._driver.call(_job_requests.answers(self.id, after), AnswerPage)
            yield from page.items
            after = page.next
            if after is None:
                return

    def download_answer(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file: safetensors `indices` and `probabilities`. Returns the path.

        job.download_answer("a0.0", "a0.0.safetensors")
        """
        return self._driver.run(download_file(_job_requests.answer_path(self.id, name), path, self._driver.retries))

    def download_images(self, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first `count` images that the job asks about into a PNG file. Raises `Conflict` before the probe has begun.

        job.download_images("queries.png")
        """
        return self._driver.run(
            download_file(_job_requests.images_path(self.id), path, self._driver.retries, count=count)
        )

    def _told(self, request: Request) -> Self:
        return self._take(self._driver.call(request, jobs.Job))

    def _take(self, told: jobs.Job) -> Self:
        vars(self).update(vars(told))  # past the freeze, which is there for callers
        return self

    def _with(self, driver: Driver) -> Self:
        self._driver = driver
        return self


class AsyncJob(jobs.Job):
    """`Job` on the event loop: the same fields and methods, which are awaited.

    job = await metazoo.jobs.create({"apis": [{"url": url}], "budget": {"queries": 5000}})
    async for event in job.stream():
        print(event.type, event.data)
    print((await job.wait()).meta_model)
    """

    _driver: AsyncDriver = PrivateAttr()

    async def refresh(self) -> Self:
        """Ask how the job stands now; see `Job.refresh`."""
        return await self._told(_job_requests.retrieve(self.id))

    async def wait(self, *, timeout: float | None = None) -> Self:  # noqa: ASYNC109 - as the blocking one
        """Return once the job has succeeded; see `Job.wait`."""
        await self._driver.run(wait(self.id, timeout, self._driver.retries, look=self._take))
        return self

    async def stream(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """What happens to the job, as it happens, until it has ended; see `Job.stream`."""
        follower = Follower(self.id, after, self._driver.retries)
        while not follower.ended:
            try:
                async for message in self._driver.events(follower.connect()):
                    if (event := follower.read(message)) is not None:
                        yield event
                await self._driver.run(follower.disconnected())
            except MetazooError as error:
                await anyio.sleep(follower.broken(error))
        await self.refresh()

    async def events(self, *, after: str | None = None) -> AsyncIterator[Event]:
        """What has happened so far, oldest first; see `Job.events`."""
        while True:
            page = await self._driver.call(_job_requests.events(self.id, after), EventPage)
            for event in page.items:
                yield event
            if len(page.items) < _job_requests.PAGE:
                return
            after = page.last

    async def cancel(self) -> Self:
        """Ask the job to stop; see `Job.cancel`."""
        return await self._told(_job_requests.move(self.id, "cancel"))

    async def pause(self) -> Self:
        """Let the job rest; see `Job.pause`."""
        return await self._told(_job_requests.move(self.id, "pause"))

    async def resume(self) -> Self:
        """Go on with a paused job; see `Job.resume`."""
        return await self._told(_job_requests.move(self.id, "resume"))

    async def retry(self) -> Self:
        """Go on with a failed job; see `Job.retry`."""
        return await self._told(_job_requests.move(self.id, "retry"))

    async def change(self, **changes: Unpack[JobChanges]) -> Self:
        """Name, tag or annotate the job, or raise its budget; see `Job.change`."""
        return await self._told(_job_requests.change(self.id, changes))

    async def delete(self) -> None:
        """Delete a job that has ended; see `Job.delete`."""
        await self._driver.run(retried(_job_requests.delete(self.id), retries=self._driver.retries))

    async def history(self) -> AsyncIterator[MetricPoint]:
        """Training metrics so far, oldest first; see `Job.history`."""
        after: str | None = None
        while True:
            page = await self._driver.call(_job_requests.metrics(self.id, after), MetricPage)
            for point in page.items:
                yield point
            after = page.last
            if after is None:
                return

    async def answers(self) -> AsyncIterator[PaidAnswer]:
        """What was paid for; see `Job.answers`."""
        after: str | None = None
        while True:
            page = await self._driver.call(_job_requests.answers(self.id, after), AnswerPage)
            for answer in page.items:
                yield answer
            after = page.next
            if after is None:
                return

    async def download_answer(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Put one paid answer into a file; see `Job.download_answer`."""
        return await self._driver.run(
            download_file(_job_requests.answer_path(self.id, name), path, self._driver.retries)
        )

    async def download_images(self, path: str | os.PathLike[str], *, count: int = 32) -> Path:
        """Put the first images that the job asks about into a PNG file; see `Job.download_images`."""
        return await self._driver.run(
            download_file(_job_requests.images_path(self.id), path, self._driver.retries, count=count)
        )

    async def _told(self, request: Request) -> Self:
        return self._take(await self._driver.call(request, jobs.Job))

    def _take(self, told: jobs.Job) -> Self:
        vars(self).update(vars(told))  # past the freeze, which is there for callers
        return self

    def _with(self, driver: AsyncDriver) -> Self:
        self._driver = driver
        return self


class JobPage(Record):
    """A page of jobs, newest first; pass `next` as `after` for the following page, None on the last."""

    items: list[Job]
    next: str | None


class AsyncJobPage(Record):
    """`JobPage` on the event loop."""

    items: list[AsyncJob]
    next: str | None
