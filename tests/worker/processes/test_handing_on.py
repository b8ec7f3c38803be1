"""Workers that are stopped or killed while they work: another goes on, and nothing is paid for twice."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load as from_safetensors

from contracts.jobs import Job, JobStatus
from dfml.checkpoint import decode
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import weights
from meta_server import reaper
from meta_server.background import running
from meta_server.queue import Queue
from meta_server.reaper import Reaper
from meta_server.store import keys
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from metering import leases
from metering.leases import UNLIMITED, Leases
from metering.scripts import MICROSECONDS, Scripts
from tests.worker.processes.conftest import request_to, until
from worker.queries import queries_of

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.process, pytest.mark.timeout(180)]


@pytest.fixture
def half_asked(store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any) -> Any:
    """A worker that asks a slow API, the job when a part is answered, the API, and where it is."""

    async def begin() -> tuple[Any, Job, Any, str]:
        served = serve(slow := api(), 0.2)
        worker = start_worker("acquire", allow=served.host)
        job, _ = await store.create(request_to(request_of, served, budget={"queries": 640}))
        queue.begin([job.id])
        await until(store, job.id, lambda job: job.budget.confirmed > 50)
        return worker, job, slow, served.host

    return begin


async def test_sigterm_hands_the_task_on_at_once(store: JobStore, half_asked: Any, start_worker: Any) -> None:
    first, job, slow, host = await half_asked()
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    await asyncio.to_thread(first.wait, 30)
    assert time.monotonic() - asked < 12
    assert (await store.get(job.id)).status == JobStatus.RUNNING
    start_worker("acquire", allow=host)
    ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 640
    assert ended.attempt <= 1


async def test_a_killed_worker_costs_a_lease_and_no_answer(
    store: JobStore, redis: Redis, half_asked: Any, start_worker: Any, quick_reaper: Reaper
) -> None:
    """Although the server that reaped is killed with it."""
    worker, job, slow, host = await half_asked()
    worker.kill()
    worker.wait()
    left = Leases(Scripts(redis), seconds=reaper.SECONDS, attempts=UNLIMITED)
    assert await left.take(keys.SERVICE_LEASES, reaper.ROLE, "a server that was killed")
    seconds, _ = await redis.time()  # type: ignore[misc]
    deadline = (seconds + leases.SECONDS / 15) * MICROSECONDS
    await redis.hset(keys.job(job.id, "leases"), "deadline:acquire:a0", f"{deadline:.0f}")  # type: ignore[misc]
    start_worker("acquire", allow=host)
    async with running(quick_reaper.run()):
        ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 640


async def test_a_killed_learner_is_followed_by_one_that_goes_on_from_its_checkpoint(
    store: JobStore,
    redis: Redis,
    queue: Queue,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    tmp_path: Path,
    quick_reaper: Reaper,
) -> None:
    served = serve(one := api())
    start_worker("acquire", allow=served.host)
    learner = start_worker("learn.cpu", allow=served.host, METAZOO_CHECKPOINT_EVERY="0")
    request = request_to(request_of, served, budget={"queries": 64})
    request = request.model_copy(update={"method": request.method.model_copy(update={"steps": 300})})
    job, _ = await store.create(request)
    queue.begin([job.id])
    while "training" not in (await store.load(job.id)).checkpoints:
        assert learner.poll() is None
        await asyncio.sleep(0.02)
    killed = [*psutil.Process(learner.pid).children(recursive=True), learner]
    for process in killed:
        process.kill()
    for process in killed:
        process.wait()
    stored = await store.load(job.id)
    assert "backbone" not in stored.checkpoints
    artifacts = Artifacts(str(tmp_path / "artifacts"))
    done = decode(artifacts.recall(json.loads(stored.checkpoints["training"])["path"]))["done"]
    before = len((await store.events.metrics(job.id)).items)
    # let the lease run out now instead of in 45 s
    await redis.hset(keys.job(job.id, "leases"), "deadline:learn", "1")  # type: ignore[misc]
    start_worker("learn.cpu", allow=served.host)
    async with running(quick_reaper.run()):
        ended = await until(store, job.id, lambda job: job.finished_at is not None)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    told = (await store.events.metrics(job.id)).items[before:]
    assert all(point.step > done for point in told)
    assert ended.budget.confirmed == one.charged == 64

    torch.set_num_threads(1)
    pool = queries_of(request, (3, 16, 16)).images(range(64))
    answers = Answers(torch.from_numpy(pool), [torch.from_numpy(one.answer(pool))], torch.ones(64, 1, dtype=torch.bool))
    wanted = weights(pqd.distil(answers, request.meta_model, request.method, seed=0).backbone)
    (path,) = artifacts.list(f"jobs/{job.id}/checkpoints")
    got = from_safetensors(artifacts.recall(path))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
