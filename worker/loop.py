"""The one event loop of a worker process, on a thread of its own: one loop does the waiting for all APIs it asks."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 64  # that wait for disk, object store and names at once


class Loop:
    """Started when first used, so after a fork, and kept until the process ends or `close`.

    `kept`: what is open for all work on the loop; entered by work on the loop, left by `close`.
    """

    def __init__(self) -> None:
        self.kept = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, done on the loop while this thread waits. It sees this thread's context variables."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    def close(self) -> None:
        """End the loop; nothing may be at work on it."""
        if self._loop is None or self._thread is None:
            return
        self.run(self.kept.aclose())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="waiting"))
                self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
                self._thread.start()
            return self._loop
