"""Where a job's learner keeps the state of its training: a file in the artefact store, named by the job's record.

The record holds the file's path, which tells its SHA-256; it is written under the learner's lease, so that a learner that lost
the job keeps nothing. One file at a time: that of the state before is removed.
"""

import asyncio
import json
import time
from collections.abc import Callable

from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing
from meta_server.store.stored_job import StoredJob
from worker.context import Context
from worker.watch import Watch

RECORD = "training"
SHARE = 0.05
"""Of a training's time that keeping its state may take: large states are kept less often."""


class JobCheckpoint:
    """A `dfml.checkpoint.Checkpoint`, called in the training thread; `forget` in the event loop once it is not needed."""

    def __init__(self, context: Context, job: StoredJob, watch: Watch, *, told: Callable[[str], None]) -> None:
        self._context, self._job_id, self._watch, self._told = context, job.id, watch, told
        self._path: str | None = json.loads(job.checkpoints.get(RECORD, "{}")).get("path")
        self._loop = asyncio.get_running_loop()
        self._next = time.monotonic() + context.checkpoint_every

    def recall(self) -> bytes | None:
        if self._path is None:
            return None
        try:
            return self._context.artifacts.recall(self._path)
        except (ArtifactDamaged, ArtifactMissing) as error:
            self.refuse(str(error))
            return None

    def due(self, done: int) -> bool:
        return time.monotonic() >= self._next

    def keep(self, content: bytes) -> None:
        """Raises `Stopped`, `LeaseLost`, `StoreUnavailable`, OSError."""
        self._watch.check()
        began = time.monotonic()
        stem = f"jobs/{self._job_id}/checkpoints/{RECORD}-{self._watch.lease.fence}"
        path = self._context.artifacts.keep(stem, ".safetensors", content)
        asyncio.run_coroutine_threadsafe(self._note(path), self._loop).result()
        self._next = time.monotonic() + max(self._context.checkpoint_every, (time.monotonic() - began) / SHARE)

    def refuse(self, reason: str) -> None:
        self._told(f"a checkpoint is refused, training begins anew: {reason}")

    async def forget(self) -> None:
        """Remove what is kept: the training is over. Raises `LeaseLost`, `StoreUnavailable`."""
        await self._note(None)

    async def _note(self, path: str | None) -> None:
        before, self._path = self._path, path
        if path == before:
            return
        told = json.dumps({} if path is None else {"path": path})
        await self._context.store.work.checkpoint(self._job_id, self._watch.lease, RECORD, told)
        if before is not None:
            await asyncio.to_thread(self._context.artifacts.remove_file, before)
