"""The right to go on with a task: its lease is renewed, its job still wants it, and its worker is not shutting down."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

from contracts.jobs import JobStatus
from contracts.problems import ProblemError
from metering.leases import SECONDS, Lease, LeaseLost
from metering.scripts import StoreUnavailable
from metering.tasks import end
from worker.context import Context

T = TypeVar("T")

GRACE = 5.0  # seconds that a request under way is given to end when its task must stop


class Why(StrEnum):
    """Why a task must stop."""

    ENDED = "ended"  # the job was cancelled, or it failed: nothing more is wanted
    PAUSED = "paused"  # the job is to rest: what is under way is drained, what cannot be stays an open hold
    LOST = "lost"  # another worker has the lease, or may have
    TURN = "turn"  # others wait for this worker: the rest is asked when its turn comes again
    ELSEWHERE = "elsewhere"  # the job needs a GPU, which this worker has not
    SHUTDOWN = "shutdown"  # this worker stops; another one goes on


def why(status: str) -> Why:
    """Why to stop working on a job that is `status`, which is not running."""
    resting = (JobStatus.PAUSING, JobStatus.PAUSED, JobStatus.QUEUED)
    return Why.PAUSED if status in resting else Why.ENDED


class Stopped(Exception):
    """The task must stop; `why`."""

    def __init__(self, reason: Why) -> None:
        super().__init__(reason)
        self.why = reason


class Watch:
    """`check` and `sleep` raise `Stopped` as soon as the task has no right to go on. `check` may be called in any thread."""

    def __init__(self, context: Context, job_id: str, lease: Lease) -> None:
        self.lease = lease
        self._context = context
        self._job_id = job_id
        self._why: Why | None = None
        self._stop = asyncio.Event()

    def check(self) -> None:
        """Raise `Stopped` if the task must stop."""
        if self._why is not None:
            raise Stopped(self._why)

    async def sleep(self, seconds: float) -> None:
        """Wait, unless the task must stop first."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        self.check()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns. When the task must stop, it has some seconds left to end by itself, then `Stopped`."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=self._context.drain if self._why is Why.PAUSED else GRACE)
            if not task.done():
                self.check()
            return await task
        finally:
            stop.cancel()
            await end(task)

    async def keep(self) -> None:
        """Look at the job and renew the lease, until one of them says stop; while a pause drains, for as long as that takes."""
        renewed = time.monotonic()
        while self._why in (None, Why.PAUSED):
            await asyncio.sleep(self._context.poll_every)
            if self._context.stopping():
                return self._say(Why.SHUTDOWN)
            try:
                if time.monotonic() - renewed >= self._context.renew_every:
                    asked = time.monotonic()
                    await self._context.store.leases.renew(self.lease)
                    renewed = asked
                status = await self._context.store.status(self._job_id)
                if status != JobStatus.RUNNING:
                    self._say(why(status))
            except ProblemError:  # there is no such job any more
                return self._say(Why.ENDED)
            except LeaseLost:
                return self._say(Why.LOST)
            except StoreUnavailable:
                # Redis may come back before the lease has run out; past that, somebody else may have it
                if time.monotonic() - renewed >= SECONDS:
                    return self._say(Why.LOST)
        return None

    def _say(self, reason: Why) -> None:
        self._why = reason
        self._stop.set()


@asynccontextmanager
async def watching(context: Context, job_id: str, lease: Lease) -> AsyncIterator[Watch]:
    """Watches over a task and gives its lease back at the end.

    An ordered shutdown or a pause counts as no attempt, and neither does Redis being away: the task is not at fault.
    """
    watch = Watch(context, job_id, lease)
    keeper = asyncio.ensure_future(watch.keep())
    orderly = False
    try:
        yield watch
    except Stopped as stopped:
        orderly = stopped.why in (Why.SHUTDOWN, Why.PAUSED, Why.TURN, Why.ELSEWHERE)
        raise
    except StoreUnavailable:
        orderly = True
        raise
    finally:
        await end(keeper)
        await _give_back(context, lease, orderly=orderly)


async def _give_back(context: Context, lease: Lease, *, orderly: bool) -> None:
    """Release the lease, waiting a while for Redis to come back: a lease that is left to run out costs its job a minute."""
    deadline = time.monotonic() + context.give_back
    while True:
        try:
            await context.store.leases.release(lease, orderly=orderly)
        except StoreUnavailable:
            if time.monotonic() >= deadline:
                raise
            await asyncio.sleep(context.poll_every)
        else:
            return
