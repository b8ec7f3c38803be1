"""The answers of a job as its learner takes them in: all at once when all are there, else as they come, at set steps.

A learner that begins early takes in what has arrived before steps 0, 10 %, 20 %, 30 % and 40 % of its steps, and waits for all
before half of them: the last half is learned on all answers. Each time, what was taken is recorded before it is used, so that
whoever takes the job up again makes the same model: it depends on the answers and this record alone.
"""

import asyncio
import json
from collections.abc import Sequence

import torch
from safetensors.torch import load as from_safetensors

from dfml import spill
from dfml.memory import Answers
from meta_server.store.stored_job import LATE, LEARN, StoredJob
from metering.ledger import Outcome, Settled
from worker.context import Context
from worker.joined import joined
from worker.queries import own_pool, plan_of
from worker.reused import Earlier, api_of, earlier_jobs, pool_of
from worker.watch import Watch

TENTHS = (1, 2, 3, 4)  # of all steps, at which what has arrived is taken in; at five, all
LOOK_EVERY = 1.0  # seconds between looks at whether all has arrived
RECORD = "arrivals"
AT_ONCE = 512  # images that are made before they are put where all lie

Cut = dict[str, list[int]]
"""API id -> numbers of its chunks, both in the order in which they were taken in."""


class GaveWay(Exception):
    """The learner waited for answers while another job could be learned: it begins again when all have come."""


class Arrivals:
    """`begin` first, then `more` from the training thread."""

    def __init__(self, context: Context, job: StoredJob, watch: Watch) -> None:
        self._context = context
        self._job_id = job.id
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._cuts: dict[int, Cut] = {int(at): cut for at, cut in json.loads(job.checkpoints.get(RECORD, "{}")).items()}
        self._taken: Cut = {}
        self._images: torch.Tensor | None = None
        self._earlier: list[Earlier] = []
        self.early = False

    async def begin(self) -> Answers:
        """The answers to begin with; `early` says whether more may come. Raises ValueError where there are none."""
        job = await self._context.store.load(self._job_id)
        self._earlier = await earlier_jobs(self._context, job)
        for name in sorted(set(job.request.reuse) - {one.job.id for one in self._earlier}):
            message = f"{name} holds no answers any more: it is learned without them"
            await self._context.store.work.warn(job.id, self._watch.lease, message)
        if self._earlier and job.waiting():
            await self._give_way()  # what earlier jobs answered has its place behind all that is asked now
        self.early = bool(self._cuts) or bool(job.waiting())
        answers = await self._take(0) if self.early else await self._read(job, await self._arrived(job))
        if answers is None:
            raise ValueError("no API has answered yet: wait for one")
        return answers

    def more(self, step: int, steps: int) -> Answers | None:
        """For `dfml`, in the training thread: all answers, if there are new ones to take in before this step."""
        if step == 0 or step not in {steps * tenth // 10 for tenth in TENTHS} | {steps // 2}:
            return None
        coming = self._take(step, all_of_them=step == steps // 2)
        return asyncio.run_coroutine_threadsafe(coming, self._loop).result()

    async def _take(self, step: int, *, all_of_them: bool = False) -> Answers | None:
        job = await self._context.store.load(self._job_id)
        if step not in self._cuts:
            while all_of_them and job.waiting():
                if await asyncio.to_thread(self._context.queue.waiting, LEARN):
                    await self._give_way()
                await self._watch.sleep(LOOK_EVERY)
                job = await self._context.store.load(self._job_id)
            self._cuts[step] = await self._arrived(job)
            record = json.dumps({str(at): cut for at, cut in self._cuts.items()}, separators=(",", ":"))
            await self._context.store.work.checkpoint(self._job_id, self._watch.lease, RECORD, record)
        if self._cuts[step] == self._taken:
            return None
        self._taken = self._cuts[step]
        return await self._read(job, self._taken)

    async def _give_way(self) -> None:
        await self._context.store.work.checkpoint(self._job_id, self._watch.lease, LATE, "1")
        await self._context.store.work.checkpoint(self._job_id, self._watch.lease, RECORD, "{}")
        raise GaveWay

    async def _arrived(self, job: StoredJob) -> Cut:
        """What is confirmed now: APIs taken in before in their places, then the others in the order of the request."""
        settled = await self._context.store.ledger(job.id).settled()
        cut: Cut = {api: [] for api in self._taken}
        for api in job.apis if job.waiting() else job.finished("done"):
            cut.setdefault(api, [])
        for one in settled:
            if one.outcome is Outcome.CONFIRMED and one.chunk.api in cut:
                cut[one.chunk.api].append(one.chunk.number)
        # an API counts once it has answered; in the end, all that are kept do
        return {api: numbers for api, numbers in cut.items() if numbers or not job.waiting()}

    async def _read(self, job: StoredJob, cut: Cut) -> Answers | None:
        settled = {(one.chunk.api, one.chunk.number): one for one in await self._context.store.ledger(job.id).settled()}
        chunks = [[settled[api, number] for number in numbers] for api, numbers in cut.items()]
        if not chunks:
            return None
        own = await asyncio.to_thread(self._answers, job, chunks)
        if not self._earlier:
            return own
        assert job.input_shape is not None  # noqa: S101 - whoever answered has told it
        apis, shape = [api_of(job.spec(api)) for api in cut], job.input_shape
        return await asyncio.to_thread(
            joined, own, apis, pool_of(job, shape), shape, self._earlier, self._context.artifacts
        )

    def _answers(self, job: StoredJob, chunks: Sequence[Sequence[Settled]]) -> Answers:
        if self._images is None:
            assert job.input_shape is not None  # noqa: S101 - whoever answered has told it
            pool = own_pool(job.request, job.input_shape, self._context.artifacts)
            self._images = spill.room((plan_of(job).images, *job.input_shape))
            for places in torch.arange(len(self._images)).split(AT_ONCE):
                self._images[places] = torch.from_numpy(pool.images(places.numpy()))
        images = self._images
        probabilities: list[torch.Tensor] = []
        asked = torch.zeros(len(images), len(chunks), dtype=torch.bool)
        for column, taken in enumerate(chunks):
            paths = [one.path for one in taken if one.path is not None]
            rows = [from_safetensors(self._context.artifacts.recall(path)) for path in paths]
            answered = torch.zeros(len(images), rows[0]["probabilities"].shape[1] if rows else 2)
            for row in rows:
                answered[row["indices"]] = row["probabilities"]
                asked[row["indices"], column] = True
            probabilities.append(answered)
        return Answers(images=images, probabilities=probabilities, asked=asked)
