"""`RemoteTeacher`: asks one API about its part of the query set, in chunks, each recorded before it is sent.

    reserve (write ahead) -> send -> store the answer -> settle and announce

A chunk is sent again only with the same bytes under the same key, and only to an API that promises to answer that without a
second charge. Otherwise a lost outcome is settled as unconfirmed: counted as spent, never sent again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import random

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors

from client.errors import (
    ApiUnavailable,
    BudgetExhausted,
    InProgress,
    InvalidAnswer,
    MetazooError,
    RateLimited,
    TooLarge,
)
from client.model import Answer, AsyncModel, ModelInfo
from contracts.oip import Tensor
from meta_server.store.artifacts import Artifacts
from metering.ledger import BudgetSpent, Chunk, Hold, JobClosed, Ledger, Outcome, Settled
from worker.probe import BadApi, read_probabilities
from worker.watch import Stopped, Watch, Why, why

CHUNK = 64  # images a request for an API that states no limit
LARGEST_CHUNK = 512
REPLAY_SECONDS = 23 * 3600  # a key replays for 24 hours; the rest is for clocks that disagree
LONGEST_PAUSE = 30.0  # between repetitions without a hint
MOST_LOSSES = 3  # answers in a row that may be lost without replay
LONGEST_HINT = 3600.0  # an API that asks for more patience than this is given up

Images = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Pool indices -> uint8 (n, 3, height, width)."""


class Enough(Exception):
    """The API gives no more (its budget is spent, it fails); what it gave stands. The message says why."""


@dataclass
class RemoteTeacher:
    """One API as the worker asks it. `indices` are the pool images planned for it, ascending; `position` counts those done.

    `answered` counts images whose answer is stored; both over all attempts at the job.
    """

    job_id: str
    api_id: str
    model: AsyncModel
    info: ModelInfo
    indices: NDArray[np.int64]
    images: Images
    ledger: Ledger
    artifacts: Artifacts
    watch: Watch
    patience: float
    timeout: float
    position: int = 0
    chunks: int = 0
    answered: int = 0
    largest: int = field(init=False)
    _wait_until: float = 0.0
    _losses: int = 0

    def __post_init__(self) -> None:
        self.largest = min(self.info.max_images or CHUNK, LARGEST_CHUNK)

    async def resume(self) -> None:
        """Take up where an earlier worker stopped: count what is settled, resolve what is open.

        Raises what `ask` raises.
        """
        for settled in await self.ledger.settled(self.api_id):
            self._count(settled)
        for hold in await self.ledger.open_holds(self.api_id):
            self.chunks = max(self.chunks, hold.chunk.number + 1)
            await self._resolve(hold)

    async def ask(self, most: int | None = None) -> None:
        """Ask about the next chunk of at most `most` images; `position` moves past it.

        Raises `BadApi` when the answer is no answer, `Enough` when the API or the budget gives no more, `Stopped`, `LeaseLost`,
        `StoreUnavailable`, OSError when the answer cannot be stored.
        """
        self.watch.check()
        size = min(self.largest, most or self.largest, len(self.indices) - self.position)
        await self._pace()
        body, headers, chunk = await self._prepare(self.position, self.position + size)
        try:
            await self.ledger.reserve(self.watch.lease, chunk)
        except BudgetSpent as spent:
            if spent.left < 1:
                raise Enough("the job's budget is spent") from None
            self.largest = spent.left
            return
        except JobClosed as closed:
            raise Stopped(why(closed.status)) from None
        self.chunks += 1
        await self._send(chunk, body, headers)

    async def _prepare(self, start: int, stop: int) -> tuple[bytes, dict[str, str], Chunk]:
        """The request about images `start` to `stop` of this API's queries, and its record."""

        def encode() -> tuple[bytes, dict[str, str], str]:
            pixels = self.images(self.indices[start:stop])
            typed = pixels if self.info.datatype == "UINT8" else pixels.astype("<f4") / np.float32(255)
            tensor = Tensor(name="images", datatype=self.info.datatype, shape=pixels.shape, data=typed.tobytes())
            body, headers = self.model.encode(tensor)
            return body, headers, sha256(body).hexdigest()

        body, headers, digest = await asyncio.to_thread(encode)
        return body, headers, Chunk(api=self.api_id, number=self.chunks, start=start, stop=stop, digest=digest)

    async def _resolve(self, hold: Hold) -> None:
        """Learn the outcome of a chunk that an earlier worker may have sent."""
        chunk = hold.chunk
        if self.info.idempotency and time.time() - hold.since < REPLAY_SECONDS and chunk.stop <= len(self.indices):
            body, headers, again = await self._prepare(chunk.start, chunk.stop)
            if again.digest == chunk.digest:
                await self._send(chunk, body, headers, maybe_sent=True)
                return
        await self._settle(chunk, Outcome.UNCONFIRMED)

    async def _send(self, chunk: Chunk, body: bytes, headers: dict[str, str], *, maybe_sent: bool = False) -> None:
        """Send until the outcome is known, then settle. `maybe_sent`: an outcome may have been lost before."""
        key = chunk.key(self.job_id) if self.info.idempotency else None
        failing_since, attempt = time.monotonic(), 0
        while True:
            try:
                answer = await self.watch.finish(self._infer(body, headers, key))
            except Stopped as stopped:
                if stopped.why is Why.ENDED:
                    await self._settle(chunk, Outcome.UNCONFIRMED)
                raise  # else the hold stays open, for the next worker to resolve
            except RateLimited as error:
                refused: MetazooError = error
                wait, failing_since = error.retry_after, time.monotonic()
            except (InProgress, ApiUnavailable) as error:
                refused, wait = error, error.retry_after
                maybe_sent = maybe_sent or _may_be_charged(error)
                if maybe_sent and key is None:
                    await self._lost(chunk, error)
                    return
            except InvalidAnswer as error:
                await self._settle(chunk, Outcome.UNCONFIRMED)
                raise BadApi(str(error)) from error
            except MetazooError as error:
                await self._refused(chunk, error, maybe_sent)
                return
            else:
                await self._keep(chunk, answer)
                return
            wait = min(LONGEST_PAUSE, 0.5 * 2.0**attempt) if wait is None else wait
            attempt += 1
            if wait > LONGEST_HINT or time.monotonic() - failing_since > self.patience:
                await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
                did = "asked to be left alone" if wait > LONGEST_HINT else "did not answer"
                raise Enough(f"it {did} for {max(wait, self.patience):.0f} s: {_named(refused)}") from refused
            try:
                await self.watch.sleep(wait * (1 + random() / 4))
            except Stopped as stopped:
                if stopped.why is Why.ENDED or (stopped.why is Why.PAUSED and not maybe_sent):
                    await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
                raise

    async def _infer(self, body: bytes, headers: dict[str, str], key: str | None) -> Answer:
        """One attempt, bounded as a whole: an API that drips bytes is as good as gone."""
        try:
            return await asyncio.wait_for(self.model.infer(body, headers, idempotency_key=key), self.timeout)
        except TimeoutError:
            raise ApiUnavailable(f"no whole answer within {self.timeout:.0f} s") from None

    async def _lost(self, chunk: Chunk, error: MetazooError) -> None:
        """An answer was lost that the API will not give again; after a few in a row it is given up."""
        await self._settle(chunk, Outcome.UNCONFIRMED)
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            raise Enough(f"{self._losses} answers in a row were lost: {_named(error)}") from error

    async def _refused(self, chunk: Chunk, error: MetazooError, maybe_sent: bool) -> None:
        """The API refused the chunk and charged nothing for this attempt."""
        await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
        smaller = None
        if isinstance(error, TooLarge):
            smaller = error.max_images or chunk.images // 2
        elif isinstance(error, BudgetExhausted):
            smaller = error.left
        if smaller and smaller < chunk.images:
            self.largest = smaller
        elif isinstance(error, BudgetExhausted):
            raise Enough("the budget of its key is spent") from error
        else:
            raise BadApi(f"it refused the request: {_named(error)}") from error

    async def _keep(self, chunk: Chunk, answer: Answer) -> None:
        """Store the answer, then confirm it."""
        try:
            probabilities = read_probabilities(
                answer.probabilities,
                images=chunk.images,
                classes=self.info.classes,
                response_policy=self.info.response_policy,
            )
        except BadApi:
            await self._settle(chunk, Outcome.UNCONFIRMED)
            raise
        indices = self.indices[chunk.start : chunk.stop]
        content = to_safetensors({"indices": indices, "probabilities": probabilities})
        path = f"jobs/{self.job_id}/answers/{chunk.id}-{self.watch.lease.fence}.safetensors"
        await asyncio.to_thread(self.artifacts.write, path, content)
        await self._settle(chunk, Outcome.CONFIRMED, path)
        self._losses = 0
        self._plan_pause(answer)

    async def _settle(self, chunk: Chunk, outcome: Outcome, path: str | None = None) -> None:
        await self.ledger.settle(self.watch.lease, chunk, outcome, path=path)
        self._count(Settled(chunk, outcome, path))

    def _count(self, settled: Settled) -> None:
        chunk = settled.chunk
        self.chunks = max(self.chunks, chunk.number + 1)
        if settled.outcome is not Outcome.RELEASED:  # what was released is asked again, in another chunk
            self.position = max(self.position, chunk.stop)
        if settled.outcome is Outcome.CONFIRMED:
            self.answered += chunk.images

    def _plan_pause(self, answer: Answer) -> None:
        """Come no sooner than the API's stated rate allows the next chunk, and with no more than its budget has left."""
        following = min(self.largest, len(self.indices) - self.position)
        for limit in answer.limits.limits:
            if limit.remaining is None or limit.unit not in (None, "images"):
                continue
            short = following - limit.remaining
            if limit.quota and limit.window and short > 0 and following <= limit.quota:
                self._wait_until = time.monotonic() + short * limit.window / limit.quota
            elif limit.name == "budget" and short > 0 and limit.remaining:
                self.largest = limit.remaining

    async def _pace(self) -> None:
        wait = self._wait_until - time.monotonic()
        if wait > 0:
            await self.watch.sleep(min(wait, LONGEST_PAUSE))


def _may_be_charged(error: MetazooError) -> bool:
    """Whether the attempt may have been worked on: 503 is said before any work, a refused connection carries none."""
    if isinstance(error, ApiUnavailable):
        return error.sent and error.status != 503
    return True


def _named(error: MetazooError) -> str:
    """What went wrong, in our words: the API's own are not repeated."""
    return f"status {error.status}" if error.status is not None else str(error)
