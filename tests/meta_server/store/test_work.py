from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import ApiProgress, JobError, JobRequest, JobStatus, Phase
from contracts.meta_models import BackboneConfig, MetaModel, Score
from contracts.problems import ProblemError
from meta_server.store import events, ids, keys, work
from meta_server.store.jobs import JobStore
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.stored_job import LEARN, acquire_role
from metering.leases import AttemptsExhausted, LeaseLost
from metering.ledger import Outcome
from metering.records import MoveRefused
from tests.meta_server.store.conftest import chunk, taken

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Make = Callable[..., JobRequest]


async def test_metrics_outlive_the_trimming_of_events_thinned_to_a_bound(
    store: JobStore, redis: Redis, request_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "EVENTS_KEPT", 5)
    monkeypatch.setattr(work, "METRICS_KEPT", 8)
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, LEARN)
    for step in range(1, 101):
        await store.work.metrics(job.id, lease, step, 100, {"loss": 1 / step})
        kept = (await store.events.metrics(job.id)).items
        assert min(step, 8) <= len(kept) <= 16
        assert (kept[0].step, kept[-1].step) == (1, step)
        assert [one.step for one in kept] == sorted({one.step for one in kept})
        assert all(one.values == {"loss": 1 / one.step} for one in kept)
    told = {event.id: event.data["step"] for event in (await store.events.page(job.id, limit=1000)).items[1:]}
    assert [told[one.id] for one in kept] == [one.step for one in kept]  # a point has the id of its event
    assert await store.events.trim(job.id) > 0
    assert (await store.events.metrics(job.id)).items == kept
    assert (await store.events.metrics(job.id, after=kept[2].id, limit=3)).items == kept[3:6]
    with pytest.raises(LeaseLost):
        await store.work.metrics(job.id, replace(lease, fence=lease.fence + 1), 101, 101, {"loss": 0.0})
    assert 0 < await redis.ttl(keys.job(job.id, "metrics")) <= work.METRICS_SECONDS
    await store.leases.release(lease)
    await store.moves.fail(job.id, JobError(code="c", message="m"))
    await store.delete(job.id)
    assert await redis.keys(f"*{job.id}*") == []


async def test_a_stale_worker_can_write_nothing(store: JobStore, clock: Any, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    stale = await taken(store, job.id, LEARN)
    await store.work.begin(job.id, stale)
    assert await store.take(job.id, LEARN, "other") is None
    await clock.forward(46)
    fresh = await taken(store, job.id, LEARN)
    assert fresh.fence > stale.fence
    before = await store.get(job.id)
    for write in (
        store.work.phase(job.id, stale, Phase.META_TRAIN),
        store.work.progress(job.id, stale, Phase.META_TRAIN, 0.5),
        store.work.checkpoint(job.id, stale, "x", "y"),
        store.moves.fail(job.id, JobError(code="c", message="m"), lease=stale),
        store.work.publish(job.id, stale, meta_model(job.id), folder="f"),
        store.ledger(job.id).reserve(stale, chunk()),
        store.leases.renew(stale),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert not await store.leases.release(stale)
    assert await store.get(job.id) == before


def meta_model(job_id: str) -> MetaModel:
    return MetaModel.model_validate(
        {
            "id": ids.new("mm"),
            "name": "m",
            "created_at": "2026-01-01T00:00:00Z",
            "job": job_id,
            "method": "pqd",
            "backbone": BackboneConfig(),
            "input_shape": (3, 32, 32),
            "seed": 0,
            "version": "0",
            "queries": 1,
            "apis": [],
            "evaluation": None,
            "score": Score(accuracy={"1": 40.0}, interval={"1": 1.0}),
            "random_score": None,
            "files": {},
        }
    )


async def test_publishing_shows_model_state_and_events_together(
    store: JobStore, redis: Redis, request_of: Make
) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, LEARN)
    published = meta_model(job.id)
    models = MetaModelStore(redis)
    with pytest.raises(MoveRefused):
        await store.work.publish(job.id, lease, published, folder="f")
    assert (await models.list()).items == []
    await store.work.begin(job.id, lease)
    await store.work.publish(job.id, lease, published, folder="f")
    ended = await store.get(job.id)
    assert (ended.status, ended.meta_model, ended.score) == (JobStatus.SUCCEEDED, published.id, published.score)
    assert await models.get(published.id) == published
    assert await models.folder(published.id) == "f"
    assert (await models.list()).items == [published]
    assert [event.type for event in (await store.events.page(job.id)).items][-2:] == ["published", "status"]
    with pytest.raises(ProblemError):
        await models.get("mm_x")


async def test_attempts_end_unless_there_is_progress(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    for attempt in range(1, 4):
        lease = await taken(store, job.id, LEARN)
        assert lease.attempt == attempt
        await store.leases.release(lease)
    with pytest.raises(AttemptsExhausted):
        await store.take(job.id, LEARN, "test")
    role = acquire_role("a0")
    for _ in range(5):  # an orderly end is no attempt
        assert await store.leases.release(await taken(store, job.id, role), orderly=True)
    for _ in range(5):  # nor is one that got somewhere
        lease = await taken(store, job.id, role)
        await store.work.checkpoint(job.id, lease, "name", "value")
        await store.leases.release(lease)
    assert (await store.load(job.id)).checkpoints == {"name": "value"}


async def test_progress_and_seconds_follow_the_phases(store: JobStore, clock: Any, request_of: Make) -> None:
    job, _ = await store.create(request_of(2))
    lease = await taken(store, job.id, acquire_role("a0"))
    await store.work.begin(job.id, lease)
    await store.work.phase(job.id, lease, Phase.PROBE)
    await clock.forward(2)
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="acquiring", planned=100))
    await store.work.phase(job.id, lease, Phase.ACQUIRE)
    await store.work.phase(job.id, lease, Phase.PROBE)  # a later API's probe takes nothing back
    ledger = store.ledger(job.id)
    await ledger.reserve(lease, chunk())
    await ledger.settle(lease, chunk(), Outcome.CONFIRMED, path="p")
    told = await store.get(job.id)
    assert told.phase == Phase.ACQUIRE
    assert told.seconds == {Phase.PROBE: 2.0}
    assert told.progress.phase == {Phase.PROBE: 0.5, Phase.ACQUIRE: 0.05}
    assert told.progress.per_api["a0"].answered == 10
    await clock.forward(3)
    await store.work.phase(job.id, lease, Phase.META_TRAIN)
    await store.work.metrics(job.id, lease, 1, 4, {"loss": 0.5})
    told = await store.get(job.id)
    assert told.seconds == {Phase.PROBE: 2.0, Phase.ACQUIRE: 3.0}
    assert told.progress.phase == {Phase.PROBE: 0.5, Phase.ACQUIRE: 0.05, Phase.META_TRAIN: 0.25}  # it began early
    assert told.metrics == {"loss": 0.5}


async def test_the_first_shape_told_stands(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(2))
    lease = await taken(store, job.id, LEARN)
    assert await store.work.agree_on_shape(job.id, lease, (3, 32, 32)) == (3, 32, 32)
    assert await store.work.agree_on_shape(job.id, lease, (3, 64, 64)) == (3, 32, 32)
    assert (await store.load(job.id)).input_shape == (3, 32, 32)
