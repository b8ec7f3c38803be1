"""A learner that begins on a part of the answers: what it takes in when, and that its record alone decides the model."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from contracts.jobs import JobStatus, Phase
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import weights
from meta_server.store import keys, stored_job
from meta_server.store.stored_job import LATE, LEARN
from worker import arrivals, learn
from worker.queries import plan_of, queries_of
from worker.watch import Stopped, Why

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
METHOD = {"steps": 20, "batch": 8}


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_job, "EARLY_AFTER", 0.0)
    monkeypatch.setattr(arrivals, "LOOK_EVERY", 0.05)
    monkeypatch.setattr("worker.acquire.LOOK_EVERY", 0.05)


def gate(one: Any, after: int) -> Callable[[], None]:
    """Let `one` answer only so many requests until the gate is opened."""
    proper, opened = one.handle, asyncio.Event()

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/infer") and one.requests >= after:
            await opened.wait()
        return await proper(request)

    one.handle = handle
    return opened.set


async def backbone(world: Any, job_id: str) -> dict[str, torch.Tensor]:
    path = json.loads((await world.store.load(job_id)).checkpoints["backbone"])["path"]
    return load(world.context.artifacts.read(path))


async def started(world: Any, job: Any, others: Any) -> asyncio.Task[Any]:
    """The learner at work on two of three APIs, waiting for the third."""
    assert LEARN not in (await world.store.load(job.id)).due()
    await asyncio.gather(world.acquire(job.id, "a0"), world.acquire(job.id, "a1"))
    assert LEARN in (await world.store.load(job.id)).due()
    assert world.queue.sent == [(job.id, LEARN)]
    learning = asyncio.ensure_future(world.learn(job.id))
    await world.trained(job.id, steps=10)
    return learning


@pytest.mark.usefixtures("early")
async def test_a_learner_begins_early_and_goes_on_with_what_arrives(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(classes=3), api(classes=4), queries=240, method=METHOD, min_apis=2)
    learning = await started(world, job, api)
    told = await world.store.get(job.id)
    assert (told.status, told.phase) == (JobStatus.RUNNING, Phase.META_TRAIN)
    assert 0.6 < told.progress.phase[Phase.ACQUIRE] < 0.7
    await world.acquire(job.id, "a2")
    ended = await asyncio.wait_for(learning, 30)
    assert (ended.status, ended.error, ended.budget.confirmed) == (JobStatus.SUCCEEDED, None, 240)
    record = json.loads((await world.store.load(job.id)).checkpoints["arrivals"])
    assert {step: sorted(cut) for step, cut in record.items()} == {
        **{step: ["a0", "a1"] for step in ("0", "2", "4", "6", "8")},
        "10": ["a0", "a1", "a2"],
    }
    made = await backbone(world, job.id)
    # whoever trains it again makes the same model, although all answers are there by now
    await world.redis.hset(keys.job(job.id, "record"), "status", "running")
    await world.redis.hdel(keys.job(job.id, "record"), "checkpoint:backbone")
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    again = await backbone(world, job.id)
    assert all(torch.equal(made[name], again[name]) for name in made)


@pytest.mark.usefixtures("early")
async def test_a_learner_that_began_early_goes_on_from_its_checkpoint(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped once all had come in, whose classes were not all known when it began."""
    told, step = list[int](), learn._Report.step

    def stopping(report: Any, done: int, steps: int, metrics: Any = None) -> None:
        step(report, done, steps, metrics)
        told.append(done)
        if done == 15 and len(told) == 15:
            raise Stopped(Why.SHUTDOWN)

    monkeypatch.setattr(learn._Report, "step", stopping)
    monkeypatch.setattr("worker.checkpoints.SHARE", float("inf"))
    keeping = world.changed(checkpoint_every=0.0)
    job = await keeping.submit(api(), api(classes=3), api(classes=4), queries=240, method=METHOD, min_apis=2)
    learning = await started(keeping, job, api)
    await keeping.acquire(job.id, "a2")
    with pytest.raises(Stopped):
        await asyncio.wait_for(learning, 30)
    assert (await keeping.learn(job.id)).status == JobStatus.SUCCEEDED
    assert told == list(range(1, 21))
    made = await backbone(world, job.id)
    await world.redis.hset(keys.job(job.id, "record"), "status", "running")
    await world.redis.hdel(keys.job(job.id, "record"), "checkpoint:backbone")
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    assert told == [*range(1, 21), *range(1, 21)]
    again = await backbone(world, job.id)
    assert all(torch.equal(made[name], again[name]) for name in made)


@pytest.mark.usefixtures("early")
async def test_a_learner_gives_way_to_a_job_that_can_be_learned(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(), api(), queries=120, method=METHOD, min_apis=2)
    learning = await started(world.changed(checkpoint_every=0.0), job, api)
    world.queue.others = 1
    await asyncio.wait_for(learning, 30)
    stored = await world.store.load(job.id)
    assert (stored.checkpoints[LATE], stored.checkpoints["training"]) == ("1", "{}")
    assert world.context.artifacts.list(f"jobs/{job.id}/checkpoints") == []
    assert stored.due() == ["acquire:a2"]
    await world.acquire(job.id, "a2")
    assert world.queue.sent[-1] == (job.id, LEARN)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    await same_as_all_at_once(world, job.id, apis=3)


async def same_as_all_at_once(world: Any, job_id: str, *, apis: int) -> None:
    """The model is what the method makes of all answers, asked of the APIs again."""
    stored = await world.store.load(job_id)
    request, shape = stored.request, stored.input_shape
    pool = queries_of(request, shape).images(range(plan_of(stored).images))
    asked = torch.zeros(len(pool), apis, dtype=torch.bool)
    probabilities = []
    for api, indices in enumerate(plan_of(stored).assigned):
        asked[indices, api] = True
        answer = torch.from_numpy(world.apis[f"api{api}.test"].answer(pool))
        probabilities.append(torch.where(asked[:, [api]], answer, 0.0))
    answers = Answers(torch.from_numpy(pool), probabilities, asked)
    expected = weights(pqd.distil(answers, request.meta_model, request.method, seed=request.seed).backbone)
    made = await backbone(world, job_id)
    assert all(torch.equal(made[name], expected[name]) for name in expected)


async def test_when_all_is_there_nothing_has_changed(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(classes=3), queries=150, method=METHOD)
    await world.acquire_all(job)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    assert "arrivals" not in (await world.store.load(job.id)).checkpoints
    await same_as_all_at_once(world, job.id, apis=2)


async def test_a_deadline_ends_the_asking(world: Any, api: Any, problem: Any) -> None:
    def tired(_: httpx.Request, count: int) -> httpx.Response | None:
        return problem(429, headers={"Retry-After": "600"}) if count >= 2 else None

    fast, slow = api(), api(refuse=tired)
    never = api(refuse=lambda *_: problem(429, headers={"Retry-After": "600"}))
    job = await world.submit(fast, slow, never, queries=300, method=METHOD, min_apis=1, acquire_deadline=1.0)
    told = await asyncio.wait_for(world.acquire_all(job), 30)
    assert [one.state for one in told.progress.per_api.values()] == ["done", "done", "dropped"]
    assert "deadline" in told.progress.per_api["a2"].reason
    assert (fast.charged, slow.charged, never.charged) == (100, 48, 0)
    assert (told.budget.confirmed, told.budget.reserved, told.budget.unconfirmed) == (148, 0, 0)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
