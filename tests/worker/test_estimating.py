"""A probe of APIs before a job is sent: the route, a worker's context and APIs that keep their own books."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kombu.exceptions import OperationalError

from client import ApiUnavailable, AsyncMetazoo
from contracts.access import Quota
from contracts.estimates import EstimateRequest
from meta_server import probing
from meta_server.app import create_app
from meta_server.queue import PROBE_TASK, Queue
from meta_server.settings import Settings
from meta_server.store.access import AccessStore
from meta_server.store.probes import Asked, Probes
from meta_server.store.secrets import Secrets
from metering.scripts import connect
from worker.app import create_app as create_worker
from worker.estimating import probe
from worker.settings import Settings as WorkerSettings

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
KEY = "server-key-of-the-tests"
RATES = {"RateLimit-Policy": '"burst";q=20;w=2;qu="images"', "RateLimit": '"burst";r=12;t=1'}


class Sends:
    """A queue whose messages start `deliver` on the test's loop."""

    def __init__(self, deliver: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self.deliver, self.loop = deliver, asyncio.get_running_loop()
        self.sent: list[str] = []
        self.tasks: list[asyncio.Future[None]] = []

    def probe(self, probe_id: str) -> None:
        self.sent.append(probe_id)
        self.loop.call_soon_threadsafe(lambda: self.tasks.append(asyncio.ensure_future(self.deliver(probe_id))))


class Lost:
    def probe(self, probe_id: str) -> None:
        raise OperationalError("connection refused")


class Stated:
    """An API whose headers state a rate."""

    def __init__(self, proper: Any) -> None:
        self.proper = proper

    async def handle(self, request: httpx.Request) -> httpx.Response:
        response = await self.proper.handle(request)
        if request.url.path.endswith("/infer"):
            response.headers.update(RATES)
        return response


@pytest.fixture
def opened(world: Any, redis_url: str, tmp_path: Path) -> Any:
    """`async with opened(*apis) as (http, queue, context)`: the server, and a worker that takes what it sends."""

    @asynccontextmanager
    async def start(*apis: Any, deliver: Any = None, queue: Any = None) -> AsyncIterator[Any]:
        secret = Secrets.generate()
        world.apis.update({f"api{n}.test": api for n, api in enumerate(apis)})
        context = replace(world.context, probes=Probes(world.redis, secrets=Secrets(secret)))
        sends = queue or Sends(deliver or (lambda probe_id: probe(context, probe_id)))
        settings = Settings(redis_url=redis_url, artifacts=str(tmp_path / "a"), secret_key=secret, api_key=KEY)
        app = create_app(settings, queue=sends)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server.test", headers=headers) as http,
        ):
            yield http, sends, context

    return start


def body(apis: int, **changes: Any) -> dict[str, Any]:
    listed = [{"url": f"http://api{n}.test/v2/models/m", "api_key": f"secret-{n}"} for n in range(apis)]
    return {"apis": listed, "budget": {"queries": 300}, "probe": True, **changes}


async def used_today(world: Any) -> int:
    return (await AccessStore(world.redis).usage("default")).queries_today


async def test_it_tells_what_each_api_shows_and_what_it_was_charged(world: Any, api: Any, opened: Any) -> None:
    plain, rough, small = api(), api(classes=3, datatype="FP32", idempotency=False), api(max_images=3, shape=(3, 8, 24))
    exact, calls = rough.answer, []

    def rounded(pixels: Any) -> Any:
        calls.append(len(pixels))
        best = exact(pixels).argmax(1)[:, None] == range(3)
        return (best * 0.8).astype("<f4").round(1) if len(calls) > 1 else (best * 0.9).astype("<f4").round(1)

    rough.answer, rough.metadata = (
        rounded,
        lambda made=rough.metadata: made() | {"parameters": {"response_policy": "topk:1"}},
    )
    async with opened(Stated(plain), rough, small) as (http, queue, _):
        told = (await http.post("/v1/jobs/estimate", json=body(3))).json()
        assert len(queue.sent) == 1
        audit = (await http.get("/admin/audit")).json()["items"]
    assert any("(probe)" in entry["action"] for entry in audit)
    seen = told["probe"]["per_api"]
    assert [seen[name]["reason"] for name in seen] == [None] * 3
    assert [one["charged"] for one in seen.values()] == [plain.charged, rough.charged, small.charged] == [8, 8, 8]
    assert (told["probe"]["charged"], told["probe"]["unconfirmed"], await used_today(world)) == (24, 0, 24)
    a0, a1, a2 = seen.values()
    assert (a0["classes"], a0["decimals"], a0["top_k"], a0["deterministic"], a0["max_images"]) == (
        5,
        None,
        None,
        True,
        32,
    )
    assert (a1["classes"], a1["decimals"], a1["top_k"], a1["deterministic"], a1["idempotency"]) == (
        3,
        1,
        1,
        False,
        False,
    )
    assert (a2["input_shape"], a2["max_images"], a2["idempotency"]) == ([3, 8, 24], 3, True)
    assert max(images for _, images in small.seen) == 3
    assert a0["limits"] == [{"name": "burst", "quota": 20, "window": 2, "unit": "images", "remaining": 12}]
    assert (told["seconds"], told["seconds_reason"]) == (None, "no rate was stated by a1, a2")


async def test_seconds_are_those_of_the_rates_stated(api: Any, opened: Any) -> None:
    async with opened(Stated(api())) as (http, _, _):
        unasked = (await http.post("/v1/jobs/estimate", json=body(1, probe=False))).json()
        assert (unasked["seconds"], unasked["probe"]) == (None, None)
        assert "probe" in unasked["seconds_reason"]
        told = (await http.post("/v1/jobs/estimate", json=body(1))).json()
    assert (told["seconds"], told["seconds_reason"]) == (told["queries"] / 10, None)


async def test_no_more_is_asked_than_was_allowed_and_nothing_twice(world: Any, api: Any, opened: Any) -> None:
    one, other = api(), api()
    async with opened(one, other) as (http, queue, context):
        few = body(2, probe_images=50, budget={"queries": 300, "queries_per_api": 5})
        assert (await http.post("/v1/jobs/estimate", json=few)).status_code == 200
        assert (one.charged, other.charged) == (5, 5)
        few["apis"] = [
            spec | {"price_per_1k": price} for spec, price in zip(few["apis"], ["1000", "3000"], strict=True)
        ]
        few["budget"]["cost"] = "9.99"
        assert (await http.post("/v1/jobs/estimate", json=few)).status_code == 200
        assert (one.charged, other.charged) == (5 + 4, 5)
        await probe(context, queue.sent[0])  # as when the message is delivered again
    assert (one.charged, other.charged) == (9, 5)


async def test_a_lost_answer_is_told_and_not_asked_for_again(world: Any, api: Any, opened: Any) -> None:
    lost = api(fault=lambda request, before: httpx.ReadError("gone"))
    down = api(refuse=lambda request, before: httpx.Response(503))
    late = api(
        refuse=lambda request, before: httpx.Response(429, headers={"Retry-After": "0"}) if before == 0 else None
    )
    async with opened(lost, down, late) as (http, _, _):
        answer = await http.post("/v1/jobs/estimate", json=body(3))
    a0, a1, a2 = answer.json()["probe"]["per_api"].values()
    assert (a0["charged"], a0["unconfirmed"], lost.charged, lost.requests) == (0, 7, 7, 1)
    assert (a1["charged"], a1["unconfirmed"], a1["reason"]) == (0, 0, "status 503")
    assert (a2["charged"], a2["unconfirmed"], a2["reason"], late.charged) == (8, 0, None, 8)
    assert await used_today(world) == 15
    assert not any(f"secret-{n}" in answer.text for n in range(3))


async def test_an_api_that_hangs_is_given_up_in_time(
    world: Any, api: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "ASKING", 1.0)
    hangs = api()

    async def never(request: httpx.Request, proper: Any = hangs.handle) -> httpx.Response:
        answer = await proper(request)
        if request.url.path.endswith("/infer"):
            await asyncio.Event().wait()
        return answer

    hangs.handle = never
    async with opened(hangs) as (http, _, _):
        (told,) = (await http.post("/v1/jobs/estimate", json=body(1))).json()["probe"]["per_api"].values()
    assert (told["charged"], told["unconfirmed"], hangs.charged) == (0, 7, 7)
    assert "time" in told["reason"]


async def test_without_a_worker_it_says_that_nothing_was_asked(
    world: Any, api: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "WAIT", 0.2)
    one = api()

    async def nobody(probe_id: str) -> None:
        return

    async with opened(one, deliver=nobody) as (http, queue, context):
        answer = await http.post("/v1/jobs/estimate", json=body(1))
        assert (answer.status_code, "nothing was asked" in answer.json()["detail"]) == (503, True)
        await probe(context, queue.sent[0])  # the worker comes too late
    async with opened(one, queue=Lost()) as (http, _, _):
        answer = await http.post("/v1/jobs/estimate", json=body(1))
        assert (answer.status_code, "nothing was asked" in answer.json()["detail"]) == (503, True)
    assert (one.charged, one.requests, await used_today(world)) == (0, 0, 0)


async def test_a_worker_that_dies_may_have_spent_and_that_is_said(
    world: Any, api: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "WAIT", 0.5)

    async def dies(probe_id: str) -> None:
        await context.probes.claim(probe_id)

    async with opened(api(), deliver=dies) as (http, _, context):
        answer = await http.post("/v1/jobs/estimate", json=body(1))
    assert (answer.status_code, answer.json()["charged_at_most"]) == (503, 8)
    assert await used_today(world) == 8


async def test_quotas_and_bad_requests_are_refused_before_anything_is_asked(world: Any, api: Any, opened: Any) -> None:
    one = api()
    await AccessStore(world.redis).set_quota("default", Quota(queries_a_day=7))
    async with opened(one) as (http, queue, _):
        assert (await http.post("/v1/jobs/estimate", json=body(1))).status_code == 409
        masked = body(1)
        masked["apis"][0]["api_key"] = "**********"
        for wrong in (masked | {"probe_images": 4}, body(1, budget={"queries": 1}), body(33)):
            assert (await http.post("/v1/jobs/estimate", json=wrong)).status_code == 422
        assert (await http.post("/v1/jobs/estimate", json=body(1, probe_images=7))).status_code == 200
        assert (len(queue.sent), one.charged, await used_today(world)) == (1, 7, 7)


async def test_the_sdk_probes_and_does_not_repeat_it(
    world: Any, api: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, job = api(), body(1)
    del job["probe"]

    async def dies_later(probe_id: str) -> None:
        await (probe(context, probe_id) if len(queue.sent) == 1 else context.probes.claim(probe_id))

    async with (
        opened(one, deliver=dies_later) as (http, queue, context),
        AsyncMetazoo("http://server.test", KEY, transport=http._transport) as metazoo,
    ):
        assert (await metazoo.jobs.estimate(job)).probe is None
        told = await metazoo.jobs.estimate(job, probe=True, probe_images=3)
        assert told.probe is not None
        assert (told.probe.charged, one.charged, len(queue.sent)) == (3, 3, 1)
        monkeypatch.setattr(probing, "WAIT", 0.5)
        with pytest.raises(ApiUnavailable, match="up to 8 images"):
            await metazoo.jobs.estimate(job, probe=True)
        assert (one.charged, len(queue.sent)) == (3, 2)


async def test_the_task_asks_through_the_guard(redis_url: str, tmp_path: Path) -> None:
    secret = Secrets.generate()
    settings = WorkerSettings(redis_url=redis_url, artifacts=str(tmp_path), secret_key=secret)
    redis = connect(redis_url)
    probes = Probes(redis, secrets=Secrets(secret))
    listed = [{"url": "http://127.0.0.1:9/v2/models/m"}]
    request = EstimateRequest.model_validate({"apis": listed, "budget": {"queries": 9}, "probe": True})
    probe_id = await probes.create(Asked(request=request, images={"a0": 8}, until=time.time() + 60))
    queue = Queue(redis_url)
    queue.probe(probe_id)
    assert queue.waiting("acquire:a0") == 1
    queue.close()
    with create_worker(settings) as worker:
        await asyncio.to_thread(worker.tasks[PROBE_TASK], probe_id)
    told = await probes.result(probe_id)
    await redis.aclose()
    assert told is not None
    assert "not a public address" in (told.per_api["a0"].reason or "")
