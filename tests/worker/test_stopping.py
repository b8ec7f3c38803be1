"""Jobs that are cancelled or paused while they ask or learn, and go on."""

import asyncio
from typing import Any

import httpx
import pytest

from contracts.jobs import JobStatus
from meta_server.store import keys

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


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
