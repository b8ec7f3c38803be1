"""What breaks while a job runs, one test a fault: docs/reliability.md names each with its outcome."""

import asyncio
import errno
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import worker.watch
from contracts.jobs import JobStatus
from contracts.problems import ProblemError
from meta_server.orphans import OrphanSweeper
from meta_server.store import keys
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.stored_job import LEARN
from metering import leases
from metering.leases import LeaseLost
from metering.ledger import Ledger, Outcome
from metering.scripts import StoreUnavailable
from worker.watch import Stopped, Why

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def failing(times: int, error: Exception, then: Any) -> Any:
    """A stand-in for the coroutine function `then` that raises `error` so many times first."""
    left = [times]

    async def stand_in(*args: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return await then(*args, **named)

    return stand_in


async def test_redis_gone_for_a_moment_costs_no_attempt_and_no_answer(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = api()
    job = await world.submit(one, queries=100)
    monkeypatch.setattr(Ledger, "settle", failing(1, StoreUnavailable("gone"), Ledger.settle))
    monkeypatch.setattr(leases.Leases, "release", failing(2, StoreUnavailable("gone"), leases.Leases.release))
    with pytest.raises(StoreUnavailable):
        await world.acquire(job.id, "a0")
    told = await world.redis.hgetall(keys.job(job.id, "leases"))
    assert (told[b"held:acquire:a0"], told[b"attempts:acquire:a0"]) == (b"", b"0")
    assert (await world.store.get(job.id)).budget.reserved == 16  # charged, answered, not settled
    await world.acquire(job.id, "a0")
    ended = await world.store.get(job.id)
    assert ended.budget.confirmed == one.charged == 100
    assert (ended.budget.unconfirmed, ended.budget.reserved) == (0, 0)


async def test_redis_unreachable_for_longer_than_a_lease_stops_the_task(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = api()
    proper = one.handle
    sent = asyncio.Event()

    async def stuck(request: Any) -> Any:
        response = await proper(request)
        if one.requests == 2 and not sent.is_set():
            sent.set()
            await asyncio.sleep(60)
        return response

    one.handle = stuck
    monkeypatch.setattr(worker.watch, "SECONDS", 0.3)
    monkeypatch.setattr(worker.watch, "GRACE", 0.1)
    job = await world.submit(one, queries=100)
    task = asyncio.ensure_future(world.changed(give_back=0.1).acquire(job.id, "a0"))
    await sent.wait()
    with monkeypatch.context() as away:
        for owner, name in ((leases.Leases, "renew"), (leases.Leases, "release"), (type(world.store), "status")):
            away.setattr(owner, name, failing(10**6, StoreUnavailable("unreachable"), None))
        with pytest.raises((Stopped, StoreUnavailable)) as stopped:
            await asyncio.wait_for(task, 20)
    assert isinstance(stopped.value, StoreUnavailable) or stopped.value.why is Why.LOST
    await world.redis.hset(keys.job(job.id, "leases"), "deadline:acquire:a0", "1")
    await world.acquire(job.id, "a0")
    ended = await world.store.get(job.id)
    assert ended.budget.confirmed == one.charged == 100
    assert ended.budget.unconfirmed == 0


async def test_redis_that_is_full_stops_the_asking_until_there_is_room(world: Any, api: Any) -> None:
    async def full(is_full: bool) -> None:
        await world.redis.config_set("maxmemory", 1 if is_full else 0)

    one = api()
    proper = one.handle

    async def filling(request: Any) -> Any:
        response = await proper(request)
        if one.requests == 3:
            await full(True)
        return response

    job = await world.submit(one, queries=100)
    impatient = world.changed(give_back=0.1)
    try:
        await full(True)
        with pytest.raises(StoreUnavailable):
            await impatient.acquire(job.id, "a0")
        assert one.charged == 0
        await full(False)
        one.handle = filling
        with pytest.raises((Stopped, StoreUnavailable)):
            await asyncio.wait_for(impatient.acquire(job.id, "a0"), 30)
    finally:
        await full(False)
    told = await world.store.get(job.id)
    assert told.budget.confirmed < one.charged <= told.budget.confirmed + told.budget.reserved
    one.handle = proper
    await world.redis.hset(keys.job(job.id, "leases"), "deadline:acquire:a0", "1")
    await world.acquire(job.id, "a0")
    ended = await world.store.get(job.id)
    assert ended.budget.confirmed == one.charged == 100
    assert (ended.budget.unconfirmed, ended.budget.reserved) == (0, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_pauses_the_job_and_loses_no_answer(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, "No space left on device")

    one, other = api(), api()
    job = await world.submit(one, other, queries=200)
    with monkeypatch.context() as crowded:
        crowded.setattr(world.context.artifacts, "write", full)
        told = await world.acquire_all(job)
    assert told.status == JobStatus.PAUSED
    assert told.reason.startswith("disk_full")
    assert (told.budget.confirmed, told.budget.unconfirmed, told.budget.reserved) == (0, 0, one.charged + other.charged)
    await world.store.moves.resume(job.id)
    told = await world.acquire_all(job)
    assert told.budget.confirmed == one.charged + other.charged == 200
    assert told.budget.unconfirmed == 0
    with monkeypatch.context() as crowded:  # the learner's checkpoint, then
        crowded.setattr(world.context.artifacts, "write", full)
        assert (await world.learn(job.id)).status == JobStatus.PAUSED
    await world.store.moves.resume(job.id)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_two_workers_that_both_believe_they_own_a_job(world: Any, api: Any) -> None:
    """The first slept through its lease: whatever it still tries is refused, and nothing is paid for twice."""
    one = api()
    proper = one.handle
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> Any:
        response = await proper(request)
        if one.requests == 3 and not asleep.is_set():
            asleep.set()
            await wake.wait()
        return response

    one.handle = slow
    job = await world.submit(one, queries=200)
    first = asyncio.ensure_future(world.changed(poll_every=60.0).acquire(job.id, "a0"))
    await asleep.wait()
    await world.redis.hset(keys.job(job.id, "leases"), "deadline:acquire:a0", "1")
    await world.acquire(job.id, "a0")
    after = await world.store.get(job.id)
    events = (await world.store.events.page(job.id, limit=1000)).items
    wake.set()
    with pytest.raises(LeaseLost):
        await first
    assert await world.store.get(job.id) == after
    assert (await world.store.events.page(job.id, limit=1000)).items == events
    assert after.budget.confirmed == one.charged == 200


async def test_a_poisoned_checkpoint_is_refused_by_its_hash_and_made_again(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import worker.learn

    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)

    async def killed(*_: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(worker.learn, "_publish", killed)
        with pytest.raises(asyncio.CancelledError):
            await world.learn(job.id)
    (path,) = world.context.artifacts.list(f"jobs/{job.id}/checkpoints")
    proper = world.context.artifacts.read(path)
    world.context.artifacts.write(path, proper[:-4] + b"\x00\x00\x80\x7f")  # a weight that is infinite
    ended = await world.learn(job.id)
    assert ended.status == JobStatus.SUCCEEDED
    warnings = [
        e.data["message"] for e in (await world.store.events.page(job.id, limit=1000)).items if e.type == "warning"
    ]
    assert any("checkpoint" in message for message in warnings)
    kept = world.context.artifacts.list(f"jobs/{job.id}/checkpoints")
    assert proper in [world.context.artifacts.read(one) for one in kept if one != path]


async def test_a_stored_answer_that_was_altered_is_not_learned_from(world: Any, api: Any) -> None:
    job = await world.submit(api(), api(), queries=128)
    await world.acquire_all(job)
    path, *_ = world.context.artifacts.list(f"jobs/{job.id}/answers")
    world.context.artifacts.write(path, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    ended = await world.learn(job.id)
    assert ended.status == JobStatus.FAILED
    assert ended.error.code == "artifact_damaged"


async def test_out_of_memory_fails_with_its_code(world: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    monkeypatch.setattr("worker.learn.METHODS", {"pqd": SimpleNamespace(learn=greedy, adaptive=False)})
    ended = await world.learn(job.id)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "out_of_memory")
    assert ended.budget.confirmed == 64


async def test_an_api_that_answers_the_same_for_everything_is_warned_of_and_asked_no_more(world: Any, api: Any) -> None:
    useless, good = api(), api()
    useless.answer = lambda pixels: np.full((len(pixels), 5), 0.2, "<f4")
    told = await world.acquire_all(await world.submit(useless, good, queries=600, min_apis=1))
    warned = [e.data for e in (await world.store.events.page(told.id, limit=1000)).items if e.type == "warning"]
    assert [one["api"] for one in warned if "same answer" in one["message"]] == ["a0"]
    assert (useless.charged < 300, good.charged) == (True, 300)
    world.balance(told)


async def test_an_api_that_lies_costs_no_more_than_its_share(world: Any, api: Any) -> None:
    """Well-formed answers that are wrong cannot be told from right ones; the job goes through, and so do the others."""
    rng = np.random.default_rng(0)
    liar, good = api(), api()
    liar.answer = lambda pixels: rng.dirichlet(np.ones(5), len(pixels)).astype("<f4")
    told = await world.acquire_all(await world.submit(liar, good, queries=200))
    assert (liar.charged, good.charged) == (100, 100)
    assert (await world.learn(told.id)).status == JobStatus.SUCCEEDED


async def test_files_that_no_record_names_are_removed_after_their_grace(world: Any, api: Any) -> None:
    artifacts = world.context.artifacts
    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    owned = artifacts.list("jobs") + artifacts.list("meta-models")
    orphans = [
        f"jobs/{job.id}/answers/a0.9-1.safetensors",
        f"jobs/{job.id}/answers/.part-killed",
        f"jobs/{job.id}/checkpoints/backbone-9.safetensors",
        f"meta-models/{job.id}/9/model.safetensors",
        "jobs/job_gone/answers/a0.0-1.safetensors",
        "meta-models/job_gone/1/config.json",
    ]
    for path in orphans:
        artifacts.write(path, b"nobody knows")
    assert await OrphanSweeper(world.redis, artifacts).round() == []
    tomorrow = OrphanSweeper(world.redis, artifacts, now=lambda: datetime.now(UTC) + timedelta(days=2))
    assert sorted(await tomorrow.round()) == sorted(orphans)
    assert artifacts.list("jobs") + artifacts.list("meta-models") == owned
    assert not (artifacts.local(f"jobs/{job.id}").parent / "job_gone").exists()


async def test_a_meta_model_outlives_its_job_and_can_be_restored_for_a_month(world: Any, api: Any) -> None:
    artifacts = world.context.artifacts
    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    model = (await world.learn(job.id)).meta_model

    def in_days(days: float) -> OrphanSweeper:
        return OrphanSweeper(world.redis, artifacts, now=lambda: datetime.now(UTC) + timedelta(days=days))

    await world.store.delete(job.id)
    await in_days(400).round()
    assert artifacts.list("jobs") == []
    assert len(artifacts.list("meta-models")) >= 5
    models = MetaModelStore(world.redis)
    await models.delete(model)
    await in_days(20).round()
    assert (await models.restore(model)).id == model
    await models.delete(model)
    await in_days(40).round()
    assert artifacts.list("meta-models") == []
    with pytest.raises(ProblemError):
        await models.restore(model)


async def test_cancel_reaches_a_worker_stuck_in_a_slow_api(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = api()
    proper = one.handle
    stuck = asyncio.Event()

    async def slow(request: Any) -> Any:
        response = await proper(request)
        if one.requests == 2:
            stuck.set()
            await asyncio.sleep(3600)
        return response

    one.handle = slow
    monkeypatch.setattr(worker.watch, "GRACE", 0.2)
    job = await world.submit(one, queries=200)
    task = asyncio.ensure_future(world.changed(timeout=3600.0).acquire(job.id, "a0"))
    await stuck.wait()
    await world.store.moves.cancel(job.id)
    await asyncio.wait_for(task, 10)
    told = await world.store.get(job.id)
    assert told.status == JobStatus.CANCELLED
    assert told.budget.reserved == 0
    assert told.budget.unconfirmed >= 32
    assert told.budget.confirmed + told.budget.unconfirmed == one.charged


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
async def test_a_workers_clock_that_jumps_changes_nothing(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Deadlines are Redis's; a worker's wall clock only says whether a hold is too old to be replayed."""
    import time

    import worker.remote

    one = api()
    job = await world.submit(one, queries=200)
    clock = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr(worker.remote, "time", clock)
    lost = failing(1, StoreUnavailable("gone"), Ledger.settle)
    monkeypatch.setattr(Ledger, "settle", lost)
    with pytest.raises(StoreUnavailable):
        await world.acquire(job.id, "a0")
    await world.acquire(job.id, "a0")
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 200
    assert told.budget.unconfirmed == 0
    assert {one.outcome for one in await world.store.ledger(job.id).settled()} == {Outcome.CONFIRMED}
    assert (job.id, LEARN) in world.queue.sent
