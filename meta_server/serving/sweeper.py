"""Deletes what adapted models leave when their time is over: files, keys, their place in the list."""

import asyncio

import structlog
from anyio import to_thread

from meta_server.store.adapted_models import AdaptedModelStore, folder
from meta_server.store.artifacts import Artifacts
from metering.scripts import StoreUnavailable

EVERY = 60.0  # seconds between rounds

log = structlog.get_logger()


class Sweeper:
    """One round each `every` seconds. Every server process runs one: to delete twice does no harm."""

    def __init__(self, adapted_models: AdaptedModelStore, artifacts: Artifacts, *, every: float = EVERY) -> None:
        self._adapted_models = adapted_models
        self._artifacts = artifacts
        self._every = every

    async def run(self) -> None:
        """Until cancelled. Redis being away is waited out."""
        while True:
            try:
                await self.round()
            except StoreUnavailable as error:
                log.warning("sweeper_waits", cause=str(error))
            except Exception:
                log.exception("sweeper_failed")  # one that cannot be deleted is tried again
            await asyncio.sleep(self._every)

    async def round(self) -> None:
        """Delete each adapted model that has ended."""
        for adapted_id in await self._adapted_models.ended():
            await to_thread.run_sync(self._artifacts.remove, folder(adapted_id))
            await self._adapted_models.forget(adapted_id)
