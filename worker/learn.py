"""Trains the meta-model of a job from the answers its APIs gave, evaluates it and publishes it.

A checkpoint after each phase, and within the training every so often: whoever takes the job up again skips what is done, and
makes the same meta-model. Torch runs in a thread; the event loop renews the lease, reports, and carries the word to stop into
the thread.
"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from contracts.jobs import JobError, Phase
from contracts.meta_models import Evaluation, MetaModel, Score
from dfml import io, tasks
from dfml.datasets import Dataset, DatasetMissing, open_dataset
from dfml.evaluate import evaluate, evaluate_random
from dfml.methods import METHODS
from dfml.nets import Backbone, build, load_weights, weights
from meta_server.store import ids
from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing
from meta_server.store.stored_job import StoredJob
from metering.records import MoveRefused
from metering.tasks import end
from worker.adaptive import learn_from_apis
from worker.arrivals import Arrivals, GaveWay
from worker.checkpoints import JobCheckpoint
from worker.context import Context
from worker.devices import compute, first, gpus
from worker.failures import JobFault
from worker.reused import earlier_jobs
from worker.watch import Stopped, Watch, Why, why

REPORT_EVERY = 1.0  # seconds

Shape = tuple[int, int, int]


async def learn(context: Context, job: StoredJob, watch: Watch) -> None:
    """Train, evaluate, publish. Raises `JobFault` when the data set is missing or the evaluation does not fit it."""
    if job.request.device == "cuda" and not gpus():
        raise Stopped(Why.ELSEWHERE)
    if job.input_shape is None:
        raise _fault("no_answers", "no API answered anything: see the job's events")
    dataset = await asyncio.to_thread(_dataset, context.data, job.request.evaluation, job.input_shape)
    try:
        backbone, metrics = await _trained(context, job, job.input_shape, watch)
    except GaveWay:
        return
    score, random_score = await _evaluated(context, job, backbone, dataset, watch)
    await _publish(context, job, backbone, metrics, score, random_score, watch)


def _dataset(root: Path | None, evaluation: Evaluation | None, shape: Shape) -> Dataset | None:
    """The data set to evaluate on, at the size of the query images, found to fit before anything is trained."""
    if evaluation is None:
        return None
    try:
        dataset = open_dataset(evaluation.dataset, root, side=shape[1])
        images = dataset.images(evaluation.split)
        tasks.sample(evaluation, classes=images.shape[0], per_class=images.shape[1])
    except DatasetMissing as error:
        raise _fault("dataset_missing", str(error), param="evaluation.dataset") from error
    except ValueError as error:
        raise _fault("evaluation_unfit", str(error), param="evaluation") from error
    if tuple(images.shape[2:]) != shape:
        message = (
            f"{dataset.name} has images of {tuple(images.shape[2:])}, the APIs take {shape}: choose another data set"
        )
        raise _fault("evaluation_unfit", message, param="evaluation.dataset")
    return dataset


async def _trained(context: Context, job: StoredJob, shape: Shape, watch: Watch) -> tuple[Backbone, dict[str, float]]:
    """The trained backbone and its metrics; from the checkpoint, if there is one."""
    config, request = job.request.meta_model, job.request
    backbone = build(config, shape, generator=torch.Generator().manual_seed(request.seed))
    if "backbone" in job.checkpoints:
        kept = json.loads(job.checkpoints["backbone"])
        try:
            content = await asyncio.to_thread(context.artifacts.recall, kept["path"])
        except (ArtifactDamaged, ArtifactMissing) as error:
            await context.store.work.warn(
                job.id, watch.lease, f"a checkpoint is refused, training begins anew: {error}"
            )
        else:
            load_weights(backbone, from_safetensors(content))
            return backbone.eval(), kept["metrics"]

    await context.store.work.phase(job.id, watch.lease, Phase.META_TRAIN)
    arrivals = Arrivals(context, job, watch)
    async with _reporting(context, job.id, Phase.META_TRAIN, watch) as report:
        checkpoint = JobCheckpoint(context, job, watch, told=report.warn)
        if METHODS[request.method.name].adaptive:
            device = first(request.device)
            done = await learn_from_apis(context, job, watch, device=device, on_step=report.step, checkpoint=checkpoint)
            return await _kept(context, job, done.backbone.cpu(), done.metrics, checkpoint, watch)
        try:
            answers = await arrivals.begin()
            more = {"more": arrivals.more} if arrivals.early else {}

            def train(device: str, part: int) -> tuple[Backbone, dict[str, float]]:
                options = request.method
                if part > 1 and hasattr(options, "batch"):
                    options = options.model_copy(update={"batch": max(4, options.batch // part)})
                done = METHODS[options.name].learn(
                    answers,
                    config,
                    options,
                    seed=request.seed,
                    device=device,
                    on_step=report.step,
                    checkpoint=checkpoint,
                    **more,
                )
                return done.backbone.cpu(), done.metrics

            backbone, metrics = await asyncio.to_thread(compute, request.device, train, told=report.warn)
        except GaveWay:
            await checkpoint.forget()  # of a training on a part of the answers
            raise
        except ValueError as error:  # too few answers to learn from
            raise _fault("too_few_answers", str(error), param="budget.queries") from error
        return await _kept(context, job, backbone, metrics, checkpoint, watch)


async def _kept(
    context: Context,
    job: StoredJob,
    backbone: Backbone,
    metrics: dict[str, float],
    checkpoint: JobCheckpoint,
    watch: Watch,
) -> tuple[Backbone, dict[str, float]]:
    """Both, once they are checkpointed, in the place of where the training stood."""
    stem = f"jobs/{job.id}/checkpoints/backbone-{watch.lease.fence}"
    path = await asyncio.to_thread(context.artifacts.keep, stem, ".safetensors", to_safetensors(weights(backbone)))
    await context.store.work.checkpoint(job.id, watch.lease, "backbone", json.dumps({"path": path, "metrics": metrics}))
    await checkpoint.forget()
    return backbone, metrics


async def _evaluated(
    context: Context, job: StoredJob, backbone: Backbone, dataset: Dataset | None, watch: Watch
) -> tuple[Score | None, Score | None]:
    """Accuracy of the backbone and of its untrained twin; each from its checkpoint, if there is one."""
    evaluation = job.request.evaluation
    if dataset is None or evaluation is None:
        return None, None
    await context.store.work.phase(job.id, watch.lease, Phase.EVALUATE)
    async with _reporting(context, job.id, Phase.EVALUATE, watch) as report:

        def own(device: str, _: int) -> Score:
            return evaluate(
                backbone,
                dataset,
                evaluation,
                device=device,
                on_episode=lambda done, all_: report.step(done, 4 * all_),
            )

        def untrained(device: str, _: int) -> Score:
            return evaluate_random(
                backbone.config,
                backbone.input_shape,
                dataset,
                evaluation,
                device=device,
                on_episode=lambda done, all_: report.step(all_ + 3 * done, 4 * all_),
            )

        on = partial(compute, job.request.device, told=report.warn)
        score = await _scored(context, job, watch, "score", partial(on, own))
        return score, await _scored(context, job, watch, "random_score", partial(on, untrained))


async def _scored(context: Context, job: StoredJob, watch: Watch, name: str, compute: Callable[[], Score]) -> Score:
    """The score called `name`, checkpointed."""
    if name in job.checkpoints:
        return Score.model_validate_json(job.checkpoints[name])
    score = await asyncio.to_thread(compute)
    await context.store.work.checkpoint(job.id, watch.lease, name, score.model_dump_json())
    return score


async def _publish(
    context: Context,
    job: StoredJob,
    backbone: Backbone,
    metrics: dict[str, float],
    score: Score | None,
    random_score: Score | None,
    watch: Watch,
) -> None:
    """Write the artefact where no other attempt writes, then make it visible with the end of the job."""
    watch.check()
    await context.store.work.phase(job.id, watch.lease, Phase.PUBLISH)
    request = job.request
    job = await context.store.load(job.id)  # with all that came while it was learned from
    spent = await context.store.ledger(job.id).state()
    urls = [job.spec(api).url for api in job.finished("done")]
    urls += [url for one in await earlier_jobs(context, job) for _, url in one.paths]
    told: dict[str, Any] = {
        "name": request.name or job.id,
        "method": request.method.name,
        "seed": request.seed,
        "version": version("metazoo"),
        "queries": spent.confirmed + spent.unconfirmed,
        "apis": [hashlib.sha256(url.encode()).hexdigest() for url in dict.fromkeys(urls)],
        "evaluation": request.evaluation,
        "score": score,
        "random_score": random_score,
        "unlabeled": request.unlabeled,
        "teacher_passes": int(metrics["teacher_passes"]) if request.takes_weights else None,
    }
    folder = f"meta-models/{job.id}/{watch.lease.fence}"

    def write() -> dict[str, str]:
        with tempfile.TemporaryDirectory() as made:
            io.save(Path(made), backbone, {"training": metrics}, options=request.method.model_dump(mode="json"), **told)
            return dict(context.artifacts.put_folder(Path(made), folder))

    files = await asyncio.to_thread(write)
    meta_model = MetaModel(
        id=ids.new("mm"),
        created_at=datetime.now(UTC),
        job=job.id,
        backbone=request.meta_model,
        input_shape=backbone.input_shape,
        files=files,
        budget=request.budget.queries,
        reuse=request.reuse,
        tags=request.tags,
        **told,
    )
    try:
        await context.store.work.publish(job.id, watch.lease, meta_model, folder=folder)
    except MoveRefused as refused:
        raise Stopped(why(refused.status)) from None


@dataclass
class _Report:
    """The newest of what a training thread tells. `step` is called in that thread and raises `Stopped`."""

    watch: Watch
    newest: tuple[int, int, dict[str, float]] | None = None
    told: tuple[int, int, dict[str, float]] | None = field(default=None)
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Something that the person should see. Called in the training thread."""
        self.warnings.append(message)

    def step(self, done: int, steps: int, metrics: dict[str, float] | None = None) -> None:
        """So many of `steps` are done."""
        self.watch.check()
        self.newest = (done, steps, metrics or {})


@asynccontextmanager
async def _reporting(context: Context, job_id: str, phase: Phase, watch: Watch) -> AsyncIterator[_Report]:
    """Announces, each second, the newest that the thread told, and the last of it at the end."""
    report = _Report(watch)

    async def tell() -> None:
        while report.warnings:
            await context.store.work.warn(job_id, watch.lease, report.warnings[0])
            del report.warnings[0]
        newest = report.newest
        if newest is None or newest is report.told:
            return
        report.told = newest
        done, steps, metrics = newest
        if metrics:
            await context.store.work.metrics(job_id, watch.lease, done, steps, metrics)
        else:
            await context.store.work.progress(job_id, watch.lease, phase, done / steps)

    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            # what cannot be told now is told by the next report; whether to stop is the watch's to say
            with suppress(Exception):
                await tell()

    teller = asyncio.ensure_future(keep_telling())
    try:
        yield report
        await tell()
    finally:
        await end(teller)


def _fault(code: str, message: str, param: str | None = None) -> JobFault:
    return JobFault(JobError(code=code, message=message, param=param))
