"""Has new jobs begun, beside the requests that made them. When the queue fails, the reaper does it later."""

import asyncio

import anyio.to_thread
import structlog
from kombu.exceptions import OperationalError

from meta_server.queue import Queue, Trace, here

PAUSE = 0.02  # seconds between messages: a message costs more than the rest of making a job, and carries many

log = structlog.get_logger()


class Beginnings:
    """One message at a time, with every job that came since the last. `run` must be running."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: dict[str, Trace] = {}  # job id -> where it was asked for
        self._any = asyncio.Event()

    def add(self, job_id: str) -> None:
        """Have what is due of a queued job done soon. Waits for nothing: a request that did would stay in memory meanwhile."""
        self._waiting[job_id] = here()
        self._any.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._any.wait()
            await self._send()
            await asyncio.sleep(PAUSE)

    async def close(self) -> None:
        """Send what still waits, once `run` has ended."""
        if self._waiting:
            await self._send()

    async def _send(self) -> None:
        self._any.clear()
        sent = dict(self._waiting)
        try:
            await anyio.to_thread.run_sync(self._queue.begin, list(sent), sent)
        except OperationalError as error:
            log.warning("enqueue_failed", jobs=list(sent), cause=str(error))
        except Exception:  # a fault of one message must not end those of all later jobs
            log.exception("enqueue_failed", jobs=list(sent))
        # cancelled before this, they are sent again, which harms nobody; one that was added again meanwhile stays
        self._waiting = {job_id: at for job_id, at in self._waiting.items() if sent.get(job_id) is not at}
