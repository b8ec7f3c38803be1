"""How every task runs: one role of one job, under its lease, watched, its failures made the job's error."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from contracts.jobs import JobStatus
from contracts.problems import ProblemError
from meta_server.store.stored_job import StoredJob
from metering.leases import AttemptsExhausted, Lease, LeaseLost
from metering.ledger import QuotaReached
from metering.scripts import StoreUnavailable
from worker.context import Context
from worker.failures import JobFault, job_error, reason_to_pause
from worker.watch import Stopped, Watch, Why, watching

log = structlog.get_logger()

Work = Callable[[Context, StoredJob, Watch], Awaitable[None]]


async def work_on(context: Context, job_id: str, role: str, work: Work) -> None:
    """Do the role's part of the job if it is due and nobody else does it, then see to what follows.

    Raises `Stopped` on shutdown and when the lease is lost, `LeaseLost`, `StoreUnavailable`; any other failure ends the job.
    """
    job = await context.store.load(job_id)
    if role in job.due():
        try:
            lease = await context.store.take(job_id, role, context.holder)
        except AttemptsExhausted as error:
            await context.store.moves.fail(job_id, job_error(error))
        else:
            if lease is None:
                return  # whoever holds it sees to what follows
            if await _under(lease, context, job, role, work):
                return  # whoever it was handed to does
    await context.advance(job_id)


async def _under(lease: Lease, context: Context, job: StoredJob, role: str, work: Work) -> bool:
    """Work under the lease; whether the rest of the work was handed on."""
    job_id = job.id
    try:
        async with watching(context, job_id, lease) as watch:
            if await context.store.work.begin(job_id, lease) != JobStatus.RUNNING:
                return False
            job = await context.store.load(job_id)  # as the last holder of the lease left it
            if role not in job.due():
                return False
            try:
                await work(context, job, watch)
            except (Stopped, LeaseLost, StoreUnavailable):
                raise
            except QuotaReached as reached:
                await context.store.moves.pause(job_id, reason=str(reached), lease=lease)
                raise Stopped(Why.PAUSED) from None
            except Exception as error:
                if reason := reason_to_pause(error):
                    log.warning("job_pauses", reason=reason)
                    with suppress(ProblemError):  # it is ending, or has ended
                        await context.store.moves.pause(job_id, reason=reason, lease=lease)
                    raise Stopped(Why.PAUSED) from error
                if isinstance(error, JobFault):
                    log.info("job_failed", code=error.error.code)
                else:
                    log.exception("task_failed")
                await context.store.moves.fail(job_id, job_error(error), lease=lease)
    except Stopped as stopped:
        if stopped.why is Why.TURN:
            await asyncio.to_thread(context.queue.send, job_id, role, tenant=job.tenant)  # behind those that wait
            return True
        if stopped.why is Why.ELSEWHERE:
            await asyncio.to_thread(context.queue.learn, job_id, tenant=job.tenant, on_gpu=True)
            return True
        if stopped.why not in (Why.ENDED, Why.PAUSED):
            raise
    return False
