"""One connection for many scripts: answers find who asked, whatever happens to others, to Redis or to the connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from contracts.zoo import KeyRequest
from metering.keyring import Keyring
from metering.scripts import Scripts, StoreUnavailable, connect, disconnect

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Redis]:
    made = connect(redis_url)
    yield made
    await disconnect(made)


async def top_up(scripts: Scripts, images: int) -> bytes:
    return await scripts.run("key_top_up", keys=["test:key", "test:audit"], args=[images, 10**9])


async def test_many_at_once_each_get_their_own_answer_over_one_connection(redis: Redis) -> None:
    scripts = [Scripts(redis), Scripts(redis)]  # two users of one client
    made = await asyncio.gather(*(Keyring(redis, scripts[n % 2]).create(KeyRequest(name=f"{n}")) for n in range(40)))
    assert [key.name for key in made] == [str(n) for n in range(40)]
    before = (await redis.info("stats"))["total_connections_received"]
    await asyncio.gather(*(top_up(scripts[n % 2], 1) for n in range(100)))
    assert (await redis.info("stats"))["total_connections_received"] == before


async def test_a_script_that_redis_forgot_is_sent_again(redis: Redis) -> None:
    scripts = Scripts(redis)
    assert await top_up(scripts, 1) == b"unknown"
    await redis.script_flush()
    assert await asyncio.gather(*(top_up(scripts, 1) for _ in range(5))) == [b"unknown"] * 5


async def test_who_gives_up_mixes_no_answers(redis: Redis) -> None:
    await redis.hset("test:key", mapping={"budget": 1, "created": 1})
    scripts = Scripts(redis)
    tasks = [asyncio.create_task(top_up(scripts, 1 if n % 2 else 10**9)) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    for n, answer in enumerate(told):
        assert isinstance(answer, asyncio.CancelledError) or answer == (b"topped" if n % 2 else b"large")


async def test_a_connection_that_is_cut_fails_what_was_under_way_and_nothing_after(redis: Redis) -> None:
    scripts = Scripts(redis)
    await top_up(scripts, 1)
    waiting = asyncio.create_task(scripts.run("gate_admit", keys=["nothing"] * 4, args=[1, 1, "m", 1, "d", "c", 0, ""]))
    other = connect_like(redis)
    await other.client_kill_filter(_type="normal", skipme=True)
    told = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert isinstance(told, StoreUnavailable) or told == [[b"unknown"]]  # it may have been answered before
    with anyio.fail_after(30):
        while True:  # the end of the connection has to arrive
            try:
                assert await top_up(scripts, 1) == b"unknown"
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
    await other.aclose()


async def test_a_redis_that_is_silent_is_not_waited_for(redis_url: str, anyio_backend: str) -> None:
    impatient, patient = connect(redis_url, timeout=0.2), connect(redis_url)
    scripts = Scripts(impatient)
    await top_up(scripts, 1)
    await patient.client_pause(1500)  # milliseconds
    told = await asyncio.gather(*(top_up(scripts, 1) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in told] == [StoreUnavailable] * 3
    await patient.client_unpause()
    assert await top_up(scripts, 1) == b"unknown"
    await disconnect(impatient)
    await disconnect(patient)


async def test_disconnecting_waits_for_what_is_under_way(redis_url: str, anyio_backend: str) -> None:
    redis = connect(redis_url)
    asked = [asyncio.create_task(top_up(Scripts(redis), 1)) for _ in range(3)]
    await asyncio.sleep(0)
    await disconnect(redis)
    assert await asyncio.gather(*asked) == [b"unknown"] * 3


@pytest.fixture
async def changed(redis_url: str, anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """A client whose connections look otherwise inside than those that are known."""
    made = connect(redis_url, timeout=0.3)
    give = made.connection_pool.make_connection

    def other() -> Any:
        connection = give()

        class Other(type(connection)):
            """Keeps its streams elsewhere."""

            _writer = property(
                lambda self: _Streams(self.__dict__.get("writer")),
                lambda self, writer: self.__dict__.update(writer=writer),
            )

        connection.__class__ = Other
        return connection

    monkeypatch.setattr(made.connection_pool, "make_connection", other)
    yield made
    await disconnect(made)


class _Streams:
    """A writer without a public way to its transport."""

    def __init__(self, writer: Any) -> None:
        self._inner = writer

    def __bool__(self) -> bool:
        return self._inner is not None

    def __getattr__(self, name: str) -> Any:
        if name == "transport":
            raise AttributeError(name)
        return getattr(self._inner, name)


async def test_a_redis_py_that_gives_no_connection_away_serves_the_ordinary_way(
    changed: Redis, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    scripts = [Scripts(changed), Scripts(changed)]
    made = await asyncio.gather(*(Keyring(changed, scripts[n % 2]).create(KeyRequest(name=f"{n}")) for n in range(40)))
    assert [key.name for key in made] == [str(n) for n in range(40)]
    assert caplog.text.count("gives no connection away") == 1
    await redis.script_flush()
    assert await asyncio.gather(*(top_up(scripts[0], 1) for _ in range(5))) == [b"unknown"] * 5
    given_up = [asyncio.create_task(top_up(scripts[0], 1)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in given_up[::3]:
        task.cancel()
    told = await asyncio.gather(*given_up, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) or answer == b"unknown" for answer in told)
    await redis.client_pause(1500)  # milliseconds
    silent = await asyncio.gather(*(top_up(scripts[0], 1) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in silent] == [StoreUnavailable] * 3
    await redis.client_unpause()
    last = [asyncio.create_task(top_up(scripts[0], 1)) for _ in range(3)]
    await asyncio.sleep(0)
    await disconnect(changed)
    assert await asyncio.gather(*last) == [b"unknown"] * 3


def connect_like(redis: Redis) -> Redis:
    """Another client of the same server."""
    told = redis.connection_pool.connection_kwargs
    return Redis(host=told["host"], port=told["port"], password=told.get("password"), protocol=2)
