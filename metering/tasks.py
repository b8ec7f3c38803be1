"""How tasks that talk to Redis are ended."""

import asyncio
from typing import Any


async def end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel tasks and wait until each has ended. What one raised is not raised here.

    Once is not enough: `asyncio.wait_for`, which redis-py uses for every command, may swallow a cancellation before
    Python 3.12. Each is cancelled as asyncio cancels, once at a time: a cancel scope of anyio would cancel again whatever a
    task awaits to put away a connection that it was just opening.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: nobody else will ask
