"""Many followers over one connection: each sees every event of its job once and in order, whenever it joins."""

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from redis.asyncio import Redis

from contracts.jobs import JobError, JobRequest
from contracts.problems import URN, ProblemError
from meta_server import hub
from meta_server.app import create_app
from meta_server.hub import Hub
from meta_server.services import Services
from meta_server.store import events
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from metering.leases import Lease
from metering.scripts import connect
from metering.tasks import end

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

KEY = "server-key-of-the-tests"


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis, secrets=Secrets(Secrets.generate()))


@asynccontextmanager
async def running(redis: Redis, store: JobStore) -> AsyncIterator[Hub]:
    opened = Hub(redis, store)
    task = asyncio.ensure_future(opened.run())
    try:
        yield opened
    finally:
        await end(task)


async def begun(store: JobStore, request_body: dict[str, Any]) -> tuple[str, Lease]:
    job, _ = await store.create(JobRequest.model_validate(request_body))
    lease = await store.take(job.id, "learn", "test")
    assert lease is not None
    await store.work.begin(job.id, lease)
    return job.id, lease


async def test_every_follower_sees_every_event_once_and_in_order(
    redis: Redis, store: JobStore, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also who joins late, resumes in the middle, or is so slow that it falls behind."""
    monkeypatch.setattr(hub, "BACKLOG", 5)
    monkeypatch.setattr(hub, "PAGE", 7)
    rng = random.Random(0)
    made = [await begun(store, request_body) for _ in range(4)]

    async def write(job_id: str, lease: Lease) -> None:
        for number in range(60):
            await store.work.warn(job_id, lease, str(number))
            if rng.random() < 0.2:
                await asyncio.sleep(0)
        await store.moves.pause(job_id, lease=lease)
        await store.leases.release(lease)
        await store.moves.cancel(job_id)

    async def follow(one: Hub, job_id: str) -> tuple[str, str | None, list[str]]:
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        page = (await store.events.page(job_id, limit=rng.randrange(1, 30))).items
        after = page[-1].id if page and rng.random() < 0.5 else None
        seen = []
        async for event in one.follow(job_id, after=after):
            if event is not None:
                seen.append(event.id)
            if rng.random() < 0.3:
                await asyncio.sleep(0.001)
        return job_id, after, seen

    async with running(redis, store) as one:
        following = [asyncio.ensure_future(follow(one, made[at % 4][0])) for at in range(24)]
        await asyncio.gather(*(write(*each) for each in made))
        done = await asyncio.wait_for(asyncio.gather(*following), 30)
        assert one._followers == one._read == {}
    for job_id, after, seen in done:
        everything = [event.id for event in await events.read(redis, job_id, after=after, limit=1000)]
        assert seen == everything


async def test_many_callers_at_once_take_turns(redis: Redis) -> None:
    assert all(await asyncio.gather(*(redis.ping() for _ in range(300))))


async def test_silence_is_broken(
    redis: Redis, store: JobStore, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HEARTBEAT", 0.05)
    job_id, _ = await begun(store, request_body)
    async with running(redis, store) as one:
        following = one.follow(job_id)
        assert [event and event.type async for event in take(following, 4)] == ["status", "status", None, None]


async def test_following_ends_with_the_last_status_and_goes_on_over_a_retry(
    redis: Redis, store: JobStore, request_body: Any
) -> None:
    job_id, lease = await begun(store, request_body)
    async with running(redis, store) as one:
        following = one.follow(job_id)
        assert [event.data["status"] async for event in take(following, 2)] == ["queued", "running"]
        await store.leases.release(lease)
        await store.moves.fail(job_id, JobError(code="c", message="m"))
        await store.moves.retry(job_id)
        assert [event.data["status"] async for event in take(following, 2)] == ["failed", "queued"]
        await store.moves.cancel(job_id)
        assert [event.data["status"] async for event in following if event is not None] == ["cancelled"]
        last = (await store.events.page(job_id)).last
        assert [event async for event in one.follow(job_id, after=last)] == []
        with pytest.raises(ProblemError):
            await anext(one.follow("job_x"))


async def take(events: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(events)


async def test_followers_are_told_when_redis_goes_away(
    redis: Redis, store: JobStore, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metering.scripts import StoreUnavailable

    job_id, _ = await begun(store, request_body)
    async with running(redis, store) as one:
        following = one.follow(job_id)
        await anext(following)
        await anext(following)

        async def lost(*_: Any, **__: Any) -> None:
            raise ConnectionError("gone")

        monkeypatch.setattr(redis, "xread", lost)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(anext(following), 5)


async def test_what_was_trimmed_is_told_with_the_first_event_held(
    http: httpx.AsyncClient, services: Services, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EVENTS_KEPT", 10)
    job_id, lease = await begun(services.jobs, request_body)
    for number in range(20):
        await services.jobs.work.warn(job_id, lease, str(number))
    ids = [event.id for event in (await services.jobs.events.page(job_id)).items]
    assert await services.jobs.events.trim(job_id) == len(ids) - 10
    assert await services.jobs.events.trim(job_id) == 0
    for headers in ({}, {"Accept": "text/event-stream"}):
        path = f"/v1/jobs/{job_id}/events"
        lost = await http.get(path, params={"after": ids[3]}, headers=headers)
        assert (lost.status_code, lost.json()["type"], lost.json()["first"]) == (410, f"{URN}gone", ids[-10])
    # the last one deleted is no loss to who has it
    kept = (await http.get(path, params={"after": ids[-11]})).json()["items"]
    assert [event["id"] for event in kept] == ids[-10:]


async def test_the_stream_as_bytes_on_a_socket(
    make_settings: Any, redis_url: str, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client that knows nothing of us reads: HTTP/1.1, chunked, server-sent events to the letter."""
    monkeypatch.setattr(hub, "HEARTBEAT", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    settings = make_settings(redis_url)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, access_log=False))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event to wait for
        await asyncio.sleep(0.01)
    redis = connect(redis_url)
    store = JobStore(redis, secrets=Secrets(settings.secret_key.get_secret_value()))
    job_id, lease = await begun(store, request_body)

    async def connected(*headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        lines = [f"GET /v1/jobs/{job_id}/events HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
        writer.write("\r\n".join([*lines, "Accept: text/event-stream", *headers, "", ""]).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200 ")
        assert "content-type: text/event-stream" in head
        assert "transfer-encoding: chunked" in head
        assert "cache-control: no-" in head
        return reader, writer

    async def until(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
        """The stream's bytes, out of their chunks, up to `wanted`."""
        text = b""
        while wanted not in text:
            size = int(await asyncio.wait_for(reader.readline(), 10), 16)
            text += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        return text

    try:
        reader, writer = await connected()
        first = (await until(reader, b": heartbeat")).replace(b"\r\n", b"\n").decode()
        assert "retry: 1000\n" in first
        blocks = [block.split("\n") for block in first.split("\n\n") if "data:" in block]
        assert [[line.partition(":")[0] for line in block] for block in blocks] == [["id", "event", "data"]] * 2
        last = blocks[-1][0].removeprefix("id: ")
        assert json.loads(blocks[-1][2].removeprefix("data: "))["id"] == last
        writer.close()
        await writer.wait_closed()
        await store.work.warn(job_id, lease, "while nobody looked\nand in two lines")
        reader, writer = await connected(f"Last-Event-ID: {last}")
        again = (await until(reader, b"nobody looked")).replace(b"\r\n", b"\n").decode()
        assert again.count("data: ") == 1
        assert f"id: {last}\n" not in again
        writer.close()
        await writer.wait_closed()
    finally:
        await redis.aclose()
        server.should_exit = True
        await asyncio.wait_for(serving, 20)
        listening.close()
