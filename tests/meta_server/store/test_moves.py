from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import MOVES, ApiProgress, JobError, JobRequest, JobStatus
from contracts.problems import ProblemError
from meta_server.store import keys
from meta_server.store.jobs import JobStore
from meta_server.store.stored_job import LEARN, acquire_role
from metering.ledger import BudgetSpent, JobClosed
from metering.records import MoveRefused
from tests.meta_server.store.conftest import chunk, taken

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Make = Callable[..., JobRequest]


async def test_a_queued_job_is_cancelled_at_once_and_only_once(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    assert (await store.moves.cancel(job.id)).status == JobStatus.CANCELLED
    with pytest.raises(ProblemError) as raised:
        await store.moves.cancel(job.id)
    assert raised.value.problem.status == 409
    lease = await taken(store, job.id, acquire_role("a0"))
    assert await store.work.begin(job.id, lease) == JobStatus.CANCELLED


async def test_a_running_job_is_cancelled_when_its_workers_have_stopped(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    assert await store.work.begin(job.id, lease) == JobStatus.RUNNING
    ledger = store.ledger(job.id)
    await ledger.reserve(lease, chunk())
    assert (await store.moves.cancel(job.id)).status == JobStatus.CANCELLING
    assert (await store.moves.cancel(job.id)).status == JobStatus.CANCELLING
    assert not await store.moves.close(job.id)
    await store.leases.release(lease)
    assert await store.moves.close(job.id)
    ended = await store.get(job.id)
    assert ended.status == JobStatus.CANCELLED
    assert (ended.budget.unconfirmed, ended.budget.reserved, ended.budget.left) == (10, 0, 90)
    assert ended.finished_at is not None


async def test_every_move_obeys_the_table(store: JobStore, redis: Redis, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    for status, targets in MOVES.items():
        for target in JobStatus:
            await redis.hset(keys.job(job.id, "record"), "status", status)
            try:
                await store._records.move(keys.records(job.id), target)
                moved = True
            except MoveRefused:
                moved = False
            assert moved == (target in targets), (status, target)


@pytest.mark.parametrize(
    ("call", "from_", "to"),
    [
        ("pause", "queued", "paused"),
        ("pause", "running", "pausing"),
        ("pause", "pausing", "pausing"),
        ("pause", "paused", "paused"),
        *(("pause", ended, None) for ended in ("cancelling", "cancelled", "succeeded", "failed")),
        ("resume", "paused", "queued"),
        ("resume", "queued", "queued"),
        ("resume", "running", "running"),
        *(("resume", other, None) for other in ("pausing", "cancelling", "cancelled", "succeeded", "failed")),
        ("retry", "failed", "queued"),
        *(("retry", other, None) for other in JobStatus if other != "failed"),
        *(("cancel", open_, "cancelling") for open_ in ("running", "pausing", "cancelling", "paused")),
        ("cancel", "queued", "cancelled"),
        *(("cancel", ended, None) for ended in ("cancelled", "succeeded", "failed")),
    ],
)
async def test_what_a_person_may_ask_of_a_job_in_each_state(
    call: str, from_: str, to: str | None, store: JobStore, redis: Redis, request_of: Make
) -> None:
    job, _ = await store.create(request_of(1))
    role = "learn" if from_ not in ("paused", "failed") or call == "cancel" else None
    lease = await taken(store, job.id, role) if role else None  # somebody is at work on it
    await redis.hset(keys.job(job.id, "record"), "status", from_)
    if to is None:
        with pytest.raises(ProblemError) as raised:
            await getattr(store.moves, call)(job.id)
        assert (raised.value.problem.status, await store.status(job.id)) == (409, from_)
        return
    assert (await getattr(store.moves, call)(job.id)).status == to
    if lease is not None:
        await store.leases.release(lease)
    await store.moves.close(job.id)
    ends = {"pausing": "paused", "cancelling": "cancelled"}
    assert await store.status(job.id) == ends.get(to, to)


async def test_a_paused_job_keeps_its_holds_and_says_why(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    await store.work.begin(job.id, lease)
    await store.ledger(job.id).reserve(lease, chunk())
    assert (await store.moves.pause(job.id, reason="the disk is full", lease=lease)).status == JobStatus.PAUSING
    with pytest.raises(JobClosed):
        await store.ledger(job.id).reserve(lease, chunk(number=1))
    await store.leases.release(lease)
    assert not await store.moves.close(job.id)  # the reaper goes on looking after it
    told = await store.get(job.id)
    assert (told.status, told.reason, told.budget.reserved) == (JobStatus.PAUSED, "the disk is full", 10)
    reasons = [event.data.get("reason") for event in (await store.events.page(job.id)).items]
    assert reasons[-2:] == ["the disk is full"] * 2
    assert (await store.moves.resume(job.id)).reason is None
    await store.moves.pause(job.id)
    ended = await store.moves.cancel(job.id)
    assert (ended.status, ended.budget.reserved, ended.budget.unconfirmed) == (JobStatus.CANCELLED, 0, 10)


async def test_rest_does_not_count_as_work(store: JobStore, clock: Any, request_of: Make) -> None:
    job, _ = await store.create(request_of(1, budget={"queries": 100, "seconds": 60}))
    for number in range(3):
        lease = await taken(store, job.id, acquire_role("a0"))
        await store.work.begin(job.id, lease)
        await clock.forward(20 - 1)
        await store.ledger(job.id).reserve(lease, chunk(number=number))
        await clock.forward(1)
        if number < 2:
            await store.leases.renew(lease)
            await store.moves.pause(job.id, lease=lease)
            await store.leases.release(lease)
            await store.moves.close(job.id)
            await clock.forward(3600)
            await store.moves.resume(job.id)
    with pytest.raises(BudgetSpent):
        await store.ledger(job.id).reserve(lease, chunk(number=3))


async def test_a_retried_job_keeps_what_it_has_and_counts_attempts_anew(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(2))
    lease = await taken(store, job.id, LEARN)
    await store.work.begin(job.id, lease)
    await store.work.checkpoint(job.id, lease, "backbone", "here")
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u0", state="done", planned=100))
    await store.work.set_api(job.id, lease, "a1", ApiProgress(url="u1", state="dropped", planned=100, reason="down"))
    await store.moves.fail(job.id, JobError(code="c", message="m"), lease=lease)
    with pytest.raises(ProblemError, match="still stopping"):
        await store.moves.retry(job.id)
    await store.leases.release(lease)
    for _ in range(3):
        await store.leases.release(await taken(store, job.id, LEARN))
    told = await store.moves.retry(job.id)
    assert (told.status, told.error, told.finished_at, told.attempt) == (JobStatus.QUEUED, None, None, 0)
    stored = await store.load(job.id)
    assert stored.checkpoints == {"backbone": "here"}
    assert stored.due() == [acquire_role("a1")]
    assert stored.apis["a1"].reason is None
    assert (await taken(store, job.id, LEARN)).attempt == 1


async def test_events_go_on_over_a_retry(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    await store.moves.fail(job.id, JobError(code="c", message="m"))
    await store.moves.retry(job.id)
    await store.moves.cancel(job.id)
    seen = (await store.events.page(job.id)).items
    assert [event.data["status"] for event in seen] == ["queued", "failed", "queued", "cancelled"]
