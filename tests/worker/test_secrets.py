"""A teacher's key goes to the teacher, and nowhere else."""

import json
import logging
from typing import Any

import httpx
import pytest
import structlog

from meta_server.store import keys

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

MARKED = "teacher-key-nobody-may-see"


async def everything_in(redis: Any) -> dict[str, bytes]:
    """Every key of Redis and all that it holds, as bytes."""
    found: dict[str, bytes] = {}
    readers = {
        b"hash": lambda key: redis.hgetall(key),
        b"stream": lambda key: redis.xrange(key),
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"set": lambda key: redis.smembers(key),
        b"string": lambda key: redis.get(key),
        b"list": lambda key: redis.lrange(key, 0, -1),
    }
    for key in await redis.keys("*"):
        found[key.decode()] = repr(await readers[await redis.type(key)](key)).encode()
    return found


@pytest.mark.parametrize("status", [200, 401, 403, 422, 500])
async def test_a_teachers_key_is_seen_nowhere_even_when_the_api_echoes_it(
    world: Any, api: Any, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    sent = []

    def echo(request: httpx.Request, count: int) -> httpx.Response | None:
        sent.append(request.headers["authorization"])
        words = f"you sent {request.headers['authorization']}"
        problem = {"type": "about:blank", "title": words, "detail": words, "error": words, "status": status}
        headers = {"X-Echo": words, "WWW-Authenticate": words}
        return httpx.Response(status, json=problem, headers=headers) if count >= 2 else None

    one = api(refuse=echo)
    apis = [{"url": "http://api0.test/v2/models/m", "api_key": MARKED}]
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logged:
        job = await world.changed(patience=0.3).submit(one, queries=200, apis=apis)
        told = await world.changed(patience=0.3).acquire_all(job)
        if told.finished_at is None:
            told = await world.learn(job.id)
    assert f"Bearer {MARKED}" in sent
    events = [event.model_dump_json() for event in (await world.store.events.page(job.id, limit=1000)).items]
    assert len(events) > 5
    held = await everything_in(world.redis)
    assert b"sealed" in held[keys.job(job.id, "record")]
    files = [world.context.artifacts.read(path) for path in world.context.artifacts.list("jobs")]
    seen = [told.model_dump_json(), *events, json.dumps(logged, default=repr), caplog.text, repr(world.queue.sent)]
    for text in seen:
        assert MARKED not in text
    for content in [*held.values(), *files]:
        assert MARKED.encode() not in content
