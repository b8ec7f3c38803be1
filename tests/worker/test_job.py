"""Whole jobs in one process: many APIs, their faults, and what the books say afterwards."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from contracts.jobs import JobStatus, Phase
from meta_server.store import keys
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.stored_job import LEARN, acquire_role
from metering.ledger import Outcome
from worker.queries import plan_of, queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_a_job_from_apis_to_meta_model(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(classes=3, datatype="FP32", binary=False), queries=200)
    acquired = await world.acquire_all(job)
    assert (acquired.status, acquired.phase) == (JobStatus.RUNNING, Phase.ACQUIRE)
    assert acquired.budget.confirmed == sum(one.charged for one in world.apis.values()) == 200
    assert {one.state for one in acquired.progress.per_api.values()} == {"done"}
    assert set(world.queue.sent) == {(job.id, LEARN)}
    ended = await world.learn(job.id)
    assert ended.error is None
    assert (ended.status, ended.phase) == (JobStatus.SUCCEEDED, Phase.PUBLISH)
    assert set(ended.progress.phase.values()) == {1.0}
    assert ended.metrics["loss"] > 0
    model = await MetaModelStore(world.redis).get(ended.meta_model)
    assert (model.queries, model.input_shape, len(model.apis), model.score) == (200, (3, 16, 16), 2, None)
    folder = world.context.artifacts.local(await MetaModelStore(world.redis).folder(model.id))
    assert {file.name for file in folder.iterdir()} == set(model.files)
    types = [event.type for event in (await world.store.events.page(job.id, limit=1000)).items]
    assert types[-2:] == ["published", "status"]
    assert await world.learn(job.id) == ended  # its message delivered again changes nothing


async def test_answers_are_kept_as_received(world: Any, api: Any) -> None:
    one = api()
    job = await world.submit(one, queries=100)
    await world.acquire_all(job)
    stored = await world.store.load(job.id)
    planned = plan_of(stored.request).assigned[0]
    images = queries_of(stored.request, (3, 16, 16))
    seen = []
    for settled in await world.store.ledger(job.id).settled("a0"):
        kept = load(world.context.artifacts.read(settled.path))
        assert (kept["probabilities"] == one.answer(images.images(kept["indices"]))).all()
        seen += kept["indices"].tolist()
    assert seen == planned.tolist()


async def test_a_duplicate_finds_the_lease_taken(world: Any, api: Any) -> None:
    one = api()
    job = await world.submit(one, queries=100)
    await asyncio.gather(*(world.acquire(job.id, "a0") for _ in range(4)))
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 100
    await world.acquire(job.id, "a0")
    assert one.charged == 100


async def test_a_learners_message_delivered_twice_is_not_passed_on(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=32)
    await world.acquire_all(job)
    lease = await world.store.take(job.id, LEARN, "another worker")
    sent = list(world.queue.sent)
    assert (await world.learn(job.id)).status == JobStatus.RUNNING
    assert world.queue.sent == sent
    await world.store.leases.release(lease)


async def test_a_task_that_dies_again_and_again_fails_the_job(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=32)
    await world.acquire_all(job)
    for _ in range(3):
        await world.store.leases.release(await world.store.take(job.id, LEARN, "died"))
    told = await world.learn(job.id)
    assert (told.status, told.error.code) == (JobStatus.FAILED, "attempts_exhausted")


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
    def die(request: httpx.Request, count: int) -> Exception | None:
        return httpx.ReadError("gone", request=request) if count >= 2 else None

    one = api(fault=die, idempotency=idempotency)
    told = await world.changed(patience=0.6).acquire_all(await world.submit(one, queries=300))
    world.balance(told)
    assert told.budget.confirmed == 16 + 32
    assert told.budget.unconfirmed == (32 if idempotency else 96)
    assert told.progress.per_api["a0"].state == "done"


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
    pool = queries_of(stored.request, (3, 16, 16)).images(plan_of(stored.request).assigned[1])
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


async def test_a_data_set_that_no_learner_has_spends_nothing(world: Any, api: Any) -> None:
    for evaluation, code, words in (
        ({"dataset": "cifar-fs"}, "dataset_missing", "looked in /data"),
        ({"dataset": "birds"}, "dataset_missing", "unknown"),
        ({"dataset": "glyphs", "ways": 31}, "evaluation_unfit", "30 classes"),
    ):
        told = await world.acquire_all(await world.submit(api(), queries=100, evaluation=evaluation))
        assert told.status == JobStatus.FAILED
        assert told.error.code == code
        assert words in told.error.message
        assert world.apis["api0.test"].charged == 0


async def test_a_learner_without_the_data_set_says_where_it_looked(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=32, evaluation={"dataset": "cifar-fs"})
    await world.redis.delete(keys.LEARNERS)
    await world.changed(learner_wait=0.0).acquire_all(job)
    told = await world.learn(job.id)
    assert told.error.code == "dataset_missing"
    assert "METAZOO_DATA" in told.error.message
    assert told.error.param == "evaluation.dataset"


async def test_an_evaluation_that_does_not_fit_is_refused_before_training(world: Any, api: Any) -> None:
    job = await world.submit(api(shape=(3, 16, 20)), queries=32, evaluation={"dataset": "glyphs"})
    await world.acquire_all(job)
    told = await world.learn(job.id)
    assert told.error.code == "evaluation_unfit"
    assert Phase.META_TRAIN not in told.progress.phase


async def test_a_data_set_of_another_size_is_resized_for_the_evaluation(world: Any, api: Any) -> None:
    evaluation = {"dataset": "glyphs", "episodes": 2, "shots": [1]}
    job = await world.submit(api(), queries=32, evaluation=evaluation)
    await world.acquire_all(job)
    told = await world.learn(job.id)
    assert told.error is None
    assert told.score.accuracy.keys() == {"1"}


async def test_cancelling_stops_the_acquisition_within_a_step(world: Any, api: Any) -> None:
    release = asyncio.Event()
    one = api()
    proper = one.handle

    async def slow(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/infer") and one.requests >= 1:
            release.set()
            await asyncio.sleep(0.3)
        return await proper(request)

    one.handle = slow
    job = await world.submit(one, queries=1000)
    task = asyncio.ensure_future(world.acquire(job.id, "a0"))
    await release.wait()
    assert (await world.store.moves.cancel(job.id)).status == JobStatus.CANCELLING
    await asyncio.wait_for(task, 3)
    told = await world.store.get(job.id)
    assert told.status == JobStatus.CANCELLED
    assert told.budget.reserved == 0
    assert told.budget.confirmed == one.charged < 200
    world.balance(told)


async def test_cancelling_stops_the_training_within_a_step(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=64, method={"steps": 1_000_000, "batch": 8})
    await world.acquire_all(job)
    task = asyncio.ensure_future(world.learn(job.id))
    await world.trained(job.id)
    await world.store.moves.cancel(job.id)
    assert (await asyncio.wait_for(task, 5)).status == JobStatus.CANCELLED


async def hanging(one: Any, *, after: int, forever: bool) -> asyncio.Event:
    """Let the API charge its request number `after` and then keep the answer to itself, for a moment or for good."""
    proper, reached = one.handle, asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        response = await proper(request)
        if request.url.path.endswith("/infer") and one.requests == after and not reached.is_set():
            reached.set()
            await asyncio.sleep(60 if forever else 0.3)
        return response

    one.handle = slow
    return reached


async def test_a_pause_drains_what_is_under_way_and_resuming_asks_the_rest(world: Any, api: Any) -> None:
    one = api(idempotency=False)  # an answer that is lost here is lost for good
    reached = await hanging(one, after=3, forever=False)
    job = await world.submit(one, queries=300)
    task = asyncio.ensure_future(world.acquire(job.id, "a0"))
    await reached.wait()
    assert (await world.store.moves.pause(job.id, reason="night")).status == JobStatus.PAUSING
    await asyncio.wait_for(task, 5)
    paused = await world.store.get(job.id)
    assert (paused.status, paused.reason, paused.attempt) == (JobStatus.PAUSED, "night", 0)
    assert paused.budget.confirmed == one.charged == 16 + 32 + 32
    assert paused.budget.reserved == 0
    await world.acquire(job.id, "a0")  # a message that is late finds nothing to do
    assert one.charged == paused.budget.confirmed
    await world.store.moves.resume(job.id)
    await world.acquire(job.id, "a0")
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 300


@pytest.mark.parametrize("idempotency", [True, False])
async def test_a_pause_reaches_a_worker_that_is_stuck(world: Any, api: Any, idempotency: bool) -> None:
    """What cannot be drained stays a hold; resuming learns its outcome where the API replays, else counts it as spent."""
    one = api(idempotency=idempotency)
    reached = await hanging(one, after=2, forever=True)
    job = await world.submit(one, queries=200)
    task = asyncio.ensure_future(world.changed(drain=0.1).acquire(job.id, "a0"))
    await reached.wait()
    await world.store.moves.pause(job.id)
    await asyncio.wait_for(task, 5)
    paused = await world.store.get(job.id)
    assert (paused.status, paused.budget.reserved) == (JobStatus.PAUSED, 32)
    world.balance(paused)
    await world.store.moves.resume(job.id)
    await world.acquire(job.id, "a0")
    told = await world.store.get(job.id)
    assert (told.budget.unconfirmed, told.budget.reserved) == (0 if idempotency else 32, 0)
    assert told.budget.confirmed + told.budget.unconfirmed == one.charged == 200


async def test_a_pause_between_repetitions_gives_the_hold_back(world: Any, api: Any, problem: Any) -> None:
    asked = asyncio.Event()

    def refuse(*_: Any) -> httpx.Response:
        asked.set()
        return problem(429, headers={"Retry-After": "60"})

    job = await world.submit(api(refuse=refuse), queries=64)
    task = asyncio.ensure_future(world.acquire(job.id, "a0"))
    await asked.wait()
    await world.store.moves.pause(job.id)
    await asyncio.wait_for(task, 5)
    told = await world.store.get(job.id)
    assert (told.status, told.budget.left) == (JobStatus.PAUSED, 64)


async def test_training_is_paused_and_resumed(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=64, method={"steps": 300, "batch": 8})
    await world.acquire_all(job)
    task = asyncio.ensure_future(world.learn(job.id))
    await world.trained(job.id)
    await world.store.moves.pause(job.id)
    assert (await asyncio.wait_for(task, 5)).status == JobStatus.PAUSED
    await world.store.moves.resume(job.id)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_money_is_never_exceeded_and_what_it_bought_is_learned_from(world: Any, api: Any) -> None:
    cheap, dear = api(), api()
    prices = ("0.50", "3.00")
    apis = [{"url": f"http://api{n}.test/v2/models/m", "price_per_1k": price} for n, price in enumerate(prices)]
    told = await world.acquire_all(
        await world.submit(cheap, dear, apis=apis, budget={"queries": 400, "cost": "0.30", "currency": "EUR"})
    )
    cost = told.budget.cost
    assert (cost.currency, cost.limit, cost.reserved) == ("EUR", "0.30", "0.00")
    assert float(cost.confirmed) == pytest.approx(0.0005 * cheap.charged + 0.003 * dear.charged)
    assert float(cost.left) < 0.0005  # not one image more
    assert {one.state for one in told.progress.per_api.values()} == {"done"}


async def test_a_budget_of_seconds_ends_the_asking(world: Any, api: Any) -> None:
    one = api()
    reached = await hanging(one, after=2, forever=False)
    job = await world.submit(one, budget={"queries": 2000, "seconds": 3600})
    asking = asyncio.ensure_future(world.acquire_all(job))
    await reached.wait()
    await world.redis.hset(keys.ledger(job.id).budget, "seconds", "1")  # as if the hour were over
    told = await asking
    assert told.progress.per_api["a0"].state == "done"
    assert 16 <= told.budget.confirmed == one.charged < 2000


async def test_a_retry_asks_dropped_apis_again_and_keeps_what_was_paid_for(world: Any, api: Any) -> None:
    good, down = api(), api(refuse=lambda *_: httpx.Response(403))
    failed = await world.acquire_all(await world.submit(good, down, queries=100, min_apis=2))
    assert failed.status == JobStatus.FAILED
    assert good.charged == failed.budget.confirmed > 0
    down.refuse = None
    await world.store.moves.retry(failed.id)
    told = await world.acquire_all(failed)
    assert (good.charged, down.charged, told.budget.confirmed) == (50, 50, 100)
    assert (told.status, (await world.store.load(told.id)).due()) == (JobStatus.RUNNING, [LEARN])


async def test_a_killed_worker_is_followed_by_one_that_pays_nothing_twice(world: Any, api: Any) -> None:
    """Killed after the request was charged and before its answer was stored: the worst moment."""
    one = api()
    proper = one.handle
    killed = asyncio.Event()

    async def die(request: httpx.Request) -> httpx.Response:
        response = await proper(request)
        if one.requests == 3 and not killed.is_set():
            killed.set()
            await asyncio.sleep(60)
        return response

    one.handle = die
    job = await world.submit(one, queries=200)
    task = asyncio.ensure_future(world.acquire(job.id, "a0"))
    await killed.wait()
    leases = keys.job(job.id, "leases")
    held = await world.redis.hget(leases, "held:acquire:a0")
    task.cancel()
    await asyncio.wait({task})
    # a killed process gives no lease back: it runs out
    await world.redis.hset(leases, mapping={"held:acquire:a0": held, "deadline:acquire:a0": "1"})
    assert (await world.store.get(job.id)).budget.reserved in (32, 64)
    await world.acquire(job.id, "a0")
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 200
    assert (told.budget.unconfirmed, told.budget.reserved) == (0, 0)
    outcomes = [settled.outcome for settled in await world.store.ledger(job.id).settled("a0")]
    assert set(outcomes) == {Outcome.CONFIRMED}


async def test_a_learner_goes_on_from_its_checkpoint(world: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import worker.learn

    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)

    async def killed(*_: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(worker.learn, "_publish", killed)
        with pytest.raises(asyncio.CancelledError):
            await world.learn(job.id)
    before = (await world.store.load(job.id)).checkpoints["backbone"]
    monkeypatch.setattr("worker.learn.METHODS", {})  # training again would fail
    told = await world.learn(job.id)
    assert told.status == JobStatus.SUCCEEDED
    assert (await world.store.load(job.id)).checkpoints["backbone"] == before


async def test_a_shutdown_hands_the_work_on(world: Any, api: Any) -> None:
    from worker.watch import Stopped, Why

    one = api()
    stop = {"now": False}
    proper = one.handle

    async def slow(request: httpx.Request) -> httpx.Response:
        stop["now"] = one.requests >= 2
        await asyncio.sleep(0.1)
        return await proper(request)

    one.handle = slow
    job = await world.submit(one, queries=1000)
    with pytest.raises(Stopped) as stopped:
        await world.changed(stopping=lambda: stop["now"]).acquire(job.id, "a0")
    assert stopped.value.why is Why.SHUTDOWN
    one.handle = proper
    told = await world.store.get(job.id)
    assert told.status == JobStatus.RUNNING
    await world.acquire(job.id, "a0")
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 1000


async def test_a_fault_of_ours_fails_the_job_and_shows_nothing_of_it(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.acquire.check_info", lambda *_: 1 / 0)
    told = await world.acquire_all(await world.submit(api(), queries=32))
    assert told.status == JobStatus.FAILED
    assert told.error.code == "internal"
    assert "division" not in told.error.message
    assert (await world.store.load(told.id)).due() == []
    assert not await world.redis.hget(keys.job(told.id, "leases"), f"held:{acquire_role('a0')}")
