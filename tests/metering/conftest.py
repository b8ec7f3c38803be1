"""Fixtures of this folder."""

import socket
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from metering.scripts import connect


@pytest.fixture
async def unused_redis(anyio_backend: str) -> AsyncIterator[Redis]:
    """A client of a port where nobody answers."""
    with socket.socket() as taken:  # bound, never listening
        taken.bind(("127.0.0.1", 0))
        redis = connect(f"redis://127.0.0.1:{taken.getsockname()[1]}/0", timeout=1)
        yield redis
        await redis.aclose()
