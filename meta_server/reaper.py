"""Hands on the work of workers that vanished, and closes jobs that nobody works on.

Every server process runs one; a lease lets one of them work at a time. A role is sent again when it lost its holder since
it was last sent, or when nothing waits in its queue although nobody holds it. A dead worker costs the rest of its lease and
one beat, one of the same machine a beat alone; where the reaper died as well, the rest of the reaper's lease too.
"""

import asyncio
import json
import math
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis

from contracts.jobs import ENDED, JobStatus
from contracts.problems import ProblemError
from meta_server.queue import Queue, queues_of
from meta_server.store import keys
from meta_server.store.holders import is_gone
from meta_server.store.jobs import JobStore
from meta_server.store.stored_job import LEARN, StoredJob, acquire_role
from meta_server.store.webhooks import Webhooks
from metering.leases import UNLIMITED, Lease, LeaseLost, Leases
from metering.scripts import MICROSECONDS, Scripts, StoreUnavailable, store_errors

BEAT = 3.0  # seconds between looks at jobs whose leases have ended, and of each at the next jobs of a round
EVERY = 15.0  # seconds between rounds over all open jobs
SECONDS = 12.0  # of the reaper's own lease: what it costs that the process which reaped was killed
PATIENCE = 15.0  # seconds that a sent role may wait before an empty queue means that its message is lost
LONGEST = 600.0  # after which it is sent again even if others wait: a worker may have died with it before it began
REST = 3.0  # times as long as it looked at a job it leaves the process to requests: thousands may be queued
ROLE = "reaper"

log = structlog.get_logger()


class _State(NamedTuple):
    """Of a role: whether somebody holds its lease, or held it and is gone; its fence; fence and time of the last message."""

    held: bool
    vanished: bool
    fence: int
    sent: tuple[int, float] | None


class Reaper:
    """Works a beat each `beat` seconds while this process holds the reaper's lease; a round of all open jobs takes several."""

    def __init__(self, store: JobStore, queue: Queue, redis: Redis, *, beat: float = BEAT) -> None:
        self._store = store
        self._queue = queue
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._beat = beat
        self._webhooks = Webhooks(redis)
        self._holder = uuid.uuid4().hex
        self._own = Leases(Scripts(redis), seconds=SECONDS, attempts=UNLIMITED)
        self._left: deque[str] = deque()  # of the round: jobs to be looked at
        self._ends: dict[str, float] = {}  # job -> when a lease of it ends, or patience with a message, in seconds
        self._holders: dict[str, set[str]] = {}  # job -> who holds a lease of it
        self._began = -math.inf  # the round, by `time.monotonic`

    async def run(self) -> None:
        """Until cancelled. Redis being away is waited out."""
        lease: Lease | None = None
        while True:
            try:
                lease = await self._hold(lease)
                if lease is not None:
                    await self.beat()
            except StoreUnavailable as error:
                log.warning("reaper_waits", cause=str(error))
            except Exception:
                log.exception("reaper_failed")  # one bad job must not leave all others without a reaper
            await asyncio.sleep(self._beat)

    async def _hold(self, lease: Lease | None) -> Lease | None:
        if lease is not None:
            try:
                await self._own.renew(lease)
            except LeaseLost:
                return None
            return lease
        return await self._own.take(keys.SERVICE_LEASES, ROLE, self._holder)

    async def beat(self) -> None:
        """Look at the jobs whose leases have ended or whose holders are gone, then at some of the round while there is time."""
        until = time.monotonic() + self._beat
        now = await self._now()
        ended = {job_id for job_id, end in self._ends.items() if end <= now}
        ended |= {job_id for job_id, holders in self._holders.items() if any(map(is_gone, holders))}
        for job_id in sorted(ended):
            await self._visit(job_id)
        if time.monotonic() - self._began >= EVERY:
            await self._begin_round()
        while self._left and time.monotonic() < until:
            started = time.monotonic()
            await self._visit(self._left.popleft())
            await asyncio.sleep(REST * (time.monotonic() - started))

    async def round(self) -> None:
        """Look at every open job once."""
        self._left.clear()
        await self._begin_round()
        while self._left:
            await self._visit(self._left.popleft())

    async def _begin_round(self) -> None:
        """Jobs that run come before those that wait to, and before what is left of a round that takes longer."""
        self._began = time.monotonic()
        with store_errors():
            running = await self._redis.zrange(keys.JOBS_BY_STATUS + JobStatus.RUNNING, 0, -1)
            waiting = self._left or sorted(map(bytes.decode, await self._redis.smembers(keys.OPEN_JOBS)))
        new = [job_id for job_id in map(bytes.decode, running) if job_id not in self._ends]
        self._left = deque(dict.fromkeys([*new, *waiting]))
        for job_id in await self._webhooks.due():
            await asyncio.to_thread(self._queue.notify, job_id)

    async def _visit(self, job_id: str) -> None:
        self._ends.pop(job_id, None)
        self._holders.pop(job_id, None)
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            try:
                job = await self._store.load(job_id)
                with structlog.contextvars.bound_contextvars(tenant=job.tenant):
                    await self._look(job_id, job)
            except ProblemError:
                log.warning("reaper_forgets")
                await self._forget(job_id)

    async def _look(self, job_id: str, job: StoredJob) -> None:
        await self._store.events.trim(job_id)
        due = job.due()
        if not due:
            closed = await self._store.moves.close(job_id)
            if closed and job.status in ENDED:
                await self._forget(job_id)
            elif not closed:
                _, states = await self._states(job_id)  # and when those who still stop must have done so
                for role in [*map(acquire_role, job.apis), LEARN]:
                    if states(role).vanished:
                        await self._store.leases.release(self._lease(job_id, role, states(role).fence))
            return
        if error := job.too_few():
            await self._store.moves.fail(job_id, error)
            return
        now, states = await self._states(job_id)
        for role in due:
            held, vanished, fence, sent = states(role)
            if held:
                continue
            if sent is None and fence == 0:  # its message was sent a moment ago by whoever made it due
                await self._note(job_id, role, fence, now)
                continue
            # one held before it was first looked at, or queued anew after a pause, may be sent twice: that harms nobody
            sent_fence, sent_at = sent or (0, now)
            lost_its_holder = fence > sent_fence
            silence = now - sent_at
            if silence <= PATIENCE and job.status is JobStatus.RUNNING:
                self._ends[job_id] = min(self._ends.get(job_id, math.inf), sent_at + PATIENCE)
            if lost_its_holder or silence > LONGEST or (silence > PATIENCE and not await self._waiting(job, role)):
                log.info("sent_again", role=role, lost_its_holder=lost_its_holder)
                await self._note(job_id, role, fence, now)
                if lost_its_holder and vanished:
                    await self._bury(job_id, role, fence)
                await asyncio.to_thread(self._queue.send, job_id, role, tenant=job.tenant)
                self._ends[job_id] = min(self._ends.get(job_id, math.inf), now + PATIENCE)

    async def _bury(self, job_id: str, role: str, fence: int) -> None:
        """Say to people why nothing moved, and end the lease: under that lease, so only while no other was taken."""
        if role == LEARN:
            about = {}
            told = "the worker that learned is not heard of any more: another goes on from what was kept last"
        else:
            about = {"api": role.removeprefix(acquire_role(""))}
            told = "the worker that asked it is not heard of any more: another goes on, and asks nothing anew that was answered"
        lease = self._lease(job_id, role, fence)
        with suppress(LeaseLost):
            await self._store.work.warn(job_id, lease, told, **about)
            await self._store.leases.release(lease)

    def _lease(self, job_id: str, role: str, fence: int) -> Lease:
        return Lease(keys.job(job_id, "leases"), role, fence, 0)

    async def _states(self, job_id: str) -> tuple[float, Callable[[str], _State]]:
        """The time, and how each role stands. When the first of its leases ends is noted."""
        now = await self._now()
        with store_errors():
            leases = await self._redis.hgetall(keys.job(job_id, "leases"))
            sent = await self._redis.hgetall(keys.job(job_id, "sent"))
        ends = [int(end) / MICROSECONDS for name, end in leases.items() if name.startswith(b"deadline:")]
        held = [name[5:] for name, fence in leases.items() if name.startswith(b"held:") and fence]
        self._holders[job_id] = {leases[b"holder:" + role].decode() for role in held}
        if ahead := [end for end in ends if end > now]:
            self._ends[job_id] = min(ahead)

        def state(role: str) -> _State:
            name = role.encode()
            deadline = int(leases.get(b"deadline:" + name, 0)) / MICROSECONDS
            taken = bool(leases.get(b"held:" + name))  # and not given back
            alive = deadline > now and not is_gone(leases.get(b"holder:" + name, b"").decode())
            told = json.loads(sent[name]) if name in sent else None
            return _State(taken and alive, taken and not alive, int(leases.get(b"fence:" + name, 0)), told)

        return now, state

    async def _now(self) -> float:
        with store_errors():
            seconds, microseconds = await self._redis.time()
        return float(seconds + microseconds / MICROSECONDS)

    async def _note(self, job_id: str, role: str, fence: int, now: float) -> None:
        with store_errors():
            await self._redis.hset(keys.job(job_id, "sent"), role, json.dumps([fence, now]))

    async def _waiting(self, job: StoredJob, role: str) -> bool:
        """Whether messages wait where the role's does: then it may be among them."""
        with store_errors():
            return any([await self._redis.llen(queue) for queue in queues_of(job.id, role, job.tenant)])

    async def _forget(self, job_id: str) -> None:
        with store_errors():
            await self._redis.srem(keys.OPEN_JOBS, job_id)
