"""Jobs: start them, find them. What can be done with one is in `client.job`."""

from collections.abc import Mapping
from typing import Any

from client import _job_requests
from client._flow import AsyncDriver, Driver
from client.job import AsyncJob, AsyncJobPage, Job, JobPage
from contracts.estimates import Estimate
from contracts.jobs import JobRequest, JobStatus


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
        return self._driver.call(_job_requests.create(request, idempotency_key), Job)._with(self._driver)

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
        """A job by its id, as it is now. Raises `NotFound`.

        metazoo.jobs.retrieve(job_id).cancel()
        """
        return self._driver.call(_job_requests.retrieve(job_id), Job)._with(self._driver)

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

            for job in metazoo.jobs.list(status="running").items:
                print(job.id, job.phase)

        `status`, `tag` and `name` (a part of it) filter; a filtered page may be short although there are more.
        """
        page = self._driver.call(_job_requests.page(after, limit, status, tag, name), JobPage)
        for job in page.items:
            job._with(self._driver)
        return page


class AsyncJobs:
    """`AsyncMetazoo.jobs`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def create(self, request: JobRequest | Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncJob:
        """Start a job; see `Jobs.create`."""
        job = await self._driver.call(_job_requests.create(request, idempotency_key), AsyncJob)
        return job._with(self._driver)

    async def estimate(
        self, request: JobRequest | Mapping[str, Any], *, probe: bool = False, probe_images: int = 8
    ) -> Estimate:
        """What a job would come to; see `Jobs.estimate`."""
        return await self._driver.call(_job_requests.estimate(request, probe, probe_images), Estimate)

    async def retrieve(self, job_id: str) -> AsyncJob:
        """A job by its id, as it is now. Raises `NotFound`."""
        job = await self._driver.call(_job_requests.retrieve(job_id), AsyncJob)
        return job._with(self._driver)

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | str | None = None,
        tag: str | None = None,
        name: str | None = None,
    ) -> AsyncJobPage:
        """A page of jobs, newest first; see `Jobs.list`."""
        page = await self._driver.call(_job_requests.page(after, limit, status, tag, name), AsyncJobPage)
        for job in page.items:
            job._with(self._driver)
        return page
