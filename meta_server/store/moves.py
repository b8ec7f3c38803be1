"""What moves a job from one state to another; which moves there are is in `contracts.jobs.MOVES`."""

from contextlib import suppress
from typing import Any

from redis.asyncio import Redis

from contracts.jobs import Job, JobError, JobStatus, place_of
from contracts.problems import ProblemError
from meta_server.planning import started
from meta_server.store import keys
from meta_server.store.job_reader import JobReader
from meta_server.store.stored_job import kept
from metering.leases import Lease
from metering.records import MoveRefused, RecordKeys, Records, StillAtWork, TooManyOpen
from metering.scripts import store_errors


class Moves:
    """The moves of jobs that people, workers and the reaper ask for, over their `records`."""

    def __init__(self, redis: Redis, records: Records, jobs: JobReader) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._records = records
        self._jobs = jobs

    async def cancel(self, job_id: str) -> Job:
        """A job that nobody works on is cancelled at once, another when its workers have stopped.

        Raises `ProblemError` (`not-found`; `conflict` when it has ended), `StoreUnavailable`.
        """
        places = keys.records(job_id)
        try:
            await self._either(places, JobStatus.CANCELLED, JobStatus.QUEUED, JobStatus.CANCELLING)
        except MoveRefused as refused:
            if refused.status and refused.status != JobStatus.CANCELLING:
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to cancel") from None
        await self.close(job_id)
        return await self._jobs.get(job_id)

    async def pause(self, job_id: str, *, reason: str | None = None, lease: Lease | None = None) -> Job:
        """Let the job rest until it is resumed: a queued one at once, a running one when its workers have stopped.

        `reason` is shown to people. A worker passes its `lease`; it is then told to stop as all others are. A job that rests
        or is about to stays as it is. Raises `ProblemError` (`not-found`; `conflict` when it is ending or has ended),
        `LeaseLost`, `StoreUnavailable`.
        """
        places = keys.records(job_id)
        try:
            await self._either(
                places, JobStatus.PAUSED, JobStatus.QUEUED, JobStatus.PAUSING, reason=reason, lease=lease
            )
        except MoveRefused as refused:
            if refused.status and refused.status not in (JobStatus.PAUSING, JobStatus.PAUSED):
                raise ProblemError("conflict", f"the job is {refused.status}: there is nothing to pause") from None
        await self.close(job_id)
        return await self._jobs.get(job_id)

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again; one that is queued or runs stays as it is.

        Raises `ProblemError` (`not-found`; `conflict` when it is still pausing, is ending or has ended), `StoreUnavailable`.
        """
        try:
            await self._records.move(keys.records(job_id), JobStatus.QUEUED, only_from=[JobStatus.PAUSED])
        except MoveRefused as refused:
            if refused.status == JobStatus.PAUSING:
                raise ProblemError("conflict", "the job is still pausing: resume it once it is paused") from None
            if refused.status and refused.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
                raise ProblemError("conflict", f"the job is {refused.status}: only a paused job resumes") from None
        else:
            await self._forget_sent(job_id)
        return await self._jobs.get(job_id)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed job again, with all it paid for and its checkpoints; APIs that were dropped are asked again, but
        those that another stands in for.

        Raises `ProblemError` (`not-found`; `conflict` when it has not failed, its workers are still stopping, or its tenant
        has as many open jobs as it may), `StoreUnavailable`.
        """
        stored = await self._jobs.load(job_id)
        tenant = await self._jobs.tenant(job_id)
        anew = started(stored.request, stored.stand_ins())
        dropped = {api: anew[place_of(api)] for api in stored.finished("dropped")}
        try:
            await self._records.retry(
                keys.records(job_id),
                set_back={api: kept(progress) for api, progress in dropped.items() if progress.state == "waiting"},
                quota=keys.tenant(tenant),
            )
        except TooManyOpen as error:
            raise too_many(tenant, error) from None
        except MoveRefused as refused:
            raise ProblemError("conflict", f"the job is {refused.status}: only a failed job is retried") from None
        except StillAtWork:
            raise ProblemError("conflict", "its workers are still stopping: try again in a minute") from None
        await self._forget_sent(job_id)
        return await self._jobs.get(job_id)

    async def fail(self, job_id: str, error: JobError, *, lease: Lease | None = None) -> None:
        """End the job with `error`; one that has ended stays as it is. Raises `LeaseLost`, `StoreUnavailable`."""
        with suppress(MoveRefused):
            await self._records.move(
                keys.records(job_id),
                JobStatus.FAILED,
                lease=lease,
                fields={"error": error.model_dump_json()},
                reason=error.code,
            )

    async def close(self, job_id: str) -> bool:
        """Once nobody works on a job: pause it if it was pausing; if it is ending or has ended, settle its open holds, and end
        it if it was cancelling. Whether there is nothing more to do for it. Raises `StoreUnavailable`.
        """
        with store_errors():
            reason = await self._redis.hget(keys.job(job_id, "record"), "reason")
        with suppress(MoveRefused, StillAtWork):  # it is not pausing, or somebody still works on it
            await self._records.move(
                keys.records(job_id),
                JobStatus.PAUSED,
                only_from=[JobStatus.PAUSING],
                reason=reason.decode() or None if reason else None,
                idle=True,
            )
        if await self._jobs.ledger(job_id).abandon() is None:
            return False
        with suppress(MoveRefused):  # it had ended before
            await self._records.move(keys.records(job_id), JobStatus.CANCELLED, only_from=[JobStatus.CANCELLING])
        return True

    async def _either(
        self, places: RecordKeys, at_once: JobStatus, resting: JobStatus, otherwise: JobStatus, **how: Any
    ) -> None:
        """Move from `resting` to `at_once`, or else to `otherwise`. Raises `MoveRefused`, and what moves raise."""
        try:
            await self._records.move(places, at_once, only_from=[resting], **how)
        except MoveRefused:
            await self._records.move(places, otherwise, **how)

    async def _forget_sent(self, job_id: str) -> None:
        """What the reaper noted of messages sent: they belong to the time before the job was queued again."""
        with store_errors():
            await self._redis.delete(keys.job(job_id, "sent"))
            if (await self._jobs.load(job_id)).request.webhook is not None:
                await self._redis.sadd(keys.WEBHOOKS, job_id)  # it has news again


def too_many(tenant: str, error: TooManyOpen) -> ProblemError:
    """What is answered to a tenant that has as many open jobs as it may."""
    detail = f"{error.open} jobs of the tenant {tenant} have not ended, and it may have no more: end one first"
    return ProblemError("conflict", detail)
