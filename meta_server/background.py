"""Work that runs beside the requests, from the start of the server to its end."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

log = structlog.get_logger()


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these until the block ends, then cancel them and wait until each has ended.

    Each is cancelled as asyncio cancels, once at a time: a cancel scope of anyio would cancel again whatever a task awaits to
    put away a connection that it was just opening.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    for task in tasks:
        task.add_done_callback(_tell)
    try:
        yield
    finally:
        # once is not enough: `asyncio.wait_for`, which redis-py uses, may swallow a cancellation before Python 3.12
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=0.1)


def _tell(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("background_work_failed", exc_info=error)
