"""What the zoo's routes and code use when they answer with adapted models: no folder, no keys of a host."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from redis.asyncio import Redis

from api_zoo.engine import Engine
from api_zoo.services import Services
from api_zoo.settings import Settings as ZooSettings
from meta_server.settings import Settings
from meta_server.store import keys
from metering.gate import Gate
from metering.keyring import Keyring
from metering.scripts import Scripts


@asynccontextmanager
async def hosting(settings: Settings, redis: Redis) -> AsyncIterator[Services]:
    """The zoo's services over the server's Redis; limits on requests are those that a zoo's environment sets."""
    limits = ZooSettings(redis_url=settings.redis_url, admin_key=settings.api_key)
    scripts = Scripts(redis)
    gate = Gate(redis, scripts, lease_seconds=limits.answer_seconds + 5)
    engine = Engine(limits.threads)
    try:
        yield Services(
            redis=redis,
            gate=gate,
            keyring=Keyring(redis, scripts, index=keys.ADAPTED_KEYS),
            models={},
            settings=limits,
            computing=anyio.CapacityLimiter(limits.threads),
            engine=engine,
        )
    finally:
        engine.close()
