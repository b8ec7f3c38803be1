"""Meta-models in Redis. They are published by `JobStore.publish`, together with the end of their job.

What is edited lies beside the record, field by field, so that edits of different fields never undo each other. A deleted one
is out of the list, and its record and files stay.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.meta_models import MetaModel, MetaModelEdit, MetaModelPage
from contracts.problems import ProblemError
from meta_server.store import keys
from meta_server.store.index import matching, of_tenant
from metering.scripts import store_errors

EDITED = ("name", "tags", "notes")
_FIELDS = ("record", "deleted", *(f"edit:{name}" for name in EDITED))


class MetaModelStore:
    """Reads and edits published meta-models."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def get(self, meta_model_id: str) -> MetaModel:
        """The meta-model's record. Raises `ProblemError` (`not-found`; `gone` when deleted), `StoreUnavailable`."""
        model, deleted = await self._read(meta_model_id)
        if deleted:
            raise ProblemError(
                "gone", f"meta-model {meta_model_id} was deleted: POST {meta_model_id}/restore undoes it"
            )
        return model

    async def kept(self, meta_model_id: str) -> MetaModel:
        """The record, also of a deleted one: what was adapted from it lives on. Raises as `get`, but for `gone`."""
        return (await self._read(meta_model_id))[0]

    async def folder(self, meta_model_id: str) -> str:
        """Where its files lie in the artefact store. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        with store_errors():
            value: bytes | None = await self._redis.hget(keys.meta_model(meta_model_id), "folder")
        if value is None:
            raise _not_found(meta_model_id)
        return value.decode()

    async def edit(self, meta_model_id: str, edit: MetaModelEdit) -> MetaModel:
        """The meta-model with what `edit` sets. Raises `ProblemError` (`not-found`, `gone`), `StoreUnavailable`."""
        await self.get(meta_model_id)
        told = edit.model_dump(exclude_none=True)
        if told:
            fields = {f"edit:{name}": json.dumps(value) for name, value in told.items()}
            with store_errors():
                await self._redis.hset(keys.meta_model(meta_model_id), mapping=fields)
        return await self.get(meta_model_id)

    async def delete(self, meta_model_id: str) -> None:
        """Take it out of the list; its files stay. Raises `ProblemError` (`not-found`, `gone`), `StoreUnavailable`."""
        await self.get(meta_model_id)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.meta_model(meta_model_id), "deleted", datetime.now(UTC).isoformat())
                pipe.zrem(keys.META_MODELS, meta_model_id)
                await pipe.execute()

    async def restore(self, meta_model_id: str) -> MetaModel:
        """The meta-model, deleted no more. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        await self.kept(meta_model_id)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.meta_model(meta_model_id), "deleted")
                pipe.zadd(keys.META_MODELS, {meta_model_id: 0})
                await pipe.execute()
        return await self.get(meta_model_id)

    async def list(self, *, tenant: str = DEFAULT_TENANT, after: str | None = None, limit: int = 20) -> MetaModelPage:
        """A tenant's meta-models, newest first, from the one after `after`. Raises `StoreUnavailable`."""
        page, following = await matching(
            self._redis,
            keys.META_MODELS,
            after,
            limit,
            record=keys.meta_model,
            fields=["tenant"],
            keep=of_tenant(tenant),
        )
        with store_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for meta_model_id in page:
                    pipe.hmget(keys.meta_model(meta_model_id), _FIELDS)
                found = await pipe.execute() if page else []
        items = [_model(values) for values in found if values[0] is not None]
        return MetaModelPage(items=items, next=following)

    async def _read(self, meta_model_id: str) -> tuple[MetaModel, bool]:
        with store_errors():
            values = await self._redis.hmget(keys.meta_model(meta_model_id), _FIELDS)
        if values[0] is None:
            raise _not_found(meta_model_id)
        return _model(values), values[1] is not None


def _model(values: Sequence[bytes | None]) -> MetaModel:
    record, _, *edits = values
    told = json.loads(record or b"")
    told |= {name: json.loads(edit) for name, edit in zip(EDITED, edits, strict=True) if edit is not None}
    return MetaModel.model_validate(told)


def _not_found(meta_model_id: str) -> ProblemError:
    return ProblemError("not-found", f"there is no meta-model {meta_model_id}")
