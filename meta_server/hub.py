"""Followers of many jobs over one Redis connection: one task reads every stream that is followed, and hands events out.

A follower first catches up from the stream itself, then takes what is handed out, and goes by ids: so it may join at any time,
and one that is too slow catches up again instead of holding the others up.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import structlog
from redis.asyncio import Redis

from contracts.job_records import Event
from contracts.jobs import ENDED, JobStatus
from meta_server.store import events, keys
from meta_server.store.jobs import JobStore
from metering.scripts import StoreUnavailable, store_errors

HEARTBEAT = 10.0  # seconds of silence
BLOCK = 100  # milliseconds for which one read waits; a stream that is newly followed joins the next
PAGE = 500  # events read at a time
BACKLOG = 1000  # events kept for a follower; beyond, it catches up from the stream
PAUSE = 1.0  # seconds before another look when Redis was away

log = structlog.get_logger()


class _Follower:
    """What is handed to one follower. `behind`: events are missing from `waiting`; the stream has them."""

    def __init__(self) -> None:
        self.waiting: deque[Event] = deque()
        self.behind = True
        self.lost: StoreUnavailable | None = None
        self.woken = asyncio.Event()

    def hand(self, event: Event) -> None:
        if len(self.waiting) >= BACKLOG:
            self.waiting.clear()
            self.behind = True
        if not self.behind:
            self.waiting.append(event)
        self.woken.set()


class Hub:
    """Events of jobs for everyone who follows one in this process. `run` must be running."""

    def __init__(self, redis: Redis, jobs: JobStore) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._jobs = jobs
        self._followers: dict[str, set[_Follower]] = {}  # by job id
        self._read: dict[str, str] = {}  # job id -> id of the last event handed out
        self._any = asyncio.Event()

    async def follow(self, job_id: str, *, after: str | None = None) -> AsyncIterator[Event | None]:
        """Events as they come, from the one after `after`; None after `HEARTBEAT` seconds of silence.

        Ends after the event of the job's last status. Raises `ProblemError` (`not-found`), `StoreUnavailable`.
        """
        follower = _Follower()
        self._followers.setdefault(job_id, set()).add(follower)
        self._any.set()
        last = after
        try:
            while True:
                if follower.lost is not None:
                    raise follower.lost
                follower.woken.clear()
                if follower.behind:
                    over = await self._jobs.status(job_id) in ENDED
                    follower.behind = False
                    follower.waiting.clear()  # what was handed out by now is read again, all of it in its order
                    while page := await events.read(self._redis, job_id, after=last, limit=PAGE):
                        for event in page:
                            last = event.id
                            yield event
                    if over:
                        return
                while follower.waiting and not follower.behind:
                    event = follower.waiting.popleft()
                    if last is not None and events.place(event.id) <= events.place(last):
                        continue
                    last = event.id
                    yield event
                    if event.type == "status" and JobStatus(event.data["status"]) in ENDED:
                        follower.behind = True  # look whether that was all: a failed job may have been retried
                if follower.behind or follower.waiting:
                    continue
                try:
                    await asyncio.wait_for(follower.woken.wait(), HEARTBEAT)
                except TimeoutError:
                    follower.behind = True  # nothing may be missed for longer than this, whatever happened
                    yield None
        finally:
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]
                self._read.pop(job_id, None)

    async def run(self) -> None:
        """Read until cancelled. When Redis is away, followers are told, and connect again."""
        while True:
            if not self._followers:
                self._any.clear()
                await self._any.wait()
            try:
                await self._round()
            except StoreUnavailable as error:
                log.warning("hub_waits", cause=str(error))
                for follower in [one for each in self._followers.values() for one in each]:
                    follower.lost = error
                    follower.woken.set()
                await asyncio.sleep(PAUSE)
            except Exception:
                log.exception("hub_failed")  # one bad stream must not leave all others without a reader
                await asyncio.sleep(PAUSE)

    async def _round(self) -> None:
        """One read of every stream that is followed."""
        for job_id in self._followers.keys() - self._read.keys():
            with store_errors():
                newest = await self._redis.xrevrange(keys.job(job_id, "events"), count=1)
            self._read[job_id] = newest[0][0].decode() if newest else "0-0"
            for follower in self._followers.get(job_id, ()):
                follower.behind = True  # what came before the first read is in the stream alone
                follower.woken.set()
        following = {keys.job(job_id, "events"): job_id for job_id in self._read}
        if not following:
            return
        with store_errors():
            answer = await self._redis.xread(
                {key: self._read[job_id] for key, job_id in following.items()}, count=PAGE, block=BLOCK
            )
        for key, entries in answer:
            job_id = following[key.decode()]
            for entry in entries:
                event = events.event(*entry)
                if job_id in self._read:
                    self._read[job_id] = event.id
                for follower in self._followers.get(job_id, ()):
                    follower.hand(event)
