"""Fixtures of every folder: a real Redis, and the data sets where they are present."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server, one for the session, durable as in production."""
    from metazoo import redis_server

    server = redis_server.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of a real, empty server. Tests that use it are marked `redis`."""
    import redis

    with redis.Redis.from_url(redis_server) as connection:
        connection.flushall()
        connection.script_flush()
    return redis_server


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where the public data sets lie. Tests that use it are marked `data`."""
    folder = Path(os.environ.get("METAZOO_DATA", ROOT.parent / "shared" / "data")).absolute()
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set METAZOO_DATA")
    return folder
