"""Meta-models in Redis. They are published by `JobStore.publish`, together with the end of their job."""

from typing import Any

from redis.asyncio import Redis

from contracts.meta_models import MetaModel, MetaModelPage
from contracts.problems import ProblemError
from meta_server.store import keys
from meta_server.store.index import newest_first
from metering.scripts import store_errors


class MetaModelStore:
    """Reads published meta-models."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def get(self, meta_model_id: str) -> MetaModel:
        """The meta-model's record. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        return MetaModel.model_validate_json(await self._field(meta_model_id, "record"))

    async def folder(self, meta_model_id: str) -> str:
        """Where its files lie in the artefact store. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        return (await self._field(meta_model_id, "folder")).decode()

    async def list(self, *, after: str | None = None, limit: int = 20) -> MetaModelPage:
        """Meta-models, newest first, from the one after `after`. Raises `StoreUnavailable`."""
        page, following = await newest_first(self._redis, keys.META_MODELS, after, limit)
        return MetaModelPage(items=[await self.get(meta_model_id) for meta_model_id in page], next=following)

    async def _field(self, meta_model_id: str, field: str) -> bytes:
        with store_errors():
            value: bytes | None = await self._redis.hget(keys.meta_model(meta_model_id), field)
        if value is None:
            raise ProblemError("not-found", f"there is no meta-model {meta_model_id}")
        return value
