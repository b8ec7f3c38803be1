"""A store over a real Redis whose time the test sets, and a request to store."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import JobRequest
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering.leases import Lease
from metering.ledger import Chunk
from metering.scripts import Scripts, connect

START = 1_800_000_000_000_000  # microseconds


async def taken(store: JobStore, job_id: str, role: str) -> Lease:
    """A lease that is free."""
    lease = await store.take(job_id, role, "test")
    assert lease is not None
    return lease


def chunk(api: str = "a0", number: int = 0, start: int = 0, stop: int = 10) -> Chunk:
    """Images of an API to be held."""
    return Chunk(api=api, number=number, start=start, stop=stop, digest="d" * 64)


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
