"""What an API does wrong while a job asks it, and what the books say afterwards."""

from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contracts.jobs import JobStatus
from meta_server.store.stored_job import LEARN
from worker.queries import plan_of, queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_a_rate_limit_is_waited_for_and_costs_nothing(world: Any, api: Any, problem: Any) -> None:
    def refuse(_: httpx.Request, count: int) -> httpx.Response | None:
        return problem(429, headers={"Retry-After": "0"}) if count % 2 else None

    one = api(refuse=refuse)
    told = await world.acquire_all(await world.submit(one, queries=150))
    assert told.budget.confirmed == one.charged == 150


async def test_a_spent_key_ends_with_what_it_gave(world: Any, api: Any) -> None:
    poor, rich = api(budget=70), api()
    told = await world.acquire_all(await world.submit(poor, rich, queries=200))
    assert (poor.charged, rich.charged) == (70, 100)
    assert told.budget.confirmed == 170
    assert told.progress.per_api["a0"].state == "done"
    warnings = [e for e in (await world.store.events.page(told.id, limit=1000)).items if e.type == "warning"]
    assert "budget of its key" in warnings[0].data["message"]


async def test_a_smaller_chunk_is_a_new_chunk(world: Any, api: Any, problem: Any) -> None:
    def refuse(request: httpx.Request, _: int) -> httpx.Response | None:
        return problem(413, max_images=10) if int(request.headers["content-length"]) > 12 * 3 * 256 else None

    one = api(refuse=refuse)
    told = await world.acquire_all(await world.submit(one, queries=64))
    assert told.budget.confirmed == one.charged == 64
    assert {images for _, images in one.seen} == {10, 4}
    assert len({key for key, _ in one.seen}) == len(one.seen)


async def test_a_lost_answer_is_asked_for_again_and_charged_once(world: Any, api: Any) -> None:
    def lose(request: httpx.Request, count: int) -> Exception | None:
        return httpx.ReadTimeout("lost", request=request) if count in (1, 3) else None

    one = api(fault=lose)
    told = await world.acquire_all(await world.submit(one, queries=100))
    assert told.budget.confirmed == one.charged == 100
    assert told.budget.unconfirmed == 0


async def test_a_lost_answer_without_replay_is_unconfirmed_and_not_asked_again(world: Any, api: Any) -> None:
    def lose(request: httpx.Request, count: int) -> Exception | None:
        return httpx.ReadTimeout("lost", request=request) if count == 1 else None

    one = api(fault=lose, idempotency=False)
    told = await world.acquire_all(await world.submit(one, queries=100))
    assert one.charged == 100
    assert (told.budget.confirmed, told.budget.unconfirmed, told.budget.left) == (68, 32, 0)
    assert told.progress.per_api["a0"].state == "done"


@pytest.mark.parametrize("idempotency", [True, False])
async def test_an_api_that_dies_is_given_up(world: Any, api: Any, idempotency: bool) -> None:
    sent = set[str | int]()

    def die(request: httpx.Request, count: int) -> Exception | None:
        if count < 2:
            return None
        sent.add(request.headers.get("idempotency-key", count))
        return httpx.ReadError("gone", request=request)

    one = api(fault=die, idempotency=idempotency)
    told = await world.changed(patience=0.6).acquire_all(await world.submit(one, queries=300))
    world.balance(told)
    assert told.budget.confirmed == 16 + 32
    assert told.budget.unconfirmed == 32 * len(sent)
    assert 1 <= len(sent) <= 3
    assert told.progress.per_api["a0"].state == "done"


async def test_an_api_that_is_silent_is_told_of_once_and_so_is_its_return(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches the job sees why an API stands still, however many of its requests wait."""
    monkeypatch.setattr("worker.remote.LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("worker.remote.SILENT_AFTER", 0.2)
    left = 400

    def hush(request: httpx.Request, count: int) -> Exception | None:
        nonlocal left
        if count < 4 or not left:
            return None
        left -= 1
        return httpx.ConnectError("gone", request=request)

    one = api(fault=hush)
    job = await world.submit(one, queries=600)
    told = await world.changed(patience=60.0).acquire_all(job)
    assert told.budget.confirmed == one.charged == 600
    events = (await world.store.events.page(job.id, limit=1000)).items
    messages = [event.data["message"] for event in events if event.type == "warning"]
    assert len(messages) == 2
    assert messages[0].startswith("the API does not answer; trying for 60 s")
    assert messages[1] == "the API answers again"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": (1, 16, 16)}, "1 channel"),
        ({"answer": lambda pixels: np.full((len(pixels), 5), np.nan, "<f4")}, "NaN"),
        ({"answer": lambda pixels: np.full((len(pixels), 5), 0.4, "<f4")}, "sum to 2"),
        ({"answer": lambda pixels: np.full((len(pixels), 4), 0.25, "<f4")}, "shape"),
        ({"answer": lambda pixels: np.full((1, 5), 0.2, "<f4")}, "shape"),
        ({"refuse": lambda *_: httpx.Response(403)}, "403"),
        ({"refuse": lambda *_: httpx.Response(302, headers={"Location": "http://127.0.0.1"})}, ""),
        ({"refuse": lambda *_: httpx.Response(200, text="hello")}, "no inference response"),
        ({"refuse": lambda *_: httpx.Response(500)}, "500"),
    ],
)
async def test_a_bad_api_is_dropped_before_more_is_spent(
    world: Any, api: Any, changes: dict[str, Any], reason: str
) -> None:
    bad, good = api(), api()
    for name, value in changes.items():
        setattr(bad, name, value)
    job = await world.submit(good, bad, queries=400, min_apis=1)
    await world.changed(patience=0.6).acquire(job.id, "a0")
    await world.changed(patience=0.6).acquire(job.id, "a1")
    told = await world.store.get(job.id)
    world.balance(told)
    dropped = told.progress.per_api["a1"]
    assert dropped.state == "dropped"
    assert reason in (dropped.reason or "")
    assert bad.charged <= 16
    assert told.budget.per_api["a0"].confirmed == 200
    assert told.status == JobStatus.RUNNING
    assert (job.id, LEARN) in world.queue.sent


async def test_an_api_of_another_size_is_shown_the_same_images_resized(world: Any, api: Any) -> None:
    small, seen = api(shape=(3, 8, 12)), []
    proper = small.answer
    small.answer = lambda pixels: [seen.append(pixels), proper(pixels)][1]
    job = await world.submit(api(), small, queries=100)
    await world.acquire(job.id, "a0")
    await world.acquire(job.id, "a1")
    stored = await world.store.load(job.id)
    assert stored.input_shape == (3, 16, 16)
    pool = queries_of(stored.request, (3, 16, 16)).images(plan_of(stored).assigned[1])
    shown = np.concatenate(seen)
    assert shown.shape == (len(pool), 3, 8, 12)
    fitted = [Image.fromarray(image.transpose(1, 2, 0)).resize((12, 8), Image.Resampling.BILINEAR) for image in pool]
    expected = {np.asarray(image).transpose(2, 0, 1).tobytes() for image in fitted}
    assert {image.tobytes() for image in shown} == expected  # chunks may arrive in any order
    told = await world.learn(job.id)
    assert told.status == JobStatus.SUCCEEDED
    world.balance(told)


async def test_a_request_may_say_the_size(world: Any, api: Any) -> None:
    job = await world.submit(api(shape=(3, 20, 20)), api(shape=(3, 24, 24)), queries=64, image_size=18)
    told = await world.acquire_all(job)
    assert {one.state for one in told.progress.per_api.values()} == {"done"}
    assert (await world.store.load(job.id)).input_shape == (3, 18, 18)


@pytest.mark.parametrize("shape", [(3, 7, 16), (3, 16, 1025), (3, 10**6, 10**6)])
async def test_an_api_of_an_absurd_size_is_dropped(world: Any, api: Any, shape: tuple[int, int, int]) -> None:
    job = await world.submit(api(), api(shape=shape), queries=100, min_apis=1)
    await world.acquire(job.id, "a0")
    await world.acquire(job.id, "a1")
    dropped = (await world.store.get(job.id)).progress.per_api["a1"]
    assert (dropped.state, "8 to 1024" in dropped.reason) == ("dropped", True)
    assert world.apis["api1.test"].charged == 0


async def test_too_few_apis_fail_the_job_with_a_reason(world: Any, api: Any) -> None:
    down = api(refuse=lambda *_: httpx.Response(403))
    told = await world.acquire_all(await world.submit(api(), down, queries=100, min_apis=2))
    assert told.status == JobStatus.FAILED
    assert told.error.code == "too_few_apis"
    assert "403" in told.error.message
    assert world.queue.sent == []
    assert told.budget.reserved == 0


async def test_later_faults_keep_what_was_given(world: Any, api: Any) -> None:
    one = api()
    proper = one.answer

    def answer(pixels: np.ndarray) -> np.ndarray:
        return proper(pixels) if one.charged <= 48 else np.full((len(pixels), 4), 0.25, "<f4")

    one.answer = answer
    told = await world.acquire_all(await world.submit(one, queries=200))
    # what was under way when the first bad answer came is paid for too: how much that is depends on the machine
    assert told.budget.confirmed == 48 < one.charged < 200
    assert told.budget.unconfirmed == one.charged - 48
    assert told.progress.per_api["a0"].state == "done"
    assert (await world.learn(told.id)).status == JobStatus.SUCCEEDED
