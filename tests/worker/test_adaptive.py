"""Methods that ask as they go, as jobs: what they spend, that they are resumed without paying twice, and what is refused."""

from typing import Any

import httpx
import pytest
from safetensors.numpy import load

from contracts.jobs import JobRequest, JobStatus
from meta_server.store.meta_models import MetaModelStore
from worker.watch import Stopped, Why

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SMALL = {"latent": 4, "generator_width": 4, "ways": 3, "shots": 1, "queries": 2, "second_order": False}
GRADIENTS = {"source": "zeroth-order", "directions": 2, "frequencies": 4}
BIDF = SMALL | {
    "name": "bidf_mkd", "images_per_class": 2, "iterations": 2, "directions": 2, "frequencies": 4, "updates": 3, "tasks": 2,
    "inner_steps": 1, "replay_steps": 1, "diversity": 0,
}  # fmt: skip
FREE = SMALL | {
    "name": "free", "epochs": 3, "warm_up": 1, "images_per_class": 3, "generator_steps": 2, "replay_tasks": 1, "patience": 1,
    "inner_steps": 1, "gradients": GRADIENTS,
}  # fmt: skip
PURER = {
    "name": "purer", "updates": 3, "images_per_class": 3, "ways": 3, "shots": 1, "episodes": 1,
    "gradients": {"source": "guided", "directions": 2},
}  # fmt: skip
DISTILL = {"name": "distill_average", "steps": 3, "batch": 8}


@pytest.mark.parametrize("method", [BIDF, FREE, PURER, DISTILL], ids=lambda method: str(method["name"]))
async def test_a_job_of_every_method_ends_within_its_budget_and_says_what_it_spent(
    world: Any, api: Any, method: dict[str, Any]
) -> None:
    job = await world.submit(api(classes=3), api(classes=4, datatype="FP32", binary=False), queries=1500, method=method)
    acquired = await world.acquire_all(job)
    assert {one.state for one in acquired.progress.per_api.values()} == {"done"}
    ended = await world.learn(job.id)
    assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
    charged = sum(one.charged for one in world.apis.values())
    assert 0 < charged == ended.budget.confirmed <= 1500
    world.balance(ended)
    model = await MetaModelStore(world.redis).get(ended.meta_model)
    assert (model.method, model.queries, len(model.apis)) == (method["name"], charged, 2)


async def backbone_of(world: Any, ended: Any) -> Any:
    folder = world.context.artifacts.local(await MetaModelStore(world.redis).folder(ended.meta_model))
    return load(next(folder.glob("*.safetensors")).read_bytes())


async def test_who_takes_it_up_again_pays_for_nothing_twice_and_learns_the_same(world: Any, api: Any) -> None:
    whole = await world.submit(api(classes=3), queries=300, method=BIDF)
    await world.acquire_all(whole)
    wanted = await backbone_of(world, await world.learn(whole.id))
    spent = world.apis["api0.test"].charged

    def stop(request: httpx.Request, count: int) -> Exception | None:
        if count == 3:
            raise Stopped(Why.SHUTDOWN)
        return None

    broken = api(classes=3, fault=stop)
    job = await world.submit(broken, queries=300, method=BIDF)
    await world.acquire_all(job)
    with pytest.raises(Stopped):
        await world.learn(job.id)
    half = await world.store.get(job.id)
    assert 0 < half.budget.confirmed < spent
    assert half.budget.reserved > 0  # charged, and its answer lost on the way
    ended = await world.learn(job.id)
    assert ended.status == JobStatus.SUCCEEDED
    assert broken.charged == ended.budget.confirmed == spent
    got = await backbone_of(world, ended)
    assert all((got[name] == wanted[name]).all() for name in wanted)


async def test_other_images_than_those_that_were_paid_for_are_a_fault(world: Any, api: Any) -> None:
    def stop(request: httpx.Request, count: int) -> Exception | None:
        if count == 3:
            raise Stopped(Why.SHUTDOWN)
        return None

    job = await world.submit(api(classes=3, fault=stop), queries=300, method=BIDF)
    await world.acquire_all(job)
    with pytest.raises(Stopped):
        await world.learn(job.id)
    request = (await world.store.load(job.id)).request.model_copy(update={"seed": 7})
    keys = [key async for key in world.redis.scan_iter(f"*{job.id}*", _type="hash")]
    (key,) = [key for key in keys if await world.redis.hexists(key, "request")]
    await world.redis.hset(key, "request", request.model_dump_json())
    ended = await world.learn(job.id)
    assert ended.error.code == "not_reproducible"
    world.balance(ended)


async def test_an_api_that_dies_in_the_midst_fails_the_job_and_keeps_its_answers(world: Any, api: Any) -> None:
    def die(request: httpx.Request, count: int) -> Exception | None:
        return httpx.ReadError("gone", request=request) if count >= 2 else None

    job = await world.submit(api(classes=3, fault=die), queries=300, method=BIDF)
    await world.acquire_all(job)
    ended = await world.learn(job.id)
    assert ended.error.code == "api_gave_up"
    assert ended.budget.confirmed > 0
    world.balance(ended)


@pytest.mark.parametrize("method", [BIDF, FREE, PURER], ids=lambda method: str(method["name"]))
async def test_a_budget_too_small_for_one_round_is_refused_before_anything_is_spent(
    world: Any, api: Any, method: dict[str, Any]
) -> None:
    one = api(classes=3)
    job = await world.submit(one, queries=20, method=method)
    await world.acquire_all(job)
    ended = await world.learn(job.id)
    assert (ended.error.code, ended.error.param) == ("method_unfit", "method")
    assert "raise" in ended.error.message
    assert one.charged == 0


@pytest.mark.parametrize("name", ["free", "purer"])
def test_weights_of_apis_are_refused_with_another_way_named(name: str) -> None:
    body = {"apis": [{"url": "http://zoo.test/v2/models/m"}], "budget": {"queries": 100}, "method": {"name": name}}
    with pytest.raises(ValueError, match="choose zeroth-order, surrogate or guided") as caught:
        JobRequest.model_validate(body)
    assert "method.gradients.source" in str(caught.value)
    JobRequest.model_validate(body | {"method": {"name": name, "gradients": {"source": "surrogate"}}})


async def test_an_api_of_another_size_is_dropped_by_a_method_that_asks_as_it_goes(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(shape=(3, 20, 20)), queries=100, min_apis=1, method={"name": "bidf_mkd"})
    await world.acquire(job.id, "a0")
    await world.acquire(job.id, "a1")
    told = (await world.store.get(job.id)).progress.per_api
    assert (told["a0"].state, told["a1"].state) == ("done", "dropped")
    assert "(3, 20, 20)" in told["a1"].reason
