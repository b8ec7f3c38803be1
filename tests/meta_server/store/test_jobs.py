import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import MOVES, ApiProgress, JobChange, JobError, JobRequest, JobStatus, Phase
from contracts.meta_models import BackboneConfig, MetaModel, Score
from contracts.problems import ProblemError
from meta_server.store import events, ids, keys, work
from meta_server.store.jobs import JobStore
from meta_server.store.meta_models import MetaModelStore
from meta_server.store.stored_job import LEARN, acquire_role
from metering.leases import AttemptsExhausted, Lease, LeaseLost
from metering.ledger import BudgetSpent, Chunk, JobClosed, Outcome
from metering.records import MoveRefused

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Make = Callable[..., JobRequest]


async def taken(store: JobStore, job_id: str, role: str) -> Lease:
    lease = await store.take(job_id, role, "test")
    assert lease is not None
    return lease


def chunk(api: str = "a0", number: int = 0, start: int = 0, stop: int = 10) -> Chunk:
    return Chunk(api=api, number=number, start=start, stop=stop, digest="d" * 64)


async def test_what_is_created_is_read_back(store: JobStore, request_of: Make) -> None:
    job, created = await store.create(request_of(3, name="first", tags=["a"]), idempotency_key=None)
    assert created
    assert job == await store.get(job.id)
    assert (job.status, job.phase, job.name, job.tags) == (JobStatus.QUEUED, None, "first", ["a"])
    assert (job.budget.limit, job.budget.left, job.attempt) == (300, 300, 0)
    assert {api: one.planned for api, one in job.progress.per_api.items()} == {"a0": 100, "a1": 100, "a2": 100}


async def test_api_keys_are_encrypted_and_never_told(store: JobStore, redis: Redis, request_of: Make) -> None:
    job, _ = await store.create(request_of(2), idempotency_key=None)
    stored = await redis.hgetall(keys.job(job.id, "record"))
    assert b"secret-0" not in b"".join(stored.values())
    assert "secret-0" not in job.model_dump_json()
    key = await store.api_key(job.id, "a1")
    assert key is not None
    assert key.get_secret_value() == "secret-1"


async def test_the_same_idempotency_key_gives_the_same_job(store: JobStore, clock: Any, request_of: Make) -> None:
    first, created = await store.create(request_of(1), idempotency_key="k")
    again, created_again = await store.create(request_of(1), idempotency_key="k")
    assert (created, created_again, again.id) == (True, False, first.id)
    with pytest.raises(ProblemError, match="another Idempotency-Key") as raised:
        await store.create(request_of(2), idempotency_key="k")
    assert raised.value.problem.status == 422
    other_secret = request_of(1, apis=[{"url": "http://api0.test/v2/models/m", "api_key": "other"}])
    with pytest.raises(ProblemError):
        await store.create(other_secret, idempotency_key="k")
    await clock.forward(25 * 3600)
    later, created_later = await store.create(request_of(2), idempotency_key="k")
    assert created_later
    assert later.id != first.id


async def test_pages_are_newest_first_and_complete(store: JobStore, request_of: Make) -> None:
    made = sorted([(await store.create(request_of(1)))[0].id for _ in range(5)], reverse=True)
    seen, after = [], None
    while True:
        page = await store.list(after=after, limit=2)
        seen += [job.id for job in page.items]
        after = page.next
        if after is None:
            break
    assert seen == made
    await store.cancel(made[2])
    assert [job.id for job in (await store.list(status=JobStatus.CANCELLED)).items] == [made[2]]
    assert len((await store.list(status=JobStatus.QUEUED)).items) == 4


async def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for call in (store.get("job_x"), store.cancel("job_x"), store.events.page("job_x"), store.load("job_x")):
        with pytest.raises(ProblemError) as raised:
            await call
        assert raised.value.problem.status == 404


async def test_a_queued_job_is_cancelled_at_once_and_only_once(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    assert (await store.cancel(job.id)).status == JobStatus.CANCELLED
    with pytest.raises(ProblemError) as raised:
        await store.cancel(job.id)
    assert raised.value.problem.status == 409
    lease = await taken(store, job.id, acquire_role("a0"))
    assert await store.work.begin(job.id, lease) == JobStatus.CANCELLED


async def test_a_running_job_is_cancelled_when_its_workers_have_stopped(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    assert await store.work.begin(job.id, lease) == JobStatus.RUNNING
    ledger = store.ledger(job.id)
    await ledger.reserve(lease, chunk())
    assert (await store.cancel(job.id)).status == JobStatus.CANCELLING
    assert (await store.cancel(job.id)).status == JobStatus.CANCELLING
    assert not await store.close(job.id)
    await store.leases.release(lease)
    assert await store.close(job.id)
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
            await getattr(store, call)(job.id)
        assert (raised.value.problem.status, await store.status(job.id)) == (409, from_)
        return
    assert (await getattr(store, call)(job.id)).status == to
    if lease is not None:
        await store.leases.release(lease)
    await store.close(job.id)
    ends = {"pausing": "paused", "cancelling": "cancelled"}
    assert await store.status(job.id) == ends.get(to, to)


async def test_a_paused_job_keeps_its_holds_and_says_why(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    await store.work.begin(job.id, lease)
    await store.ledger(job.id).reserve(lease, chunk())
    assert (await store.pause(job.id, reason="the disk is full", lease=lease)).status == JobStatus.PAUSING
    with pytest.raises(JobClosed):
        await store.ledger(job.id).reserve(lease, chunk(number=1))
    await store.leases.release(lease)
    assert not await store.close(job.id)  # the reaper goes on looking after it
    told = await store.get(job.id)
    assert (told.status, told.reason, told.budget.reserved) == (JobStatus.PAUSED, "the disk is full", 10)
    reasons = [event.data.get("reason") for event in (await store.events.page(job.id)).items]
    assert reasons[-2:] == ["the disk is full"] * 2
    assert (await store.resume(job.id)).reason is None
    await store.pause(job.id)
    ended = await store.cancel(job.id)
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
            await store.pause(job.id, lease=lease)
            await store.leases.release(lease)
            await store.close(job.id)
            await clock.forward(3600)
            await store.resume(job.id)
    with pytest.raises(BudgetSpent):
        await store.ledger(job.id).reserve(lease, chunk(number=3))


async def test_a_retried_job_keeps_what_it_has_and_counts_attempts_anew(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(2))
    lease = await taken(store, job.id, LEARN)
    await store.work.begin(job.id, lease)
    await store.work.checkpoint(job.id, lease, "backbone", "here")
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u0", state="done", planned=100))
    await store.work.set_api(job.id, lease, "a1", ApiProgress(url="u1", state="dropped", planned=100, reason="down"))
    await store.fail(job.id, JobError(code="c", message="m"), lease=lease)
    with pytest.raises(ProblemError, match="still stopping"):
        await store.retry(job.id)
    await store.leases.release(lease)
    for _ in range(3):
        await store.leases.release(await taken(store, job.id, LEARN))
    told = await store.retry(job.id)
    assert (told.status, told.error, told.finished_at, told.attempt) == (JobStatus.QUEUED, None, None, 0)
    stored = await store.load(job.id)
    assert stored.checkpoints == {"backbone": "here"}
    assert stored.due() == [acquire_role("a1")]
    assert stored.apis["a1"].reason is None
    assert (await taken(store, job.id, LEARN)).attempt == 1


async def test_events_go_on_over_a_retry(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    await store.fail(job.id, JobError(code="c", message="m"))
    await store.retry(job.id)
    await store.cancel(job.id)
    seen = (await store.events.page(job.id)).items
    assert [event.data["status"] for event in seen] == ["queued", "failed", "queued", "cancelled"]


def planned(request: JobRequest) -> JobRequest:
    return request.model_copy(update={"seed": 7})


async def test_changes_are_kept_and_budgets_only_raised(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(2, name="first", tags=["a"]))
    told = await store.change(job.id, JobChange(notes="n", tags=["b"]), pinned=planned)
    assert (told.name, told.tags, told.notes, told.request.seed) == ("first", ["b"], "n", 0)
    told = await store.change(job.id, JobChange(name=None, budget={"queries": 300}), pinned=planned)
    assert (told.name, told.budget.limit, told.budget.left, told.request.seed) == (None, 300, 300, 7)
    for budget in ({"queries": 299}, {"queries": 400, "queries_per_api": 10}):
        with pytest.raises(ProblemError) as raised:
            await store.change(job.id, JobChange(budget=budget), pinned=planned)
        assert [fault.field for fault in raised.value.problem.errors] == [f"budget.{list(budget)[-1]}"]
    assert (await store.events.page(job.id)).items[-1].data == {"name": None, "budget": {"queries": 300}}
    await store.cancel(job.id)
    assert (await store.change(job.id, JobChange(notes="late"), pinned=planned)).notes == "late"
    with pytest.raises(ProblemError, match="cancelled"):
        await store.change(job.id, JobChange(budget={"queries": 400}), pinned=planned)
    assert (await store.get(job.id)).budget.limit == 300


async def test_changes_at_once_are_all_kept(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    changes = [JobChange(name="n"), JobChange(notes="x"), JobChange(tags=["t"]), JobChange(budget={"queries": 500})]
    await asyncio.gather(*(store.change(job.id, change, pinned=planned) for change in changes))
    told = await store.get(job.id)
    assert (told.name, told.notes, told.tags, told.budget.limit) == ("n", "x", ["t"], 500)


async def test_filters_agree_with_filtering_everything(
    store: JobStore, request_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_server.store.index.BATCH", 3)
    for at in range(10):
        job, _ = await store.create(request_of(1, name=f"Run {at % 4}", tags=["even"] if at % 2 == 0 else []))
        if at % 3 == 0:
            await store.cancel(job.id)
    everything = (await store.list(limit=100)).items
    for wanted in ({"tag": "even"}, {"name": "run 1"}, {"tag": "even", "status": JobStatus.CANCELLED}, {"tag": "no"}):
        seen, after = [], None
        while True:
            page = await store.list(after=after, limit=2, **wanted)
            seen += page.items
            after = page.next
            if after is None:
                break
        assert seen == [
            job
            for job in everything
            if wanted.get("tag", "even") in [*job.tags, *(["even"] if "tag" not in wanted else [])]
            and wanted.get("name", "") in (job.name or "").lower()
            and wanted.get("status", job.status) == job.status
        ]


async def test_a_deleted_job_leaves_nothing_behind(store: JobStore, redis: Redis, request_of: Make) -> None:
    before = set(await redis.keys("*"))
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    await store.work.begin(job.id, lease)
    await store.ledger(job.id).reserve(lease, chunk())
    with pytest.raises(ProblemError, match="cancel it first"):
        await store.delete(job.id)
    await store.fail(job.id, JobError(code="c", message="m"))
    with pytest.raises(ProblemError, match="still stopping"):
        await store.delete(job.id)
    await store.leases.release(lease)
    await store.delete(job.id)
    assert {name for name in await redis.keys("*") if b":day:" not in name} == before
    with pytest.raises(ProblemError) as raised:
        await store.delete(job.id)
    assert raised.value.problem.status == 404


async def test_events_are_paged_and_resumed(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(1))
    lease = await taken(store, job.id, acquire_role("a0"))
    await store.work.begin(job.id, lease)
    await store.work.phase(job.id, lease, Phase.PROBE)
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="probing", planned=10))
    first = await store.events.page(job.id, limit=2)
    rest = await store.events.page(job.id, after=first.last)
    assert [event.type for event in first.items + rest.items] == ["status", "status", "phase", "api"]
    assert (await store.events.page(job.id, after=rest.last)).items == []
    with pytest.raises(ProblemError) as raised:
        await store.events.page(job.id, after="x")
    assert raised.value.problem.status == 422


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
    await store.fail(job.id, JobError(code="c", message="m"))
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
        store.fail(job.id, JobError(code="c", message="m"), lease=stale),
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


async def test_what_is_due(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(3, min_apis=2))
    lease = await taken(store, job.id, LEARN)
    await store.work.begin(job.id, lease)
    assert (await store.load(job.id)).due() == ["acquire:a0", "acquire:a1", "acquire:a2"]
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="done"))
    await store.work.set_api(job.id, lease, "a1", ApiProgress(url="u", state="dropped", reason="down"))
    stored = await store.load(job.id)
    assert (stored.due(), stored.too_few()) == (["acquire:a2"], None)
    await store.work.set_api(job.id, lease, "a2", ApiProgress(url="u", state="dropped", reason="NaN"))
    stored = await store.load(job.id)
    assert stored.due() == [LEARN]
    error = stored.too_few()
    assert error is not None
    assert error.code == "too_few_apis"
    await store.fail(job.id, error)
    await store.fail(job.id, JobError(code="later", message="m"))
    failed = await store.get(job.id)
    assert (failed.status, failed.error) == (JobStatus.FAILED, error)
    assert (await store.load(job.id)).due() == []
