"""Which webhooks are to be told what: for each job, how far its events have been told, and when the next attempt is due.

A job is listed from when it is made until its last status has been told. Its events are the outbox: what is not told yet is in
its stream, so nothing is lost between the two.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from contracts.job_records import Event
from contracts.jobs import ENDED, JobStatus
from meta_server.store import events, keys
from metering.scripts import store_errors

TOLD = frozenset({JobStatus.RUNNING, JobStatus.PAUSED, *ENDED})
"""Statuses that a webhook is told of."""
PAGE = 1000  # events looked at a time
AGAIN = 60.0  # seconds after which a message to the workers counts as lost


class Webhooks:
    """Reads and writes how far each job's webhook has been told."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def due(self) -> list[str]:
        """Jobs whose webhook is to be told something now; they are not named again for a minute. Raises `StoreUnavailable`."""
        found = []
        with store_errors():
            now = await self._now()
            for name in sorted(await self._redis.smembers(keys.WEBHOOKS)):
                job_id = name.decode()
                due, exists = (
                    await self._redis.hget(keys.job(job_id, "webhook"), "due"),
                    await self._redis.exists(keys.job(job_id, "record")),
                )
                if not exists:
                    await self._redis.srem(keys.WEBHOOKS, job_id)
                elif float(due or 0) <= now and (await self._has_news(job_id)):
                    found.append(job_id)
                    await self._redis.hset(keys.job(job_id, "webhook"), "due", now + AGAIN)
        return found

    async def _has_news(self, job_id: str) -> bool:
        """Whether there is something to tell; one that has ended and been told is listed no more."""
        if await self.untold(job_id):
            return True
        status = await self._redis.hget(keys.job(job_id, "record"), "status")
        if status is not None and JobStatus(status.decode()) in ENDED and not await self.untold(job_id):
            await self._redis.srem(keys.WEBHOOKS, job_id)
        return False

    async def untold(self, job_id: str) -> Sequence[Event]:
        """Events of the job that its webhook is yet to be told, oldest first. Raises `StoreUnavailable`."""
        with store_errors():
            told = await self._redis.hget(keys.job(job_id, "webhook"), "told")
        after = None if told is None else told.decode()
        found: list[Event] = []
        while page := await events.read(self._redis, job_id, after=after, limit=PAGE):
            after = page[-1].id
            found += [one for one in page if one.type == "status" and JobStatus(one.data["status"]) in TOLD]
        return found

    async def tries(self, job_id: str) -> int:
        """How often the next event was tried in vain. Raises `StoreUnavailable`."""
        with store_errors():
            return int(await self._redis.hget(keys.job(job_id, "webhook"), "tries") or 0)

    async def told(self, job_id: str, event: Event) -> None:
        """The webhook has been told of `event`, or never will be. Raises `StoreUnavailable`."""
        with store_errors():
            await self._redis.hset(keys.job(job_id, "webhook"), mapping={"told": event.id, "tries": 0, "due": 0})

    async def failed(self, job_id: str, wait: float) -> None:
        """Telling failed: try again in `wait` seconds. Raises `StoreUnavailable`."""
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hincrby(keys.job(job_id, "webhook"), "tries", 1)
                pipe.hset(keys.job(job_id, "webhook"), "due", await self._now() + wait)
                await pipe.execute()

    async def forget(self, job_id: str) -> None:
        """The webhook wants to be told nothing more. Raises `StoreUnavailable`."""
        with store_errors():
            await self._redis.srem(keys.WEBHOOKS, job_id)

    async def _now(self) -> float:
        seconds, microseconds = await self._redis.time()
        return float(seconds) + float(microseconds) / 1e6
