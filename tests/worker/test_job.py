"""Whole jobs in one process: from APIs to the meta-model, killed and resumed, and what the books say afterwards."""

import asyncio
from typing import Any

import httpx
import pytest
from safetensors.numpy import load

from contracts.jobs import Job, JobChange, JobStatus, Phase
from dfml.plans import FEW
from meta_server.planning import pinned, spares
from meta_server.store import keys
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.stored_job import LEARN, acquire_role
from metering.ledger import Outcome
from worker.queries import plan_of, queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def refuse(*_: Any) -> httpx.Response:
    return httpx.Response(403)


def host(api_id: str) -> str:
    return f"api{api_id[1:]}.test"


def spares_of(job: Job) -> list[str]:
    """Those that nothing is planned for."""
    return [api_id for api_id, one in job.progress.per_api.items() if job.told_state(one) == "not asked"]


async def acquired_by_all(world: Any, job: Job) -> Job:
    """Those that stand in are asked as well, each after a message."""
    await world.acquire_all(job)
    while due := [role for role in (await world.store.load(job.id)).due() if role != LEARN]:
        assert {(job.id, role) for role in due} <= set(world.queue.sent)
        await asyncio.gather(*(world.acquire(job.id, role.removeprefix(acquire_role(""))) for role in due))
    return await world.store.get(job.id)


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


async def test_with_few_queries_few_apis_are_asked(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 2)), queries=FEW * 20)
    for spare in spares_of(job):
        del world.apis[host(spare)]  # not even looked for
    acquired = await world.acquire_all(job)
    assert [one.charged for one in world.apis.values()] == [20] * FEW
    told = acquired.progress.per_api.values()
    assert (
        sorted((one.state, one.planned, one.answered) for one in told)
        == [("done", 0, 0)] * 2 + [("done", 20, 20)] * FEW
    )
    assert sorted(acquired.told_state(one) for one in told) == ["done"] * FEW + ["not asked"] * 2
    ended = await world.learn(job.id)
    assert (ended.status, ended.budget.confirmed) == (JobStatus.SUCCEEDED, FEW * 20)


async def test_of_those_asked_enough_must_answer(world: Any, api: Any) -> None:
    """Each of the others was asked in the place of one that refused, and refused."""
    apis = [api(refuse=refuse) for _ in range(3 * FEW)]
    told = await acquired_by_all(world, await world.submit(*apis, queries=FEW * 20))
    assert (told.status, told.error.code) == (JobStatus.FAILED, "too_few_apis")
    assert f"of {FEW} APIs are left and at least {FEW // 2} are needed" in told.error.message
    assert sum(one.state == "dropped" for one in told.progress.per_api.values()) > 2 * FEW


async def test_another_api_stands_in_for_one_that_gives_nothing(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 2)), queries=FEW * 20)
    gone, *_ = [api_id for api_id in job.progress.per_api if api_id not in spares_of(job)]
    world.apis[host(gone)].refuse = refuse
    told = await acquired_by_all(world, job)
    (stand_in,) = [api_id for api_id, one in told.progress.per_api.items() if one.stands_in_for == gone]
    (left,) = set(spares_of(job)) - {stand_in}
    states = {api_id: told.told_state(one) for api_id, one in told.progress.per_api.items()}
    assert (states[gone], states[stand_in], states[left]) == ("dropped", "done", "not asked")
    assert told.budget.confirmed == FEW * 20
    assert sorted(one.charged for one in world.apis.values()) == [0, 0, *[20] * FEW]
    images, stored = queries_of(job.request, (3, 16, 16)), await world.store.load(job.id)
    for settled in await world.store.ledger(job.id).settled(stand_in):
        kept = load(world.context.artifacts.read(settled.path))
        assert (kept["probabilities"] == world.apis[host(stand_in)].answer(images.images(kept["indices"]))).all()
    assert [len(indices) for indices in plan_of(stored).assigned] == [
        one.planned for one in told.progress.per_api.values()
    ]
    said = [event.data for event in (await world.store.events.page(job.id, limit=1000)).items]
    assert any("stands in" in one.get("message", "") and one["api"] == stand_in for one in said)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_whoever_stands_in_may_be_replaced_until_nobody_is_left(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 4)), queries=FEW * 20)
    asked = [api_id for api_id in job.progress.per_api if api_id not in spares_of(job)]
    for api_id in (*asked[:3], *spares_of(job)[:2]):
        world.apis[host(api_id)].refuse = refuse
    told = await acquired_by_all(world, job)
    assert sum(one.charged for one in world.apis.values()) == told.budget.confirmed == (FEW - 1) * 20
    per_api = told.progress.per_api
    assert [one.planned for one in per_api.values() if one.state == "dropped"].count(20) == 1  # nobody was left for it
    replaced = [one.stands_in_for for one in per_api.values() if one.stands_in_for]
    assert len(replaced) == len(set(replaced)) == 4
    assert "not asked" not in {told.told_state(one) for one in per_api.values()}
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_a_worker_that_dies_before_it_says_who_stands_in_agrees_on_the_same(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 3)), queries=FEW * 20)
    gone, *_ = [api_id for api_id in job.progress.per_api if api_id not in spares_of(job)]
    world.apis[host(gone)].refuse = refuse
    lease = await world.store.take(job.id, acquire_role(gone), "a worker that dies")
    free = spares(job.request, job.progress.per_api)
    agreed = await world.store.work.agree_on_stand_in(job.id, lease, gone, free)
    await world.store.leases.release(lease)
    told = await acquired_by_all(world, job)
    assert {api_id: one.stands_in_for for api_id, one in told.progress.per_api.items() if one.stands_in_for} == {
        agreed: gone
    }


async def test_a_raised_budget_asks_on_where_another_stands_in(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 2)), queries=FEW * 20)
    gone, *_ = [api_id for api_id in job.progress.per_api if api_id not in spares_of(job)]
    world.apis[host(gone)].refuse = refuse
    await acquired_by_all(world, job)
    await world.store.moves.pause(job.id)
    raised = await world.store.change(job.id, JobChange(budget={"queries": FEW * 30}), pinned=pinned)
    assert [one.planned for one in raised.progress.per_api.values() if one.state == "waiting"] == [30] * FEW
    await world.store.moves.resume(job.id)
    told = await acquired_by_all(world, job)
    assert sorted(one.charged for one in world.apis.values()) == [0, 0, *[30] * FEW]
    assert world.apis[host(gone)].charged == 0
    assert told.budget.confirmed == FEW * 30
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_a_retried_job_asks_none_that_another_stands_in_for(world: Any, api: Any) -> None:
    job = await world.submit(*(api() for _ in range(FEW + 1)), queries=FEW * 20)
    asked = [api_id for api_id in job.progress.per_api if api_id not in spares_of(job)]
    for api_id in asked[: FEW // 2 + 2]:
        world.apis[host(api_id)].refuse = refuse
    told = await acquired_by_all(world, job)
    assert (told.status, told.error.code) == (JobStatus.FAILED, "too_few_apis")
    (replaced,) = [one.stands_in_for for one in told.progress.per_api.values() if one.stands_in_for]
    for one in world.apis.values():
        one.refuse = None
    await world.store.moves.retry(job.id)
    told = await acquired_by_all(world, job)
    assert {api_id for api_id, one in told.progress.per_api.items() if one.state == "dropped"} == {replaced}
    assert [one.charged for one in world.apis.values()].count(20) == FEW
    assert (world.apis[host(replaced)].charged, told.budget.confirmed) == (0, FEW * 20)


async def test_where_the_time_for_asking_is_over_nobody_stands_in(world: Any, api: Any) -> None:
    late = api(refuse=lambda *_: httpx.Response(429, headers={"Retry-After": "9"}))
    job = await world.submit(*(late for _ in range(FEW + 2)), queries=FEW * 20, acquire_deadline=0.2)
    told = await acquired_by_all(world, job)
    assert (told.status, told.error.code) == (JobStatus.FAILED, "too_few_apis")
    assert not any(one.stands_in_for for one in told.progress.per_api.values())


async def test_as_many_apis_are_asked_as_must_answer(world: Any, api: Any) -> None:
    await world.acquire_all(await world.submit(*(api() for _ in range(FEW + 2)), queries=100, min_apis=FEW + 1))
    assert sorted(one.charged for one in world.apis.values()) == [0, *[100 // (FEW + 1)] * (FEW + 1)]


async def test_answers_are_kept_as_received(world: Any, api: Any) -> None:
    one = api()
    job = await world.submit(one, queries=100)
    await world.acquire_all(job)
    stored = await world.store.load(job.id)
    planned = plan_of(stored).assigned[0]
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
