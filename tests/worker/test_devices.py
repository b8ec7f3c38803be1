"""Where a learner computes: which queues it takes from, and what follows when memory runs out (by an injected fault)."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.jobs import JobStatus
from dfml.methods import METHODS
from meta_server.store.learners import Announcement
from meta_server.store.stored_job import LEARN
from worker import devices


@pytest.mark.parametrize(
    ("wanted", "cuda", "tried"),
    [
        ("auto", True, [("cuda", 1), ("cuda", 4), ("cpu", 1)]),
        ("cuda", True, [("cuda", 1), ("cuda", 4), ("cpu", 1)]),
        ("cpu", True, [("cpu", 1)]),
        ("auto", False, [("cpu", 1)]),
    ],
)
def test_what_is_tried_in_which_order(
    wanted: Any, cuda: bool, tried: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    seen: list[tuple[str, int]] = []
    told: list[str] = []

    def full(device: str, part: int) -> str:
        seen.append((device, part))
        raise torch.OutOfMemoryError if device == "cuda" else MemoryError

    with pytest.raises(MemoryError, match="smaller network"):
        devices.compute(wanted, full, told=told.append)
    assert seen == tried
    assert len(told) == len(tried)
    assert devices.compute(wanted, lambda device, part: (device, part), told=told.append) == tried[0]


@pytest.mark.parametrize(("visible", "queues"), [("", {"learn.cpu"}), ("0", {"learn.gpu", "learn.cpu"})])
def test_a_worker_that_sees_a_gpu_takes_what_needs_one(
    visible: str, queues: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(devices.Path, "glob", lambda *_: iter(["gpu-a", "gpu-b"]))
    assert {queue.rpartition(".")[0] for queue in devices.queues()} == queues


@pytest.mark.anyio
@pytest.mark.redis
async def test_out_of_memory_goes_on_with_less_and_is_told(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil, batches = METHODS["pqd"].distil, list[int]()

    def small(answers: Any, config: Any, options: Any, **others: Any) -> Any:
        batches.append(options.batch)
        if len(batches) < 3:
            raise torch.OutOfMemoryError
        assert distil is not None
        return distil(answers, config, options, **{**others, "device": "cpu"})

    monkeypatch.setattr(devices, "devices", lambda *_, **__: [("cuda", 1), ("cuda", 2), ("cpu", 1)])
    monkeypatch.setitem(METHODS, "pqd", replace(METHODS["pqd"], distil=small))
    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    assert batches == [8, 4, 8]
    warnings = [
        e.data["message"] for e in (await world.store.events.page(job.id, limit=1000)).items if e.type == "warning"
    ]
    assert warnings == ["out of memory on cuda", "out of memory on cuda with 1/2 of a chunk"]


@pytest.mark.anyio
@pytest.mark.redis
async def test_no_memory_anywhere_fails_the_job_with_its_code(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setitem(METHODS, "pqd", replace(METHODS["pqd"], distil=full))
    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    told = await world.learn(job.id)
    assert (told.status, told.error.code) == (JobStatus.FAILED, "out_of_memory")


@pytest.mark.anyio
@pytest.mark.redis
async def test_a_job_that_needs_a_gpu_goes_to_a_learner_that_has_one(
    world: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.learn.gpus", lambda: 0)
    refused = await world.acquire_all(await world.submit(api(), queries=64, device="cuda"))
    assert (refused.status, refused.error.code) == (JobStatus.FAILED, "device_missing")
    assert world.apis["api0.test"].charged == 0
    await world.context.learners.announce("g", Announcement(classes={}, missing={}, gpus=1))
    job = await world.submit(api(), queries=64, device="cuda")
    await world.acquire_all(job)
    for _ in range(4):  # however often: that is no attempt
        assert (await world.learn(job.id)).status == JobStatus.RUNNING
        assert world.queue.sent[-1] == (job.id, f"{LEARN}.gpu")
    monkeypatch.setattr("worker.learn.gpus", lambda: 1)
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


@pytest.mark.anyio
@pytest.mark.redis
async def test_an_api_makes_room_for_those_that_wait(world: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.acquire.LOOK_EVERY", 0.02)
    one = api()
    proper = one.handle

    async def slow(request: Any) -> Any:
        await asyncio.sleep(0.05)
        return await proper(request)

    one.handle = slow
    job = await world.submit(one, queries=2000)
    patient = world.changed(turn=0.2)
    world.queue.others = 1
    await asyncio.wait_for(patient.acquire(job.id, "a0"), 20)
    told = await world.store.get(job.id)
    assert world.queue.sent == [(job.id, "acquire:a0")]
    assert 0 < told.budget.confirmed == one.charged < 2000
    assert (told.budget.reserved, told.progress.per_api["a0"].state) == (0, "acquiring")
    world.queue.others = 0
    await asyncio.wait_for(patient.acquire(job.id, "a0"), 20)
    told = await world.store.get(job.id)
    assert told.budget.confirmed == one.charged == 2000


@pytest.mark.gpu
@pytest.mark.anyio
@pytest.mark.redis
async def test_a_gpu_without_room_is_left_for_the_cpu(world: Any, api: Any) -> None:
    job = await world.submit(api(), queries=64)
    await world.acquire_all(job)
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    warnings = [
        e.data["message"] for e in (await world.store.events.page(job.id, limit=1000)).items if e.type == "warning"
    ]
    assert any("out of memory on cuda" in message for message in warnings)
