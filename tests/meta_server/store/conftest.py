"""A store over a real Redis whose time the test sets, and a request to store."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import JobRequest
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering.scripts import Scripts, connect

START = 1_800_000_000_000_000  # microseconds


class Clock:
    """The scripts' time, which only the test moves."""

    key = "test:clock"

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def forward(self, seconds: float) -> None:
        await self._redis.incrby(self.key, round(seconds * 1_000_000))


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    await client.set(Clock.key, START)
    yield client
    await client.aclose()


@pytest.fixture
async def clock(redis: Redis) -> Clock:
    return Clock(redis)


@pytest.fixture
async def store(redis: Redis) -> JobStore:
    return JobStore(redis, secrets=Secrets(Secrets.generate()), scripts=Scripts(redis, clock_key=Clock.key))


@pytest.fixture
def request_of() -> Any:
    """A valid request with so many APIs, and changes to it."""

    def make(count: int = 3, **changes: Any) -> JobRequest:
        listed = [{"url": f"http://api{n}.test/v2/models/m", "api_key": f"secret-{n}"} for n in range(count)]
        return JobRequest.model_validate({"apis": listed, "budget": {"queries": 100 * count}, **changes})

    return make
