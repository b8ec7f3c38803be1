"""Removes files that no record names: what a worker wrote and never announced because it was killed in between, what a deleted
job leaves, and meta-models that were deleted long ago.

Every server process runs one; a lease lets one of them work at a time. A file must be old to go: a worker writes first and
announces then.
"""

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from redis.asyncio import Redis

from meta_server.store import keys
from meta_server.store.artifacts import Artifacts
from metering.leases import UNLIMITED, Leases
from metering.scripts import Scripts, StoreUnavailable, store_errors

EVERY = 6 * 3600.0  # seconds
GRACE = timedelta(days=1)
RESTORABLE = timedelta(days=30)  # since a meta-model was deleted
FIRST_AFTER = 300.0  # seconds: a server that restarts again and again lists no files
ROLE = "orphans"

log = structlog.get_logger()


class OrphanSweeper:
    """One round each `every` seconds in whichever process holds the lease."""

    def __init__(
        self,
        redis: Redis,
        artifacts: Artifacts,
        *,
        grace: timedelta = GRACE,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._leases = Leases(Scripts(redis), seconds=EVERY / 2, attempts=UNLIMITED)
        self._artifacts = artifacts
        self._grace = grace
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.sleep(FIRST_AFTER)
        while True:
            try:
                if await self._leases.take(keys.SERVICE_LEASES, ROLE, uuid.uuid4().hex):
                    await self.round()
            except StoreUnavailable as error:
                log.warning("orphans_wait", cause=str(error))
            except Exception:
                log.exception("orphans_failed")
            await asyncio.sleep(EVERY)

    async def round(self) -> list[str]:
        """Look at every file once; the paths that were removed. Raises `StoreUnavailable`, OSError."""
        before = self._now() - self._grace
        old = await asyncio.to_thread(self._older_than, before)  # listed before what names them is read
        folders = await self._folders()
        named: dict[str, set[str]] = {}
        removed = []
        for path in old:
            kind, job_id, *rest = path.split("/")
            if kind == "meta-models":
                owned = "/".join([kind, job_id, *rest[:1]]) in folders
            elif kind == "image-sets":
                with store_errors():
                    owned = bool(await self._redis.exists(keys.image_set(job_id)))
            else:
                if job_id not in named:
                    named[job_id] = await self._named(job_id)
                known = named[job_id]
                owned = path in known or (bool(known) and rest[0] not in ("answers", "checkpoints"))
            if not owned:
                await asyncio.to_thread(self._artifacts.remove_file, path)
                removed.append(path)
        if removed:
            log.info("orphans_removed", files=len(removed))
        return removed

    def _older_than(self, before: datetime) -> list[str]:
        found = [path for folder in ("jobs", "meta-models", "image-sets") for path in self._artifacts.list(folder)]
        return [path for path in found if path.count("/") >= 2 and self._artifacts.modified(path) < before]

    async def _folders(self) -> set[str]:
        """Where the files of meta-models lie; those that were deleted long ago are forgotten first."""
        folders = set()
        with store_errors():
            async for key in self._redis.scan_iter(match=keys.meta_model("*"), count=1000):
                folder, deleted = await self._redis.hmget(key, "folder", "deleted")
                if deleted is not None and datetime.fromisoformat(deleted.decode()) < self._now() - RESTORABLE:
                    await self._redis.delete(key)
                elif folder is not None:
                    folders.add(folder.decode())
        return folders

    async def _named(self, job_id: str) -> set[str]:
        """The job itself and every file that its records name; empty when there is no such job."""
        with store_errors():
            record = await self._redis.hgetall(keys.job(job_id, "record"))
            settled = await self._redis.hvals(keys.job(job_id, "settled"))
        if not record:
            return set()
        checkpoints = [value.decode() for name, value in record.items() if name.startswith(b"checkpoint:")]
        paths = [json.loads(value)["path"] for value in settled]
        paths += [told["path"] for told in map(json.loads, checkpoints) if isinstance(told, dict) and "path" in told]
        return {job_id, *paths}
