"""What a task works with, passed in whole: stores, queue, the way out, and the word to stop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from meta_server.queue import Queue
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from meta_server.store.learners import Learners
from meta_server.store.probes import Probes
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import LEARN
from meta_server.store.webhooks import Webhooks
from metering.leases import RENEW_EVERY
from metering.scripts import connect, disconnect
from worker.settings import Settings
from worker.tracing import TracedTransport
from worker.transport import Guard, GuardedTransport

POLL_EVERY = 1.0  # seconds between looks at the job's status
GIVE_BACK = 20.0  # seconds for which a lease that cannot be released, because Redis is away, is tried again
TURN = 60.0  # seconds for which an API is asked before others that wait get its place
DRAIN = 30.0  # seconds that a request under way is given to be answered when its job is paused


@dataclass(frozen=True)
class Context:
    """Everything a task uses. Tests replace `transport` by a fake API and `queue` by a list."""

    store: JobStore
    webhooks: Webhooks
    probes: Probes
    learners: Learners
    artifacts: Artifacts
    queue: Queue
    guard: Guard
    transport: Callable[[], httpx.AsyncBaseTransport]
    data: Path | None = None
    patience: float = 120.0  # seconds for which a failing API is tried again
    timeout: float = 60.0  # seconds in which an API must have answered in full
    learner_wait: float = 30.0  # seconds that a job waits to hear of any learner before it spends
    holder: str = "worker"  # who takes the leases, for people who look
    stopping: Callable[[], bool] = lambda: False  # the worker is asked to shut down
    poll_every: float = POLL_EVERY
    drain: float = DRAIN
    give_back: float = GIVE_BACK
    turn: float = TURN
    checkpoint_every: float = 30.0  # seconds between two states of a training that are kept
    renew_every: float = RENEW_EVERY

    async def begin(self, job_id: str) -> None:
        """Have everything done that is due of a queued job. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        job = await self.store.load(job_id)
        await asyncio.to_thread(self.queue.send_all, job_id, job.due(), tenant=job.tenant)

    async def advance(self, job_id: str) -> None:
        """What follows from where the job stands: training, its failure, or its end if it was cancelled."""
        job = await self.store.load(job_id)
        due = job.due()
        if not due:
            await self.store.moves.close(job_id)
        elif error := job.too_few():
            await self.store.moves.fail(job_id, error)
        elif due == [LEARN] or (LEARN in due and await self.store.first_sent(job_id, LEARN)):
            await asyncio.to_thread(self.queue.learn, job_id, tenant=job.tenant)


@asynccontextmanager
async def open_context(
    settings: Settings, queue: Queue, *, holder: str, stopping: Callable[[], bool]
) -> AsyncIterator[Context]:
    """The context of all tasks of a process, in production: they share its connections, and go to Redis together."""
    redis = connect(settings.redis_url.get_secret_value())
    guard = Guard(settings.allow)
    secrets = Secrets(settings.secret_key.get_secret_value())
    tls = httpx.create_ssl_context(trust_env=False)  # takes tens of milliseconds and most of a megabyte
    try:
        yield Context(
            store=JobStore(redis, secrets=secrets),
            webhooks=Webhooks(redis),
            probes=Probes(redis, secrets=secrets),
            learners=Learners(redis),
            artifacts=Artifacts(settings.artifacts),
            queue=queue,
            guard=guard,
            transport=lambda: TracedTransport(GuardedTransport(guard, tls=tls)),
            data=settings.data,
            patience=settings.patience,
            timeout=settings.timeout,
            checkpoint_every=settings.checkpoint_every,
            holder=holder,
            stopping=stopping,
        )
    finally:
        await disconnect(redis)
