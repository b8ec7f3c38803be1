"""An ordered shutdown, known to every process of a worker: tasks see the word to stop, the parent sees when all have."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_EVERY = 0.1  # seconds


class Stopping:
    """Shared between a worker's parent and the children it forks; make it before they are."""

    def __init__(self) -> None:
        self._asked = multiprocessing.Event()
        self._at_work = multiprocessing.Value("i", 0)

    def ask(self) -> None:
        """Tell every task to stop at its next step."""
        self._asked.set()

    def is_set(self) -> bool:
        """Whether tasks are to stop."""
        return self._asked.is_set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around a task."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def wait(self, seconds: float) -> None:
        """Until no task is at work, but no longer than this."""
        deadline = time.monotonic() + seconds
        while self._at_work.value > 0 and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)

    def _count(self, change: int) -> None:
        with self._at_work.get_lock():
            self._at_work.value += change
