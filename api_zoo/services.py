"""Everything a request may use, opened once when the zoo starts and closed when it stops."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread
from redis.asyncio import Redis

from api_zoo.folder import BadZoo, open_folder
from api_zoo.inference import Model
from api_zoo.settings import Settings
from metering.gate import Gate
from metering.keyring import Keyring
from metering.scripts import Scripts, connect


@dataclass(frozen=True, slots=True)
class Services:
    """What routes are given."""

    redis: Redis
    gate: Gate
    keyring: Keyring
    models: Mapping[str, Model]
    settings: Settings
    computing: anyio.CapacityLimiter


@asynccontextmanager
async def open_services(
    settings: Settings, *, redis: Redis | None, registry: Mapping[str, Model] | None
) -> AsyncIterator[Services]:
    """The services by `settings`. A Redis that is passed in is used, and closed by whoever passed it.

    Raises `BadZoo` when the folder of the settings cannot be hosted.
    """
    async with AsyncExitStack() as opened:
        if registry is None:
            if settings.folder is None:
                raise BadZoo("no zoo folder: set METAZOO_ZOO_FOLDER, or `metazoo zoo serve FOLDER`")
            registry = await to_thread.run_sync(open_folder, settings.folder)
        if redis is None:
            redis = connect(settings.redis_url.get_secret_value())
            opened.push_async_callback(redis.aclose)
        scripts = Scripts(redis)
        gate = Gate(redis, scripts, lease_seconds=settings.answer_seconds + 5)
        computing = anyio.CapacityLimiter(settings.threads)
        yield Services(redis, gate, Keyring(redis, scripts), registry, settings, computing)
