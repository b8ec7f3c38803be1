"""Work whose worker vanished is sent again, once; jobs that nobody works on are closed."""

import asyncio
import subprocess
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.jobs import ApiProgress, Job, JobRequest, JobStatus
from meta_server import reaper
from meta_server.queue import lane_of
from meta_server.reaper import Reaper
from meta_server.store import keys
from meta_server.store.holders import holder, is_gone
from meta_server.store.jobs import JobStore
from meta_server.store.secrets import Secrets
from meta_server.store.stored_job import LEARN
from metering import leases
from metering.leases import Leases
from metering.ledger import Chunk
from metering.scripts import Scripts

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


class FakeQueue:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str, role: str, *, tenant: str) -> None:
        self.sent.append(role)


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis, secrets=Secrets(Secrets.generate()))


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def one(store: JobStore, queue: Any, redis: Redis) -> Reaper:
    return Reaper(store, queue, redis, beat=0.05)


@pytest.fixture
async def job(store: JobStore) -> Job:
    body = {"apis": [{"url": "http://api.test/v2/models/m"}], "budget": {"queries": 10}}
    return (await store.create(JobRequest.model_validate(body)))[0]


async def warnings(store: JobStore, job: Job) -> list[dict[str, Any]]:
    return [event.data for event in (await store.events.page(job.id)).items if event.type == "warning"]


def a_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


async def expire(redis: Any, job: Job, role: str) -> None:
    await redis.hset(keys.job(job.id, "leases"), f"deadline:{role}", "1")


async def test_a_lost_holder_is_replaced_once(
    one: Reaper, store: JobStore, queue: FakeQueue, redis: Redis, job: Job
) -> None:
    await one.round()
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await one.round()
    assert queue.sent == []
    await expire(redis, job, "acquire:a0")
    await one.round()
    await one.round()
    assert queue.sent == ["acquire:a0"]
    (told,) = await warnings(store, job)  # the person who watches sees why nothing moved
    assert told["api"] == "a0"
    assert "not heard of any more" in told["message"]


async def test_a_role_that_was_handed_on_in_order_is_sent_and_nobody_is_alarmed(
    one: Reaper, store: JobStore, queue: FakeQueue, job: Job
) -> None:
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await store.leases.release(lease, orderly=True)
    await one.round()
    assert queue.sent == ["acquire:a0"]
    assert await warnings(store, job) == []


async def test_a_holder_that_is_seen_to_be_gone_is_replaced_before_its_lease_ends(
    one: Reaper, store: JobStore, queue: FakeQueue, job: Job
) -> None:
    with a_process() as worker:
        told = f"{holder().rpartition(':')[0]}:{worker.pid}"
        lease = await store.take(job.id, "acquire:a0", told)
        assert lease is not None
        await store.work.begin(job.id, lease)
        await one.round()
        await one.beat()
        assert queue.sent == []
        worker.kill()
    await one.beat()
    await one.beat()
    assert queue.sent == ["acquire:a0"]
    assert len(await warnings(store, job)) == 1
    again = await store.take(job.id, "acquire:a0", told)
    assert again is not None
    assert again.fence > lease.fence


@pytest.mark.parametrize(
    "told",
    ["w", "", "host:1", f"{holder().rpartition(':')[0]}:x", f"host:another.machine:{2**22 + 1}", holder()],
    ids=["name", "nothing", "old", "no-number", "elsewhere", "alive"],  # the same in each process that runs tests
)
def test_nobody_is_gone_of_whom_that_is_not_known(told: str) -> None:
    assert not is_gone(told)


async def test_a_job_whose_worker_vanished_is_sent_again_within_90_seconds(
    one: Reaper, store: JobStore, queue: FakeQueue, redis: Redis, job: Job
) -> None:
    """Also when it was taken before the reaper first looked, and when the server that reaped was killed at the last moment."""
    assert leases.SECONDS + reaper.SECONDS + 3 * reaper.BEAT <= 70
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await one.round()
    assert queue.sent == []
    await expire(redis, job, "acquire:a0")
    await one.round()
    assert queue.sent == ["acquire:a0"]


async def test_a_lease_that_ends_between_two_rounds_is_seen_by_the_next_beat_and_so_is_a_lost_message(
    store: JobStore, queue: Any, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "PATIENCE", 0.1)
    short = Leases(Scripts(redis), seconds=0.05)
    lease = await short.take(keys.job(job.id, "leases"), "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    one = Reaper(store, queue, redis)
    await one.beat()  # a round: the next one is 15 seconds away
    with anyio.fail_after(10):
        while len(queue.sent) < 2:
            await asyncio.sleep(0.01)
            await one.beat()
    assert set(queue.sent) == {"acquire:a0"}


async def test_a_job_that_began_since_the_round_is_looked_at_before_those_that_wait(
    store: JobStore, queue: Any, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"apis": [{"url": "http://api.test/v2/models/m"}], "budget": {"queries": 10}}
    jobs = [job, *[(await store.create(JobRequest.model_validate(body)))[0] for _ in range(3)]]
    looked: list[str] = []

    async def look(self: Reaper, job_id: str, _: Any) -> None:
        looked.append(job_id)

    monkeypatch.setattr(Reaper, "_look", look)
    monkeypatch.setattr(reaper, "EVERY", 0.0)
    one = Reaper(store, queue, redis, beat=0.0)  # which has time for none of the round
    await one.beat()
    lease = await store.take(jobs[-1].id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(jobs[-1].id, lease)
    await one.beat()
    one._beat = 10.0
    await one.beat()
    assert looked[0] == jobs[-1].id
    assert set(looked) == {each.id for each in jobs}


async def test_a_message_that_died_with_its_worker_is_sent_again_although_others_wait(
    one: Reaper, queue: FakeQueue, redis: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.rpush(lane_of(job.id, DEFAULT_TENANT), "another message")
    await one.round()
    await one.round()
    assert queue.sent == []
    monkeypatch.setattr(reaper, "LONGEST", -1.0)
    await one.round()
    assert queue.sent == ["acquire:a0"]


async def test_a_lost_message_is_sent_again_when_its_queue_is_empty(
    one: Reaper, queue: FakeQueue, redis: Any, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "PATIENCE", -1.0)
    await one.round()
    assert queue.sent == []  # it was sent a moment ago
    await redis.rpush(lane_of(job.id, DEFAULT_TENANT), "another message")
    await one.round()
    assert queue.sent == []  # its message may be waiting still
    await redis.delete(lane_of(job.id, DEFAULT_TENANT))
    await one.round()
    assert queue.sent == ["acquire:a0"]


async def test_the_learner_is_sent_when_nobody_did(
    one: Reaper, store: JobStore, queue: FakeQueue, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="done", planned=9))
    monkeypatch.setattr(reaper, "PATIENCE", -1.0)
    await one.round()
    await one.round()
    assert queue.sent == [LEARN]


async def test_a_cancelled_job_whose_worker_vanished_is_closed(
    one: Reaper, store: JobStore, queue: FakeQueue, redis: Any, job: Job
) -> None:
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await store.ledger(job.id).reserve(lease, Chunk(api="a0", number=0, start=0, stop=4, digest="d"))
    await store.moves.cancel(job.id)
    await one.round()
    assert (await store.get(job.id)).status == JobStatus.CANCELLING
    await expire(redis, job, "acquire:a0")
    await one.round()
    ended = await store.get(job.id)
    assert (ended.status, ended.budget.unconfirmed, ended.budget.reserved) == (JobStatus.CANCELLED, 4, 0)
    await one.round()
    assert await redis.smembers(keys.OPEN_JOBS) == set()
    assert queue.sent == []


async def test_a_job_that_is_paused_after_its_worker_was_killed_rests_at_once(
    one: Reaper, store: JobStore, job: Job
) -> None:
    with a_process() as worker:
        lease = await store.take(job.id, "acquire:a0", f"{holder().rpartition(':')[0]}:{worker.pid}")
        assert lease is not None
        await store.work.begin(job.id, lease)
        assert (await store.moves.pause(job.id)).status == JobStatus.PAUSING
        await one.round()
        assert (await store.get(job.id)).status == JobStatus.PAUSING
        worker.kill()
    await one.round()
    await one.round()
    assert (await store.get(job.id)).status == JobStatus.PAUSED


async def test_too_few_apis_fail_the_job_although_nobody_said_so(one: Reaper, store: JobStore, job: Job) -> None:
    lease = await store.take(job.id, "acquire:a0", "w")
    assert lease is not None
    await store.work.begin(job.id, lease)
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="dropped", reason="down"))
    await one.round()
    assert (await store.get(job.id)).status == JobStatus.FAILED


async def test_only_one_of_many_reaps(
    store: JobStore, queue: Any, redis: Redis, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[Reaper] = []

    async def count(self: Reaper) -> None:
        rounds.append(self)

    monkeypatch.setattr(Reaper, "beat", count)
    reapers = [Reaper(store, queue, redis, beat=0.01) for _ in range(3)]
    tasks = [asyncio.ensure_future(each.run()) for each in reapers]
    await asyncio.sleep(0.3)
    while any(not task.done() for task in tasks):  # before Python 3.12 a cancellation may be swallowed inside redis-py
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=0.1)
    assert len(set(map(id, rounds))) == 1
    assert len(rounds) > 2
