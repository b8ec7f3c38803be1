"""Answers that earlier jobs paid for: learned from, never paid for twice."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from contracts.jobs import JobStatus
from dfml.memory import Answers
from worker.arrivals import Arrivals
from worker.queries import queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def ended(world: Any, *apis: Any, **request: Any) -> Any:
    """A job that has gone through."""
    job = await world.acquire_all(await world.submit(*apis, **request))
    return await world.learn(job.id)


async def backbone(world: Any, job_id: str) -> dict[str, torch.Tensor]:
    path = json.loads((await world.store.load(job_id)).checkpoints["backbone"])["path"]
    return load(world.context.artifacts.read(path))


async def taken(world: Any, job: Any) -> Answers:
    """What its learner learns from."""
    lease = await world.store.take(job.id, "learn", "test")
    arrivals = Arrivals(world.context, await world.store.load(job.id), SimpleNamespace(lease=lease))
    try:
        return await arrivals.begin()
    finally:
        await world.store.leases.release(lease)


async def test_the_same_images_are_not_paid_for_again(world: Any, api: Any) -> None:
    apis = api(), api()
    first = await ended(world, *apis, queries=80, seed=3)
    charged = [one.charged for one in apis]
    assert sum(charged) == 80
    second = await world.submit(*apis, queries=80, seed=3, reuse=[first.id])
    told = await world.acquire_all(second)
    assert [one.charged for one in apis] == charged
    assert told.budget.confirmed == 0
    assert {each.state for each in told.progress.per_api.values()} == {"done"}
    again = await world.learn(second.id)
    assert again.status is JobStatus.SUCCEEDED
    same = [await backbone(world, job.id) for job in (first, second)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])  # as if it had paid


async def test_a_larger_budget_pays_for_what_is_new_alone(world: Any, api: Any) -> None:
    one = api()
    first = await ended(world, one, queries=40, seed=3)
    second = await world.submit(one, queries=100, seed=3, reuse=[first.id])
    told = await world.acquire_all(second)
    assert one.charged == 40 + told.budget.confirmed
    answers = await taken(world, second)
    assert int(answers.asked.sum()) >= 100
    assert told.budget.confirmed < 100


async def test_other_images_and_other_apis_are_more_to_learn_from(world: Any, api: Any) -> None:
    one, other = api(), api(classes=3)
    first = await ended(world, one, other, queries=60, seed=1)
    second = await world.submit(one, queries=40, seed=2, reuse=[first.id])
    told = await world.acquire_all(second)
    assert told.budget.confirmed == 40
    answers = await taken(world, second)
    assert [each.shape[1] for each in answers.probabilities] == [5, 3]
    assert int(answers.asked.sum()) == 100
    assert int(answers.asked[:, 1].sum()) == 30
    stored = await world.store.load(first.id)
    appended = len(answers.images) - 60
    assert appended > 0
    indices = np.arange(60)
    expected = torch.from_numpy(queries_of(stored.request, stored.input_shape).images(indices))
    rows = {image.numpy().tobytes() for image in answers.images}
    assert sum(image.numpy().tobytes() in rows for image in expected) >= 30


async def test_a_job_that_was_deleted_is_told_of(world: Any, api: Any) -> None:
    one = api()
    first = await ended(world, one, queries=40, seed=3)
    second = await world.submit(one, queries=40, seed=3, reuse=[first.id])
    await world.store.delete(first.id)
    told = await world.acquire_all(second)
    assert told.budget.confirmed == 40
    assert (await world.learn(second.id)).status is JobStatus.SUCCEEDED
    events = (await world.store.events.page(second.id, limit=1000)).items
    assert any(event.type == "warning" and "holds no answers any more" in event.data["message"] for event in events)
