"""Computes off the event loop, and small requests of one model together.

Small requests of a model gather while others of it keep arriving, for a few milliseconds at most, and while a batch of it runs;
they make up the next batch. A request that nobody follows is computed at once.
"""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from api_zoo.inference import Model, Pixels
from dfml.teachers import CHUNK

WINDOW = 0.005  # seconds that a request waits for others at most
QUIET = 2  # turns of the event loop in which nobody came; one reads the sockets, the next what they brought


@dataclass(slots=True)
class _Queue:
    """Small requests of one model and one type of pixels."""

    model: Model
    dtype: Any
    waiting: deque[tuple[Pixels, "asyncio.Future[bytes]", float]] = field(default_factory=deque)
    images: int = 0  # of all that wait
    joined: bool = False  # somebody, since the last look
    quiet: int = 0  # looks since somebody joined
    looking: bool = False
    running: bool = False


class Engine:
    """Answers for every model of a process, `threads` batches at once. Belongs to one event loop."""

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine")
        self._queues: dict[tuple[Model, Any], _Queue] = {}
        self.batches = 0  # computed
        self.joined = 0  # requests that were computed together with others

    def close(self) -> None:
        """End the threads; what still waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, model: Model, images: Pixels) -> "asyncio.Future[bytes]":
        """`model.answer(images)`, to be computed on another thread; who cancels it before that is left out."""
        loop = asyncio.get_running_loop()
        if len(images) >= CHUNK:
            return loop.run_in_executor(self._pool, model.answer, images)
        key = (model, images.dtype)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(model, images.dtype)
        answer: asyncio.Future[bytes] = loop.create_future()
        queue.waiting.append((images, answer, loop.time()))
        queue.images += len(images)
        queue.joined = True
        if not queue.looking and not queue.running:
            queue.looking = True
            loop.call_soon(self._look, queue)
        return answer

    def _look(self, queue: _Queue) -> None:
        """Start a batch if nobody else is coming, or enough are there, or the first has waited long enough."""
        loop = asyncio.get_running_loop()
        queue.quiet = 0 if queue.joined else queue.quiet + 1
        queue.joined = False
        early = queue.waiting and queue.quiet < QUIET and queue.images < CHUNK
        queue.looking = bool(early and loop.time() - queue.waiting[0][2] < WINDOW)
        if queue.looking:
            loop.call_soon(self._look, queue)
            return
        batch: list[tuple[Pixels, asyncio.Future[bytes]]] = []
        count = 0
        while queue.waiting and (not batch or count + len(queue.waiting[0][0]) <= CHUNK):
            images, answer, _ = queue.waiting.popleft()
            queue.images -= len(images)
            if not answer.done():  # its caller did not go away
                batch.append((images, answer))
                count += len(images)
        if not batch:
            self._queues.pop((queue.model, queue.dtype), None)  # the model may go
            return
        queue.running = True
        self.batches += 1
        self.joined += len(batch) if len(batch) > 1 else 0
        images = batch[0][0] if len(batch) == 1 else np.concatenate([images for images, _ in batch])
        computed = loop.run_in_executor(self._pool, queue.model.answer, images)
        computed.add_done_callback(lambda done: self._share(queue, batch, done))

    def _share(
        self, queue: _Queue, batch: list[tuple[Pixels, "asyncio.Future[bytes]"]], done: "asyncio.Future[bytes]"
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
        self._look(queue)
