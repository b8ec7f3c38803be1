"""The Celery tasks: take an id, do that role's work, hand it back when the worker stops. Messages carry ids alone."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from celery import Celery
from celery.exceptions import Reject
from kombu.exceptions import OperationalError

from contracts.problems import ProblemError
from meta_server.queue import ACQUIRE_TASK, BEGIN_TASK, LEARN_TASK, NOTIFY_TASK, PROBE_TASK, TRACE, TRACES, Queue, Trace
from meta_server.store.holders import holder
from meta_server.store.stored_job import LEARN, acquire_role
from metering.leases import LeaseLost
from metering.scripts import StoreUnavailable
from worker import metrics, tracing
from worker.acquire import acquire
from worker.context import Context, open_context
from worker.estimating import probe
from worker.loop import Loop
from worker.role import Work, work_on
from worker.settings import Settings
from worker.stopping import Stopping
from worker.watch import Stopped, Why
from worker.webhooks import notify

AWAY_SECONDS = 1.0  # before a task that Redis failed is put back: if that is possible, Redis is there again

log = structlog.get_logger()


@dataclass
class _Timed:
    outcome: str = "done"


@contextmanager
def _timed(role: str) -> Iterator[_Timed]:
    """Counts a task's seconds under its kind of role, not its API: APIs are many."""
    started, timed = time.perf_counter(), _Timed()
    try:
        yield timed
    finally:
        kind = role.partition(":")[0]
        metrics.tasks.labels(kind, timed.outcome).observe(time.perf_counter() - started)


@contextmanager
def _told(**names: str) -> Iterator[None]:
    """Lines of the log tell these, and the tenant once it is known and bound."""
    with structlog.contextvars.bound_contextvars(**names):
        try:
            yield
        finally:
            structlog.contextvars.unbind_contextvars("tenant")


def register(app: Celery, settings: Settings, queue: Queue, stopping: Stopping) -> Callable[[], None]:
    """Add the tasks to the app, and to no other of this process. Call what is returned to close what they hold open."""

    loop = Loop()
    shared: Context | None = None

    async def open_shared() -> Context:
        nonlocal shared
        if shared is None:
            opening = open_context(settings, queue, holder=holder(), stopping=stopping.is_set)
            shared = await loop.kept.enter_async_context(opening)
        return shared

    async def tenant_of(job_id: str) -> str:
        return (await (await open_shared()).store.load(job_id)).tenant

    def run(request: Any, job_id: str, role: str, work: Work) -> None:
        named = _told(job_id=job_id, role=role)
        with named, tracing.task(role.partition(":")[0], getattr(request, TRACE, None)), _timed(role) as timed:
            try:
                with stopping.at_work():
                    structlog.contextvars.bind_contextvars(tenant=loop.run(tenant_of(job_id)))
                    loop.run(_in_context(job_id, role, work))
            except LeaseLost:
                timed.outcome = "lease_lost"
                log.warning("lease_lost")
            except Stopped as stopped:
                timed.outcome = stopped.why.value
                log.info("stopped", why=stopped.why)
                if stopped.why is Why.SHUTDOWN:
                    raise Reject(requeue=True) from None
            except (StoreUnavailable, OperationalError) as error:
                timed.outcome = "redis_away"
                log.warning("redis_away", cause=str(error))
                time.sleep(AWAY_SECONDS)
                raise Reject(requeue=True) from None

    async def _in_context(job_id: str, role: str, work: Work) -> None:
        await work_on(await open_shared(), job_id, role, work)

    async def _begin(job_ids: Sequence[str], traces: Mapping[str, Trace]) -> None:
        context = await open_shared()
        for job_id in job_ids:
            try:
                with structlog.contextvars.bound_contextvars(job_id=job_id), tracing.task("begin", traces.get(job_id)):
                    await context.begin(job_id)
            except (ProblemError, StoreUnavailable, OperationalError) as error:
                # it was deleted, or the reaper sends what is due
                log.warning("not_begun", job_id=job_id, cause=str(error))

    @app.task(name=BEGIN_TASK, shared=False, bind=True)
    def begin(self: Any, job_ids: list[str]) -> None:
        loop.run(_begin(job_ids, getattr(self.request, TRACES, None) or {}))

    @app.task(name=ACQUIRE_TASK, shared=False, bind=True)
    def acquire_api(self: Any, job_id: str, api_id: str) -> None:
        run(self.request, job_id, acquire_role(api_id), partial(acquire, api_id=api_id))

    async def _notify(job_id: str) -> None:
        await notify(await open_shared(), job_id)

    @app.task(name=NOTIFY_TASK, shared=False, bind=True)
    def tell_webhook(self: Any, job_id: str) -> None:
        with _told(job_id=job_id), tracing.task("notify", getattr(self.request, TRACE, None)):
            try:
                structlog.contextvars.bind_contextvars(tenant=loop.run(tenant_of(job_id)))
                loop.run(_notify(job_id))
            except (ProblemError, LeaseLost, StoreUnavailable) as error:
                log.warning("not_notified", cause=str(error))  # the reaper sends it again

    async def _probe(probe_id: str) -> None:
        await probe(await open_shared(), probe_id)

    @app.task(name=PROBE_TASK, shared=False, bind=True)
    def probe_apis(self: Any, probe_id: str) -> None:
        with _told(probe_id=probe_id), tracing.task("probe", getattr(self.request, TRACE, None)):
            try:
                with stopping.at_work():
                    loop.run(_probe(probe_id))
            except StoreUnavailable as error:
                log.warning("not_probed", cause=str(error))  # who waits for it says what may have been charged

    @app.task(name=LEARN_TASK, shared=False, bind=True)
    def learn(self: Any, job_id: str) -> None:
        from worker.learn import learn as work  # torch is for learners alone

        run(self.request, job_id, LEARN, work)

    return loop.close
