import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.jobs import ApiProgress, JobChange, JobError, JobRequest, JobStatus, Phase
from contracts.problems import ProblemError
from meta_server.store import keys
from meta_server.store.jobs import JobStore
from meta_server.store.stored_job import LEARN, acquire_role
from tests.meta_server.store.conftest import chunk, taken

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Make = Callable[..., JobRequest]


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
    await store.moves.cancel(made[2])
    assert [job.id for job in (await store.list(status=JobStatus.CANCELLED)).items] == [made[2]]
    assert len((await store.list(status=JobStatus.QUEUED)).items) == 4


async def test_unknown_jobs_are_not_found(store: JobStore) -> None:
    for call in (store.get("job_x"), store.moves.cancel("job_x"), store.events.page("job_x"), store.load("job_x")):
        with pytest.raises(ProblemError) as raised:
            await call
        assert raised.value.problem.status == 404


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
    await store.moves.cancel(job.id)
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
            await store.moves.cancel(job.id)
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
    await store.moves.fail(job.id, JobError(code="c", message="m"))
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


async def test_what_is_due(store: JobStore, request_of: Make) -> None:
    job, _ = await store.create(request_of(3, min_apis=2))
    lease = await taken(store, job.id, LEARN)
    await store.work.begin(job.id, lease)
    assert (await store.load(job.id)).due() == ["acquire:a0", "acquire:a1", "acquire:a2"]
    await store.work.set_api(job.id, lease, "a0", ApiProgress(url="u", state="done", planned=9))
    await store.work.set_api(job.id, lease, "a1", ApiProgress(url="u", state="dropped", reason="down"))
    stored = await store.load(job.id)
    assert (stored.due(), stored.too_few()) == (["acquire:a2"], None)
    await store.work.set_api(job.id, lease, "a2", ApiProgress(url="u", state="dropped", reason="NaN"))
    stored = await store.load(job.id)
    assert stored.due() == [LEARN]
    error = stored.too_few()
    assert error is not None
    assert error.code == "too_few_apis"
    await store.moves.fail(job.id, error)
    await store.moves.fail(job.id, JobError(code="later", message="m"))
    failed = await store.get(job.id)
    assert (failed.status, failed.error) == (JobStatus.FAILED, error)
    assert (await store.load(job.id)).due() == []
