"""Methods that ask as they go: the learner asks the APIs itself, on the same books as everybody.

In the training thread each API is a `dfml` teacher. What it asks goes to the event loop, to the same `RemoteTeacher` that asks
planned images: reserve, send, store, settle. Whoever takes the job up again trains as the one before did; the same seed makes
the same images, and what was settled is read from the store instead of being asked again: the digest of each request says so.
With a checkpoint of the training it begins there, and each API counts on from the images that it had been asked by then.

Where the method takes published weights, the teachers are built from those that acquisition kept, and nothing is asked.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as from_safetensors
from torch import Tensor

from client.errors import MetazooError
from contracts.jobs import JobError
from dfml.access import WeightsNeeded
from dfml.checkpoint import Checkpoint
from dfml.methods import METHODS
from dfml.teachers import ModuleTeacher, Teacher, check_images, white_box
from meta_server.store.stored_job import StoredJob
from metering.ledger import Outcome, Settled
from worker.adapters import open_model
from worker.context import Context
from worker.failures import JobFault
from worker.probe import BadApi, check_same_size
from worker.remote import Enough, RemoteTeacher
from worker.transport import AddressRefused
from worker.watch import Watch
from worker.weights import KeptWeights, checkpoint_of, field_of

OnStep = Callable[..., None]


class Asked:
    """One API as a `dfml.teachers.Teacher`. An image whose answer was lost for good counts as answered evenly."""

    def __init__(self, remote: RemoteTeacher, loop: asyncio.AbstractEventLoop, settled: Sequence[Settled]) -> None:
        channels, height, width = remote.info.input_shape
        self.ways = remote.info.classes
        self.input_shape = (channels, height, width)
        self.eight_bit = remote.info.datatype == "UINT8"
        self.queries = 0
        self._remote = remote
        self._loop = loop
        self._settled = {one.chunk.start: one for one in settled if one.outcome is not Outcome.RELEASED}
        self._resumed = False
        self._shown: NDArray[np.float32] = np.empty(0, np.float32)
        remote.images = self._images

    def predict(self, images: Tensor) -> Tensor:
        """float in [0, 1], or uint8, (n, 3, h, w) -> probabilities float32 (n, ways). Called in the training thread.

        Raises what `RemoteTeacher.ask` raises, and `JobFault` where other images were asked about before.
        """
        check_images(images, self.input_shape)
        given = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return asyncio.run_coroutine_threadsafe(self._answers(given.contiguous().numpy()), self._loop).result()

    def _images(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        shown: NDArray[np.float32] = self._shown[indices - self.queries]
        return shown

    async def _answers(self, images: NDArray[np.float32]) -> Tensor:
        start, stop = self.queries, self.queries + len(images)
        self._shown = images
        known = self._known(start, stop)
        if sum(one.chunk.images for one in known) < len(images):
            if not self._resumed:  # what the last worker left under way lies among these images, and these alone
                self._resumed = True
                await self._remote.resume()
            await self._remote.ask(stop)
            known = await self._settled_since(start, stop)
        answers = np.full((len(images), self.ways), 1 / self.ways, np.float32)
        for one in known:
            await self._same(one)
            if one.path is not None:
                kept = from_safetensors(await asyncio.to_thread(self._remote.artifacts.recall, one.path))
                answers[kept["indices"] - start] = kept["probabilities"]
        self.queries = stop
        return torch.from_numpy(answers)

    def _known(self, start: int, stop: int) -> list[Settled]:
        return [one for at, one in self._settled.items() if start <= at < stop]

    async def _settled_since(self, start: int, stop: int) -> list[Settled]:
        for one in await self._remote.ledger.settled(self._remote.api_id):
            if one.outcome is not Outcome.RELEASED:
                self._settled[one.chunk.start] = one
        return self._known(start, stop)

    async def _same(self, one: Settled) -> None:
        """Whether what was settled was asked about these images. Raises `JobFault`."""
        chunk = one.chunk
        if chunk.stop <= self.queries + len(self._shown):
            body, _ = await asyncio.to_thread(self._remote.encode, chunk.start, chunk.stop)
            if sha256(body).hexdigest() == chunk.digest:
                return
        raise JobFault(
            JobError(
                code="not_reproducible",
                message="the images made now are not those that were asked about: train where the job began, with the same "
                "budget and number of threads, or submit it anew; the answers stay stored",
            )
        )


async def learn_from_apis(
    context: Context, job: StoredJob, watch: Watch, *, device: str, on_step: OnStep, checkpoint: Checkpoint
) -> Any:
    """What the job's method learned, asking the APIs that are left, within the budget.

    Raises `JobFault` where the method cannot work with these APIs or this budget, before anything is spent, and where an API
    gives no more: its answers stay, and the job can be retried.
    """
    request, method = job.request, METHODS[job.request.method.name]
    async with AsyncExitStack() as stack:
        teachers: Sequence[Teacher]
        if request.takes_weights:
            teachers = whites = await _white_boxes(context, job, device)
        else:
            teachers, whites = await stack.enter_async_context(_apis(context, job, watch)), []

        def train() -> Any:
            done = method.train(
                teachers,
                request.meta_model,
                request.method,
                queries=request.budget.queries,
                queries_per_api=request.budget.queries_per_api,
                seed=request.seed,
                device=device,
                on_step=on_step,
                checkpoint=checkpoint,
            )
            if not whites:
                return done
            passes = sum(teacher.forward_passes + teacher.backward_passes for teacher in whites)
            return replace(done, metrics=done.metrics | {"teacher_passes": float(passes)})

        try:
            return await asyncio.to_thread(train)
        except WeightsNeeded as error:
            raise _fault("weights_needed", str(error), "method.gradients.source") from error
        except ValueError as error:
            raise _fault("method_unfit", str(error), "method") from error
        except (AddressRefused, BadApi, Enough, MetazooError) as error:
            told = f"an API gave no more while {request.method.name} was asking: {error}. Retry the job when it is back"
            raise _fault("api_gave_up", told, "apis") from error


@asynccontextmanager
async def _apis(context: Context, job: StoredJob, watch: Watch) -> AsyncIterator[list[Asked]]:
    """The APIs that acquisition left, in the order of the request, described anew."""
    teachers, loop, ledger = [], asyncio.get_running_loop(), context.store.ledger(job.id)
    async with AsyncExitStack() as stack:
        for api_id in job.finished("done"):
            url = job.spec(api_id).url
            try:
                await context.guard.check(url)
                key = await context.store.api_key(job.id, api_id)
                secret = None if key is None else key.get_secret_value()
                model = open_model(job.spec(api_id), secret, transport=context.transport(), timeout=context.timeout)
                info = await watch.finish((await stack.enter_async_context(model)).metadata())
                assert job.input_shape is not None  # noqa: S101 - whoever is done has told it
                check_same_size(info, job.input_shape)
            except (AddressRefused, BadApi, MetazooError) as error:
                raise _fault(
                    "api_gave_up", f"{url} cannot be asked: {error}. Retry the job when it is back", "apis"
                ) from error
            remote = RemoteTeacher(
                job_id=job.id,
                api_id=api_id,
                model=model,
                info=info,
                indices=np.arange(job.request.budget.queries),
                images=lambda indices: np.empty(0, np.float32),
                ledger=ledger,
                artifacts=context.artifacts,
                watch=watch,
                tell=partial(context.store.work.warn, job.id, watch.lease, api=api_id),
                patience=context.patience,
                timeout=context.timeout,
                deadline=job.deadline(),
            )
            teachers.append(Asked(remote, loop, await ledger.settled(api_id)))
        yield teachers


async def _white_boxes(context: Context, job: StoredJob, device: str) -> list[ModuleTeacher]:
    """The teachers whose weights acquisition kept, in the order of the request. Raises `JobFault` for what is no such thing."""

    def load(api_id: str) -> ModuleTeacher:
        kept = KeptWeights.model_validate_json(job.checkpoints[checkpoint_of(api_id)])
        try:
            return white_box(kept.network, context.artifacts.recall(kept.path), ways=kept.ways, device=device)
        except ValueError as error:  # it may hold words of the file's, which are not repeated
            told = f"the weights that {job.spec(api_id).url} publishes are not those of the network that it states"
            raise _fault("weights_unfit", f"{told}: leave it out, or tell its host", field_of(api_id)) from error

    return [await asyncio.to_thread(load, api_id) for api_id in job.finished("done")]


def _fault(code: str, message: str, param: str) -> JobFault:
    return JobFault(JobError(code=code, message=message, param=param))
