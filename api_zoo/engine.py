"""Computes off the event loop, and small requests of one model together.

A request that finds the engine idle is computed at once. While a batch runs, small requests of its model gather and make up
the next one. Those that are expected (they are being charged) are waited for, for a few milliseconds at most; a request that
nobody follows never waits.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from api_zoo.inference import Model
from dfml.teachers import CHUNK

WINDOW = 0.002  # seconds that a request waits for others at most


@dataclass(slots=True)
class _Queue:
    """Small requests of one model and one type of pixels."""

    model: Model
    dtype: torch.dtype
    expected: int = 0  # requests that may join soon
    waiting: deque[tuple[Tensor, "asyncio.Future[bytes]", float]] = field(default_factory=deque)
    running: bool = False
    timer: asyncio.Handle | None = None


class Engine:
    """Answers for every model of a process, `threads` batches at once. Belongs to one event loop."""

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self._queues: dict[tuple[Model, torch.dtype], _Queue] = {}
        self.batches = 0  # computed
        self.joined = 0  # requests that were computed together with others

    def close(self) -> None:
        """End the threads; what still waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def expecting(self, model: Model, images: Tensor) -> Iterator[None]:
        """Inside, others of the model wait a little for these images; then `answer` is called, or they do not come."""
        queue = self._queue(model, images)
        queue.expected += 1
        try:
            yield
        finally:
            queue.expected -= 1
            if not queue.expected:
                self._plan(queue, 0)  # after whoever is ready now has joined

    async def answer(self, model: Model, images: Tensor) -> bytes:
        """`model.answer(images)`, computed on another thread."""
        loop = asyncio.get_running_loop()
        if len(images) >= CHUNK:
            return await loop.run_in_executor(self._pool, model.answer, images)
        queue = self._queue(model, images)
        answer: asyncio.Future[bytes] = loop.create_future()
        queue.waiting.append((images, answer, loop.time()))
        if not queue.running and queue.timer is None:
            self._plan(queue, WINDOW if queue.expected else 0)
        return await answer

    def _queue(self, model: Model, images: Tensor) -> _Queue:
        key = (model, images.dtype)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(model, images.dtype)
        return queue

    def _plan(self, queue: _Queue, seconds: float) -> None:
        if queue.timer is not None:
            queue.timer.cancel()
        loop = asyncio.get_running_loop()
        queue.timer = loop.call_later(seconds, self._start, queue) if seconds else loop.call_soon(self._start, queue)

    def _start(self, queue: _Queue) -> None:
        queue.timer = None
        while queue.waiting and queue.waiting[0][1].done():  # the caller went away
            queue.waiting.popleft()
        if not queue.running and not queue.waiting and not queue.expected:
            self._queues.pop((queue.model, queue.dtype), None)  # the model may go
        if queue.running or not queue.waiting:
            return
        loop = asyncio.get_running_loop()
        age = loop.time() - queue.waiting[0][2]
        count = sum(len(images) for images, _, _ in queue.waiting)
        if queue.expected and age < WINDOW and count < CHUNK:
            self._plan(queue, WINDOW - age)
            return
        batch: list[tuple[Tensor, asyncio.Future[bytes]]] = []
        count = 0
        while queue.waiting and (not batch or count + len(queue.waiting[0][0]) <= CHUNK):
            images, answer, _ = queue.waiting.popleft()
            if not answer.done():
                batch.append((images, answer))
                count += len(images)
        if not batch:
            return
        queue.running = True
        self.batches += 1
        self.joined += len(batch) if len(batch) > 1 else 0
        images = batch[0][0] if len(batch) == 1 else torch.cat([images for images, _ in batch])
        computed = loop.run_in_executor(self._pool, queue.model.answer, images)
        computed.add_done_callback(lambda done: self._share(queue, batch, done))

    def _share(
        self, queue: _Queue, batch: list[tuple[Tensor, "asyncio.Future[bytes]"]], done: "asyncio.Future[bytes]"
    ) -> None:
        queue.running = False
        error = RuntimeError("the engine was stopped") if done.cancelled() else done.exception()
        rows = b"" if error else done.result()
        width = 0 if error else len(rows) // sum(len(images) for images, _ in batch)  # bytes an image
        at = 0
        for images, answer in batch:
            size = width * len(images)
            if answer.done():
                pass
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(rows[at : at + size])
            at += size
        self._plan(queue, 0)
