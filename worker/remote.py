"""`RemoteTeacher`: asks one API about its part of the query set, in chunks, each recorded before it is sent.

    reserve (write ahead) -> send -> store the answer -> settle and announce

Several chunks are under way at once, as many as the API's rate and latency need. A chunk is sent again only with the same bytes
under the same key, and only to an API that promises to answer that without a second charge. Otherwise a lost outcome is settled
as unconfirmed: counted as spent, never sent again.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from hashlib import sha256
from random import random
from typing import Any

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
from client.model import Answer, ModelInfo
from contracts.oip import Tensor
from meta_server.store.artifacts import Artifacts
from metering.ledger import BudgetSpent, Chunk, Hold, JobClosed, Ledger, Outcome, QuotaReached, Settled
from metering.tasks import end
from worker import metrics
from worker.adapters import RemoteModel
from worker.pace import LONGEST_PAUSE, Pacer, Turn
from worker.probe import IMAGES, USELESS_AFTER, BadApi, Sameness, read_probabilities
from worker.queries import Images
from worker.todo import Todo
from worker.watch import GRACE, Stopped, Watch, Why, why
from worker.window import Window

CHUNK = 64  # images a request for an API that states no limit
LARGEST_CHUNK = 512
REPLAY_SECONDS = 23 * 3600  # a key replays for 24 hours; the rest is for clocks that disagree
MOST_LOSSES = 3  # answers in a row that may be lost without replay
SILENT_AFTER = 3.0  # seconds in which a chunk was sent in vain and no other was answered
LONGEST_HINT = 3600.0  # an API that asks for more patience than this is given up

Step = Coroutine[Any, Any, None]


class Enough(Exception):
    """The API gives no more (its budget is spent, it fails); what it gave stands. The message says why."""


class JobEnough(Enough):
    """The job asks no API any more: its own budget or time is spent."""


@dataclass
class RemoteTeacher:
    """One API as the worker asks it. `indices` are the pool images planned for it, ascending; those in `known` need no asking.

    After `deadline`, in seconds since the epoch, nothing new is asked. `answered` counts images whose answer is stored,
    over all attempts at the job. `tell` is for the person who watches the job.
    """

    job_id: str
    api_id: str
    model: RemoteModel
    info: ModelInfo
    indices: NDArray[np.int64]
    images: Images
    ledger: Ledger
    artifacts: Artifacts
    watch: Watch
    tell: Callable[[str], Awaitable[None]]
    patience: float
    timeout: float
    deadline: float = math.inf
    known: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    answered: int = 0
    largest: int = field(init=False)
    _todo: Todo = field(init=False)
    _pacer: Pacer = field(init=False)
    _window: Window = field(default_factory=Window)
    _chunks: int = 0
    _losses: int = 0
    _lost_at: float = 0.0
    _silent: bool = False  # it does not answer, and that was told
    _heard: float = -math.inf  # when it answered this worker last
    _sameness: Sameness = field(default_factory=Sameness)
    giving_way: bool = False  # ask nothing more: set from outside

    def __post_init__(self) -> None:
        self.largest = min(self.info.max_images or CHUNK, LARGEST_CHUNK)
        self._todo = Todo.of(np.flatnonzero(~np.isin(self.indices, self.known)).tolist())
        self._pacer = Pacer(self._sleep)

    @property
    def left(self) -> int:
        """Images that are neither answered nor counted as spent."""
        return len(self._todo)

    async def resume(self) -> None:
        """Take up where an earlier worker stopped: count what is settled, resolve what is open.

        Raises what `ask` raises.
        """
        for settled in await self.ledger.settled(self.api_id):
            self._chunks = max(self._chunks, settled.chunk.number + 1)
            if settled.outcome is not Outcome.RELEASED:
                self._todo.remove(settled.chunk.start, settled.chunk.stop)
            self._count(settled)
        holds = await self.ledger.open_holds(self.api_id)
        for hold in holds:
            self._chunks = max(self._chunks, hold.chunk.number + 1)
            self._todo.remove(hold.chunk.start, hold.chunk.stop)
        left = iter(holds)
        await self._all(lambda: None if (hold := next(left, None)) is None else self._resolve(hold))

    async def probe(self, images: int) -> None:
        """Ask about the first `images`, one chunk after the other. Raises what `ask` raises."""
        while len(self.indices) - self.left < min(images, len(self.indices)):
            await self._ask(*self._todo.take(min(self.largest, images)))

    async def ask(self, until: int | None = None) -> None:
        """Ask about all that is left, or all of it before the place `until`; no more once `giving_way` is set.

        Raises `BadApi` when an answer is no answer, `Enough` when the API or the budget gives no more: then all that was under
        way has its outcome. Raises `Stopped`, `LeaseLost`, `StoreUnavailable`, OSError when an answer cannot be stored: then
        what is under way has a few seconds to end, and the next worker resolves the rest.
        """
        await self._all(lambda: self._ask(*self._todo.take(self._size(), until)) if self._more(until) else None)

    def _more(self, until: int | None) -> bool:
        return self._todo.left(until) > 0 and not self.giving_way

    def _size(self) -> int:
        # a worker that takes over knows no burst yet: a large chunk would be refused, and lost if that is not heard
        return min(self.largest, self._pacer.most_images or (self.largest if self._heard > -math.inf else IMAGES))

    def _room(self) -> int:
        """How many chunks may be under way: no more than may be lost, where an answer that was lost is lost for good."""
        size = int(self._window.size)
        return size if self.info.idempotency else min(size, MOST_LOSSES - self._losses)

    async def _all(self, following: Callable[[], Step | None]) -> None:
        """Do one step after the other, as many at once as there is room for, until there is none."""
        under_way: set[asyncio.Future[None]] = set()
        failures: list[BaseException] = []
        try:
            while True:
                while not failures and len(under_way) < self._room() and (step := following()) is not None:
                    under_way.add(asyncio.ensure_future(step))
                if not under_way:
                    break
                # an API that gives no more leaves the others time to end, and who must stop sees to it; else, a moment
                broken = not all(isinstance(failure, Enough | BadApi | Stopped | QuotaReached) for failure in failures)
                done, under_way = await asyncio.wait(
                    under_way, timeout=GRACE if broken else None, return_when=asyncio.FIRST_COMPLETED
                )
                failures += [failure for task in done if (failure := task.exception()) is not None]
                if not done:
                    break
        finally:
            await end(*under_way)
        if failures:
            raise min(failures, key=_severity)

    async def _ask(self, start: int, stop: int) -> None:
        """Ask about the places from `start` to `stop`, which were taken."""
        self.watch.check()
        self._look_at_the_clock()
        body, headers, chunk = await self._prepare(start, stop, number=self._next_number())
        turn = await self._pacer.turn(chunk.images)
        try:
            await self.ledger.reserve(self.watch.lease, chunk)
        except BudgetSpent as spent:
            if spent.left < 1:
                raise JobEnough("the job's budget is spent") from None
            self.largest = min(self.largest, spent.left)
            self._todo.give_back(start, stop)
            return
        except JobClosed as closed:
            raise Stopped(why(closed.status)) from None
        await self._send(chunk, body, headers, turn)

    def _next_number(self) -> int:
        self._chunks += 1
        return self._chunks - 1

    async def _prepare(self, start: int, stop: int, *, number: int) -> tuple[bytes, dict[str, str], Chunk]:
        """The request about images `start` to `stop` of this API's queries, and its record."""

        def prepare() -> tuple[bytes, dict[str, str], str]:
            body, headers = self.encode(start, stop)
            return body, headers, sha256(body).hexdigest()

        body, headers, digest = await asyncio.to_thread(prepare)
        return body, headers, Chunk(api=self.api_id, number=number, start=start, stop=stop, digest=digest)

    def encode(self, start: int, stop: int) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the request about these places: the same bytes each time."""
        pixels = self.images(self.indices[start:stop])
        pixels_typed = typed(pixels, self.info.datatype)
        tensor = Tensor(name="images", datatype=self.info.datatype, shape=pixels.shape, data=pixels_typed.tobytes())
        return self.model.encode(tensor)

    async def _resolve(self, hold: Hold) -> None:
        """Learn the outcome of a chunk that an earlier worker may have sent."""
        chunk = hold.chunk
        if self.info.idempotency and time.time() - hold.since < REPLAY_SECONDS and chunk.stop <= len(self.indices):
            body, headers, again = await self._prepare(chunk.start, chunk.stop, number=chunk.number)
            if again.digest == chunk.digest:
                try:
                    turn = await self._pacer.turn(chunk.images)
                except Enough:
                    await self._settle(chunk, Outcome.UNCONFIRMED)
                    raise
                await self._send(chunk, body, headers, turn, maybe_sent=True)
                return
        await self._settle(chunk, Outcome.UNCONFIRMED)

    async def _send(
        self, chunk: Chunk, body: bytes, headers: dict[str, str], turn: Turn, *, maybe_sent: bool = False
    ) -> None:
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
                self._window.refused(turn.at, failing_since)
            except (InProgress, ApiUnavailable) as error:
                refused, wait = error, error.retry_after
                self._window.refused(turn.at, time.monotonic())
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
                await self._keep(chunk, answer, turn)
                return
            wait = min(LONGEST_PAUSE, 0.5 * 2.0**attempt) if wait is None else wait
            attempt += 1
            if time.monotonic() - max(failing_since, self._heard) > SILENT_AFTER and not self._silent:
                self._silent = True
                await self.tell(f"the API does not answer; trying for {self.patience:.0f} s: {named(refused)}")
            if wait > LONGEST_HINT or time.monotonic() - failing_since > self.patience:
                await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
                did = "asked to be left alone" if wait > LONGEST_HINT else "did not answer"
                raise Enough(f"it {did} for {max(wait, self.patience):.0f} s: {named(refused)}") from refused
            try:
                if isinstance(refused, RateLimited):
                    self._pacer.hold_off(wait)  # the others too: they would be refused as well
                else:
                    await self._sleep(wait * (1 + random() / 4))
                turn = await self._pacer.turn(chunk.images)
            except Enough:
                await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
                raise
            except Stopped as stopped:
                if stopped.why is Why.ENDED or (stopped.why is Why.PAUSED and not maybe_sent):
                    await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
                raise

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not past the deadline. Raises `Enough` then, and `Stopped`."""
        await self.watch.sleep(min(seconds, max(0.0, self.deadline - time.time())))
        self._look_at_the_clock()

    def _look_at_the_clock(self) -> None:
        if time.time() > self.deadline:
            raise JobEnough("the job's deadline for asking has passed")

    async def _infer(self, body: bytes, headers: dict[str, str], key: str | None) -> Answer:
        """One attempt, bounded as a whole: an API that drips bytes is as good as gone."""
        try:
            return await asyncio.wait_for(self.model.infer(body, headers, idempotency_key=key), self.timeout)
        except TimeoutError:
            raise ApiUnavailable(f"no whole answer within {self.timeout:.0f} s") from None

    async def _lost(self, chunk: Chunk, error: MetazooError) -> None:
        """An answer was lost that the API will not give again; after a few in a row it is given up."""
        await self._settle(chunk, Outcome.UNCONFIRMED)
        self._losses, self._lost_at = self._losses + 1, time.monotonic()
        if self._losses >= MOST_LOSSES:
            raise Enough(f"{self._losses} answers in a row were lost: {named(error)}") from error

    async def _refused(self, chunk: Chunk, error: MetazooError, maybe_sent: bool) -> None:
        """The API refused the chunk and charged nothing for this attempt."""
        await self._settle(chunk, Outcome.UNCONFIRMED if maybe_sent else Outcome.RELEASED)
        smaller = None
        if isinstance(error, TooLarge):
            smaller = error.max_images or chunk.images // 2
        elif isinstance(error, BudgetExhausted):
            smaller = error.left
        if smaller and smaller < chunk.images:
            self.largest = min(self.largest, smaller)
        elif isinstance(error, BudgetExhausted):
            raise Enough("the budget of its key is spent") from error
        else:
            raise BadApi(f"it refused the request: {named(error)}") from error

    async def _keep(self, chunk: Chunk, answer: Answer, turn: Turn) -> None:
        """Learn what the answer says of rates, store it, then confirm it."""
        seconds = time.monotonic() - turn.at
        self._window.answered(chunk.images, seconds, paced=self._pacer.knows_a_rate, waited=turn.waited)
        self._pacer.learn(turn, answer.limits)
        self._heard = time.monotonic()
        if self._silent:
            self._silent = False
            await self.tell("the API answers again")
        budget = answer.limits.get("budget")
        if budget is not None and budget.remaining:
            self.largest = min(self.largest, budget.remaining)
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
        stem = f"jobs/{self.job_id}/answers/{chunk.id}-{self.watch.lease.fence}"
        path = await asyncio.to_thread(self.artifacts.keep, stem, ".safetensors", content)
        await self._settle(chunk, Outcome.CONFIRMED, path)
        if turn.at > self._lost_at:
            self._losses = 0
        self._sameness.add(probabilities)
        if self._sameness.images >= USELESS_AFTER:
            raise Enough(f"it gave the same answer to each of {self._sameness.images} images")

    async def _settle(self, chunk: Chunk, outcome: Outcome, path: str | None = None) -> None:
        await self.ledger.settle(self.watch.lease, chunk, outcome, path=path)
        metrics.images.labels(outcome.value).inc(chunk.images)
        if outcome is Outcome.RELEASED:  # asked again, in another chunk
            self._todo.give_back(chunk.start, chunk.stop)
        self._count(Settled(chunk, outcome, path))

    def _count(self, settled: Settled) -> None:
        if settled.outcome is Outcome.CONFIRMED:
            self.answered += settled.chunk.images


def typed(pixels: NDArray[np.uint8] | NDArray[np.float32], datatype: str) -> NDArray[Any]:
    """Pixels as the API takes them: UINT8, or FP32 in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels if datatype == "UINT8" else pixels.astype("<f4") / np.float32(255)
    return (pixels * 255).round().astype(np.uint8) if datatype == "UINT8" else pixels.astype("<f4")


def _severity(failure: BaseException) -> int:
    """What ends the task counts before what is wrong with the API, and that before an API that gives no more."""
    return 2 if isinstance(failure, Enough) else 1 if isinstance(failure, BadApi) else 0


def _may_be_charged(error: MetazooError) -> bool:
    """Whether the attempt may have been worked on: 503 is said before any work, a refused connection carries none."""
    if isinstance(error, ApiUnavailable):
        return error.sent and error.status != 503
    return True


def named(error: MetazooError) -> str:
    """What went wrong, in our words: the API's own are not repeated."""
    return f"status {error.status}" if error.status is not None else str(error)
