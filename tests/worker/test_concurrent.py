"""Many requests under way at once, under faults of every kind: the books balance, and answers are the same in any order."""

import asyncio
import random
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from meta_server.store import keys
from metering.ledger import Outcome
from worker.queries import plan_of, queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def answers_of(world: Any, job_id: str) -> dict[int, bytes]:
    """Pool index -> the answer kept, each index once."""
    found: dict[int, bytes] = {}
    for settled in await world.store.ledger(job_id).settled("a0"):
        if settled.outcome is Outcome.CONFIRMED:
            kept = load(world.context.artifacts.read(settled.path))
            for index, row in zip(kept["indices"].tolist(), kept["probabilities"], strict=True):
                assert index not in found
                found[index] = row.tobytes()
    return found


def faulty(api: Any, problem: Any, rng: random.Random, *, many: list[int]) -> set[str | None]:
    """Make `api` slow, at times refusing, failing, or losing its answer; `many` collects how many requests it had at once.

    The keys that it met, and those that are added, it does not refuse as too large: what may have been charged before and is
    refused now is rightly given up as unconfirmed.
    """
    proper, at_once, met = api.handle, 0, set[str | None]()

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal at_once
        if not request.url.path.endswith("/infer"):
            return await proper(request)
        at_once += 1
        many.append(at_once)
        key = request.headers.get("idempotency-key")
        try:
            await asyncio.sleep(rng.random() * 0.02)
            fate = rng.random()
            if fate < 0.1:
                return problem(429, headers={"Retry-After": "0"})
            if fate < 0.15:
                return problem(503, headers={"Retry-After": "0"})
            large = int(request.headers["content-length"]) > 26 * 768
            if fate < 0.2 and large and (key is None or key not in met):
                return problem(413, max_images=24)
            response = await proper(request)
            await asyncio.sleep(rng.random() * 0.02)
            if fate > 0.95:
                raise httpx.ReadError("lost", request=request)
            return response
        finally:
            met.add(key)
            at_once -= 1

    api.handle = handle
    return met


@pytest.mark.parametrize("seed", range(5))
async def test_faults_in_any_order_change_no_answer_and_cost_nothing_twice(
    world: Any, api: Any, problem: Any, seed: int
) -> None:
    rng = random.Random(seed)
    one, many = api(), list[int]()
    met = faulty(one, problem, rng, many=many)
    world = world.changed(patience=30.0)
    job = await world.submit(one, queries=400)
    for _ in range(3):  # killed twice, at any moment
        task = asyncio.ensure_future(world.acquire(job.id, "a0"))
        if (await asyncio.wait({task}, timeout=rng.uniform(0.1, 0.4)))[0]:
            break
        held = await world.redis.hget(keys.job(job.id, "leases"), "held:acquire:a0")
        task.cancel()
        await asyncio.wait({task})
        met |= {hold.chunk.key(job.id) for hold in await world.store.ledger(job.id).open_holds("a0")}
        world.balance(await world.store.get(job.id))
        if held:
            fields = {"held:acquire:a0": held, "deadline:acquire:a0": "1", "attempts:acquire:a0": "0"}
            await world.redis.hset(keys.job(job.id, "leases"), mapping=fields)
    await asyncio.wait_for(world.acquire(job.id, "a0"), 30)
    told = await world.store.get(job.id)
    world.balance(told)
    events = (await world.store.events.page(job.id, limit=1000)).items
    assert [event.data for event in events if event.type == "warning"] == []
    assert told.progress.per_api["a0"].state == "done"
    assert told.budget.confirmed == one.charged == 400
    assert (told.budget.unconfirmed, told.budget.reserved) == (0, 0)
    assert len({key for key, _ in one.seen}) == len(one.seen)
    assert max(many) > 1
    stored = await world.store.load(job.id)
    planned = plan_of(stored).assigned[0]
    expected = one.answer(queries_of(stored.request, (3, 16, 16)).images(planned))
    assert await answers_of(world, job.id) == {
        int(index): row.tobytes() for index, row in zip(planned, expected.astype(np.float32), strict=True)
    }


async def test_a_key_spent_with_many_under_way_gives_all_it_has(world: Any, api: Any) -> None:
    one = api(budget=205)
    proper = one.handle

    async def slow(request: httpx.Request) -> httpx.Response:
        response = await proper(request)
        await asyncio.sleep(0.02)
        return response

    one.handle = slow
    told = await world.acquire_all(await world.submit(one, queries=400))
    assert told.budget.confirmed == one.charged == 205
    assert told.budget.reserved == 0
    assert told.progress.per_api["a0"].state == "done"


async def test_an_api_that_cannot_replay_risks_few_answers_at_once(world: Any, api: Any, problem: Any) -> None:
    one, many = api(idempotency=False), list[int]()
    faulty(one, lambda status, **_: problem(429, headers={"Retry-After": "0"}), random.Random(1), many=many)
    told = await world.changed(patience=1.0).acquire_all(await world.submit(one, queries=400))
    world.balance(told)
    assert max(many) <= 3
    assert told.budget.confirmed + told.budget.unconfirmed == one.charged
