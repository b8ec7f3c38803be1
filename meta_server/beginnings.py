"""Has new jobs begun, off the requests that made them. When the queue fails, the reaper does it later: the jobs are stored."""

import asyncio

import anyio.to_thread
import structlog
from kombu.exceptions import OperationalError

from meta_server.queue import Queue

PAUSE = 0.02  # seconds between messages: a message costs more than the rest of making a job, and carries many

log = structlog.get_logger()


class Beginnings:
    """One message at a time, with every job that came since the last."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[str] = []
        self._turn = asyncio.Lock()

    async def add(self, job_id: str) -> None:
        """Have what is due of a queued job done; returns once that is sent, or has failed and was logged."""
        self._waiting.append(job_id)
        async with self._turn:
            job_ids, self._waiting = self._waiting, []
            if not job_ids:
                return  # whoever had the turn before sent it along
            try:
                await anyio.to_thread.run_sync(self._queue.begin, job_ids)
            except OperationalError as error:
                log.warning("enqueue_failed", jobs=job_ids, cause=str(error))
            await asyncio.sleep(PAUSE)
