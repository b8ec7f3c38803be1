"""Asks one API of a job: probe, then acquire. Its answers lie in the artefact store and are announced on the job's stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from kombu.exceptions import OperationalError

from client.errors import ApiUnavailable, MetazooError, RateLimited
from contracts.jobs import JobError, Phase, place_of
from contracts.methods import ProceduralQueries
from meta_server.planning import spares, started
from meta_server.store import stored_job
from meta_server.store.stored_job import LEARN, StoredJob, acquire_role
from metering.scripts import StoreUnavailable
from metering.tasks import end
from worker.adapters import open_model
from worker.context import Context
from worker.failures import JobFault
from worker.probe import IMAGES, BadApi, check_info, check_same_size
from worker.queries import own_pool, plan_of, resized
from worker.remote import Enough, JobEnough, RemoteTeacher
from worker.reused import api_of, earlier_jobs, known, pool_of
from worker.transport import AddressRefused
from worker.watch import Stopped, Watch, Why
from worker.weights import keep_weights, take_weights

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between questions for the metadata
LOOK_EVERY = 5.0  # seconds between looks at whether the learner is due and whether others wait


async def acquire(context: Context, job: StoredJob, watch: Watch, *, api_id: str) -> None:
    """Ask the API until its part of the plan is answered or it gives no more. It is kept if it answered anything; otherwise
    one that is asked nothing so far stands in for it, where there is one.

    Raises `JobFault` when no learner could evaluate the job: then nothing is spent.
    """
    if job.request.evaluation is not None or job.request.device == "cuda":
        await _check_learners(context, job, watch)
    trouble: Exception | None = None
    try:
        await _ask_all(context, job, api_id, watch)
    except (AddressRefused, BadApi, Enough, MetazooError) as error:
        trouble = error
    if trouble is not None:
        spend = (await context.store.ledger(job.id).state()).per_api.get(api_id)
        if spend is None or not spend.confirmed:
            await _drop(context, job, api_id, watch, trouble)
            return
        await context.store.work.warn(job.id, watch.lease, f"the API gave less than planned: {trouble}", api=api_id)
    await _tell(context, job, api_id, watch, state="done")


async def _drop(context: Context, job: StoredJob, api_id: str, watch: Watch, why: Exception) -> None:
    """Drop an API that answered nothing, and have another stand in for it."""
    work, place = context.store.work, place_of(api_id)
    standing = await context.store.load(job.id)
    stand_ins, stand_in = standing.stand_ins(), None
    if not isinstance(why, JobEnough) and place not in stand_ins.values():
        free = spares(standing.request, standing.apis)
        stand_in = await work.agree_on_stand_in(job.id, watch.lease, api_id, free)
    if stand_in is None:
        await _tell(context, job, api_id, watch, state="dropped", reason=str(why))
        return
    anew = started(standing.request, stand_ins | {place_of(stand_in): place})
    progress = anew[place].model_copy(update={"state": "dropped", "reason": str(why)})
    await work.set_api(job.id, watch.lease, api_id, progress, {stand_in: anew[place_of(stand_in)]})
    message = f"{job.spec(stand_in).url} stands in for an API that was dropped: {why}"
    await work.warn(job.id, watch.lease, message, api=stand_in)
    await asyncio.to_thread(context.queue.send, job.id, acquire_role(stand_in), tenant=job.tenant)


async def _check_learners(context: Context, job: StoredJob, watch: Watch) -> None:
    """Spend nothing on a job that no learner can learn or evaluate. Without any, the job goes on: its answers are kept."""
    waited = 0.0
    while not await context.learners.announcements():
        if waited >= context.learner_wait:
            await context.store.work.warn(
                job.id, watch.lease, "no learner is up: the job will wait for one after acquiring"
            )
            return
        await watch.sleep(1.0)
        waited += 1.0
    if job.request.device == "cuda" and not any(one.gpus for one in await context.learners.announcements()):
        message = "no learner has a GPU: start one where there is one, or ask for the device auto"
        raise JobFault(JobError(code="device_missing", message=message, param="device"))
    evaluation = job.request.evaluation
    if evaluation is not None and (fault := await context.learners.fault(evaluation)):
        raise JobFault(fault)


async def _ask_all(context: Context, job: StoredJob, api_id: str, watch: Watch) -> None:
    """Probe and acquire. Raises `AddressRefused`, `BadApi`, `Enough`, `MetazooError`."""
    store, url = context.store, job.spec(api_id).url
    await store.work.phase(job.id, watch.lease, Phase.PROBE)
    await _tell(context, job, api_id, watch, state="probing")
    await context.guard.check(url)
    key = await store.api_key(job.id, api_id)
    secret = None if key is None else key.get_secret_value()
    async with open_model(job.spec(api_id), secret, transport=context.transport(), timeout=context.timeout) as model:
        info = await _patiently(context, job, api_id, model.metadata, watch)
        check_info(info)
        shape = await store.work.agree_on_shape(job.id, watch.lease, job.request.shape or info.input_shape)
        if not isinstance(job.request.method, ProceduralQueries):
            check_same_size(info, shape)
        pool = (await asyncio.to_thread(own_pool, job.request, shape, context.artifacts)).images
        classes = await store.work.agree_on_classes(job.id, watch.lease, api_id, info.classes)
        if classes != info.classes:
            raise BadApi(f"it had {classes} classes before and now has {info.classes}")
        if job.request.takes_weights:
            take = partial(take_weights, context, job, api_id, secret, info)
            network, content = await _patiently(context, job, api_id, take, watch)
            await keep_weights(context, job, api_id, network, content, ways=classes, watch=watch)
            return
        there = np.empty(0, np.int64)
        if earlier := await earlier_jobs(context, job):
            api = api_of(job.spec(api_id))
            there = await asyncio.to_thread(known, earlier, api, pool_of(job, shape), classes, context.artifacts)
        teacher = RemoteTeacher(
            job_id=job.id,
            api_id=api_id,
            model=model,
            info=info,
            indices=plan_of(job).assigned[place_of(api_id)],
            known=there,
            images=pool if info.input_shape == shape else resized(pool, info.input_shape),
            ledger=store.ledger(job.id),
            artifacts=context.artifacts,
            watch=watch,
            tell=partial(context.store.work.warn, job.id, watch.lease, api=api_id),
            patience=context.patience,
            timeout=context.timeout,
            deadline=job.deadline(),
        )
        await teacher.resume()
        await teacher.probe(IMAGES)
        await store.work.phase(job.id, watch.lease, Phase.ACQUIRE)
        await _tell(context, job, api_id, watch, state="acquiring")
        async with _looking_around(context, job, teacher, watch):
            await teacher.ask()
        if teacher.left:
            raise Stopped(Why.TURN)


@asynccontextmanager
async def _looking_around(
    context: Context, job: StoredJob, teacher: RemoteTeacher, watch: Watch
) -> AsyncIterator[None]:
    """Meanwhile, look again and again whether the learner is due, and after a while whether other APIs wait for their turn."""
    began, role, called = time.monotonic(), watch.lease.role, False

    async def look() -> None:
        nonlocal called
        while not teacher.giving_way:
            await asyncio.sleep(LOOK_EVERY)
            with suppress(StoreUnavailable, OperationalError):
                old = job.started is not None and time.time() - job.started >= stored_job.EARLY_AFTER
                if old and not called and 2 * teacher.answered >= len(teacher.indices):
                    called = LEARN in (await context.store.load(job.id)).due()
                    if called:
                        await context.advance(job.id)
                if time.monotonic() - began >= context.turn:
                    teacher.giving_way = bool(await asyncio.to_thread(context.queue.waiting, role))

    looking = asyncio.ensure_future(look())
    try:
        yield
    finally:
        await end(looking)


async def _patiently(
    context: Context, job: StoredJob, api_id: str, ask: Callable[[], Coroutine[Any, Any, T]], watch: Watch
) -> T:
    """What the API tells without charge. An API that is down is reported, and tried again for a while."""
    since, pause = time.monotonic(), FIRST_PAUSE
    while True:
        watch.check()
        try:
            return await watch.finish(asyncio.wait_for(ask(), context.timeout))
        except TimeoutError:
            error: ApiUnavailable | RateLimited = ApiUnavailable(f"no whole answer within {context.timeout:.0f} s")
        except (ApiUnavailable, RateLimited) as unavailable:
            error = unavailable
        if time.monotonic() + pause - since > context.patience or time.time() > job.deadline():
            raise error
        if pause == FIRST_PAUSE:
            message = f"the API does not answer; trying for {context.patience:.0f} s: {error}"
            await context.store.work.warn(job.id, watch.lease, message, api=api_id)
        await watch.sleep(min(error.retry_after or pause, LONGEST_PAUSE))
        pause *= 2


async def _tell(context: Context, job: StoredJob, api_id: str, watch: Watch, **state: Any) -> None:
    """Set and announce the API's state."""
    planned = len(plan_of(job).assigned[place_of(api_id)])
    progress = job.apis[api_id].model_copy(update={"planned": planned, "reason": None, **state})
    await context.store.work.set_api(job.id, watch.lease, api_id, progress)
