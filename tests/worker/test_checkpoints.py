"""A learner that is stopped in the midst of its training is followed by one that goes on from there, to the same meta-model."""

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load

from contracts.jobs import JobStatus
from meta_server.store import keys
from meta_server.store.meta_models import MetaModelStore
from worker import devices, learn
from worker.watch import Stopped, Why

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SMALL = {
    "latent": 4,
    "generator_width": 4,
    "ways": 3,
    "shots": 1,
    "queries": 2,
    "inner_steps": 1,
    "second_order": False,
}
METHODS: dict[str, dict[str, Any]] = {
    "pqd": {"name": "pqd", "steps": 8, "batch": 8},
    "distill_average": {"name": "distill_average", "steps": 4, "batch": 8},
    "bidf_mkd": SMALL | {
        "name": "bidf_mkd", "images_per_class": 1, "iterations": 1, "directions": 1, "frequencies": 4, "updates": 8,
        "tasks": 1, "replay_steps": 1, "diversity": 0,
    },
    "free": SMALL | {
        "name": "free", "epochs": 8, "warm_up": 1, "teachers": 1, "images_per_class": 3, "generator_steps": 1,
        "replay_tasks": 1, "patience": 1, "gradients": {"source": "zeroth-order", "directions": 1},
    },
    "purer": {
        "name": "purer", "updates": 8, "teachers": 1, "images_per_class": 2, "ways": 3, "shots": 1, "episodes": 1,
        "gradients": {"source": "guided", "directions": 1},
    },
}  # fmt: skip


class Steps:
    """What is told of a training; after the step `stop` its learner is shut down, once."""

    def __init__(self, stop: int) -> None:
        self.told: list[int] = []
        self._stop: int | None = stop

    def saw(self, done: int) -> None:
        self.told.append(done)
        if done == self._stop:
            self._stop = None
            raise Stopped(Why.SHUTDOWN)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen, step = Steps(6), learn._Report.step

    def told(report: Any, done: int, all_of_them: int, metrics: Any = None) -> None:
        step(report, done, all_of_them, metrics)
        seen.saw(done)

    monkeypatch.setattr(learn._Report, "step", told)
    monkeypatch.setattr("worker.checkpoints.SHARE", float("inf"))  # after every step, however long it takes
    return seen


async def backbone_of(world: Any, ended: Any) -> Any:
    folder = world.context.artifacts.local(await MetaModelStore(world.redis).folder(ended.meta_model))
    return load(next(folder.glob("*.safetensors")).read_bytes())


async def submitted(world: Any, api: Any, method: str) -> Any:
    job = await world.submit(api(classes=3), api(classes=4), queries=400, method=METHODS[method])
    return await world.acquire_all(job)


async def stopped(world: Any, job: Any) -> str:
    """The learner is shut down in its training; where the state that it kept lies."""
    with pytest.raises(Stopped):
        await world.learn(job.id)
    path: str = json.loads((await world.store.load(job.id)).checkpoints["training"])["path"]
    return path


async def warnings(world: Any, job: Any) -> list[str]:
    events = (await world.store.events.page(job.id, limit=1000)).items
    return [event.data["message"] for event in events if event.type == "warning"]


@pytest.mark.parametrize("method", METHODS)
async def test_who_takes_it_up_again_goes_on_and_makes_the_same_meta_model(
    world: Any, api: Any, steps: Steps, method: str
) -> None:
    keeping = world.changed(checkpoint_every=0.0)
    job = await submitted(keeping, api, method)
    await stopped(keeping, job)
    half = await world.store.get(job.id)
    steps.told.clear()
    ended = await keeping.learn(job.id)
    assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
    assert steps.told == ([5, 6, 7, 8] if method == "distill_average" else [7, 8])
    charged = sum(one.charged for one in world.apis.values())
    assert half.budget.confirmed <= charged == ended.budget.confirmed <= 400
    world.balance(ended)
    kept = world.context.artifacts.list(f"jobs/{job.id}/checkpoints")
    assert [path.rpartition("/")[2].partition("-")[0] for path in kept] == ["backbone"]

    steps.told.clear()
    whole = await submitted(world, api, method)
    wanted = await backbone_of(world, await world.learn(whole.id))
    assert steps.told == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(one.charged for one in world.apis.values()) == charged
    got = await backbone_of(world, ended)
    assert all((got[name] == wanted[name]).all() for name in wanted)
    assert await warnings(world, job) == []


async def test_a_disk_that_fills_while_a_state_is_kept_pauses_the_job(
    world: Any, api: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    keeping = world.changed(checkpoint_every=0.0)
    job = await submitted(keeping, api, "pqd")
    with monkeypatch.context() as crowded:
        crowded.setattr(world.context.artifacts, "write", full)
        paused = await keeping.learn(job.id)
    assert (paused.status, steps.told) == (JobStatus.PAUSED, [])
    assert paused.reason.startswith("disk_full")
    await world.store.moves.resume(job.id)
    steps.saw = steps.told.append  # type: ignore[method-assign]
    assert (await keeping.learn(job.id)).status == JobStatus.SUCCEEDED


async def test_a_state_that_was_altered_or_is_of_another_job_is_refused(world: Any, api: Any, steps: Steps) -> None:
    keeping = world.changed(checkpoint_every=0.0)
    job = await submitted(keeping, api, "pqd")
    path = await stopped(keeping, job)
    proper = world.context.artifacts.read(path)
    world.context.artifacts.write(path, proper[:-4] + b"\x00\x00\x80\x7f")  # a number that is infinite
    steps.told.clear()
    ended = await keeping.learn(job.id)
    assert (ended.status, steps.told[0]) == (JobStatus.SUCCEEDED, 1)
    (told,) = await warnings(world, job)
    assert "training begins anew" in told
    assert "changed or damaged" in told

    other = await submitted(world, api, "pqd")
    other_path = world.context.artifacts.keep(f"jobs/{other.id}/checkpoints/training-1", ".safetensors", proper)
    await world.redis.hset(
        keys.job(other.id, "record"), "checkpoint:training", json.dumps({"path": other_path})
    )  # whole, as its name says; but made with another seed
    request = (await world.store.load(other.id)).request.model_copy(update={"seed": 1})
    await world.redis.hset(keys.job(other.id, "record"), "request", request.model_dump_json())
    steps.told.clear()
    ended = await world.learn(other.id)
    assert (ended.status, steps.told[0]) == (JobStatus.SUCCEEDED, 1)
    (told,) = await warnings(world, other)
    assert "of another training" in told


@pytest.mark.parametrize("method", METHODS)
async def test_a_training_begun_on_a_gpu_goes_on_where_there_is_none(
    world: Any, api: Any, steps: Steps, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is made up, and computes as the CPU does; see below for a real one."""
    seen: list[str] = []

    def told(compute: Any) -> Any:
        def on(*given: Any, device: str = "cpu", **others: Any) -> Any:
            seen.append(device)
            return compute(*given, device="cpu", **others)

        return None if compute is None else on

    known = learn.METHODS[method]
    made_up = replace(known, train=told(known.train), distil=told(known.distil))
    monkeypatch.setitem(learn.METHODS, method, made_up)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    keeping = world.changed(checkpoint_every=0.0)
    job = await submitted(keeping, api, method)
    await stopped(keeping, job)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    await ends_elsewhere(keeping, job, steps, method)
    assert seen == ["cuda", "cpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("places", [("auto", "cpu"), ("cpu", "auto")], ids=["from a GPU", "to a GPU"])
async def test_a_training_goes_on_on_another_device(
    world: Any, api: Any, steps: Steps, method: str, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, (place, then) = devices.devices, places
    monkeypatch.setattr(devices, "devices", lambda _, *, cuda: tried(place, cuda=cuda))  # type: ignore[arg-type]
    keeping = world.changed(checkpoint_every=0.0)
    job = await submitted(keeping, api, method)
    await stopped(keeping, job)
    place = then
    await ends_elsewhere(keeping, job, steps, method)


async def ends_elsewhere(world: Any, job: Any, steps: Steps, method: str) -> None:
    """Behind the last step kept, and without asking anything again."""
    steps.told.clear()
    ended = await world.learn(job.id)
    assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
    assert steps.told == ([5, 6, 7, 8] if method == "distill_average" else [7, 8])
    assert await warnings(world, job) == []
    world.balance(ended)
