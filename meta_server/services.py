"""Everything a request may use, opened once when the server starts and closed when it stops."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from api_zoo.services import Services as Hosting
from meta_server.background import running
from meta_server.beginnings import Beginnings
from meta_server.hub import Hub
from meta_server.orphans import OrphanSweeper
from meta_server.queue import Queue
from meta_server.reaper import Reaper
from meta_server.serving import Serving
from meta_server.serving.hosting import hosting
from meta_server.serving.sweeper import Sweeper
from meta_server.settings import Settings
from meta_server.store.access import AccessStore
from meta_server.store.adapted_models import AdaptedModelStore
from meta_server.store.artifacts import Artifacts
from meta_server.store.image_sets import ImageSetStore
from meta_server.store.jobs import JobStore
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.probes import Probes
from meta_server.store.secrets import Secrets
from meta_server.zoo_admin import ZooAdmin, zoo_admin
from metering.policy import policy_of
from metering.scripts import Scripts, StoreUnavailable, connect, disconnect

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Services:
    """What routes are given."""

    redis: Redis
    access: AccessStore
    hub: Hub
    jobs: JobStore
    probes: Probes
    meta_models: MetaModelStore
    adapted_models: AdaptedModelStore
    image_sets: ImageSetStore
    artifacts: Artifacts
    queue: Queue
    beginnings: Beginnings
    serving: Serving
    hosting: Hosting  # what the zoo's routes use to answer with adapted models
    zoo: ZooAdmin | None  # the operator's own, where the settings name one


async def _tell_of_policy(redis: Redis) -> None:
    """Log what of Redis's settings breaks the promise; `metazoo doctor` tells the same."""
    with suppress(StoreUnavailable):
        for fault in (await policy_of(redis)).faults:
            log.warning("redis_policy", fault=fault)


@asynccontextmanager
async def open_services(settings: Settings, *, redis: Redis | None, queue: Queue | None) -> AsyncIterator[Services]:
    """The services by `settings`, with the reaper running. What is passed in is used, and closed by whoever passed it."""
    url = settings.redis_url.get_secret_value()
    async with AsyncExitStack() as opened:
        if redis is None:
            redis = connect(url)
            opened.push_async_callback(disconnect, redis)
        if queue is None:
            queue = Queue(url)
            opened.callback(queue.close)
        secrets = Secrets(settings.secret_key.get_secret_value())
        jobs = JobStore(redis, secrets=secrets)
        meta_models = MetaModelStore(redis)
        artifacts = Artifacts(settings.artifacts)
        adapted_models = AdaptedModelStore(redis, Scripts(redis), images_per_second=settings.adapted_images_per_second)
        serving = Serving(meta_models, adapted_models, artifacts, memory=settings.model_memory, data=settings.data)
        hosted = await opened.enter_async_context(hosting(settings, redis))
        zoo = await opened.enter_async_context(zoo_admin(settings))
        hub = Hub(redis, jobs)
        beginnings = Beginnings(queue)
        opened.push_async_callback(beginnings.close)
        await opened.enter_async_context(
            running(
                _tell_of_policy(redis),
                hub.run(),
                beginnings.run(),
                Reaper(jobs, queue, redis).run(),
                OrphanSweeper(redis, artifacts).run(),
                Sweeper(adapted_models, artifacts).run(),
            )
        )
        yield Services(
            redis,
            AccessStore(redis),
            hub,
            jobs,
            Probes(redis, secrets=secrets),
            meta_models,
            adapted_models,
            ImageSetStore(redis),
            artifacts,
            queue,
            beginnings,
            serving,
            hosted,
            zoo,
        )
