"""Adapted models in Redis: made, found, ended. One that has ended is told apart from one that never was, for a month.

The files of one lie in the artefact store under `folder(id)`; a metering key of its own counts what it answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.adaptation import AdaptedModel, AdaptedModelPage
from contracts.problems import ProblemError
from contracts.zoo import Key, KeyRequest
from meta_server.store import keys
from meta_server.store.index import matching, of_tenant
from metering.keyring import Keyring, record
from metering.scripts import Scripts, store_errors

REMEMBERED = 30 * 24 * 3600  # seconds for which an ended one is known to be gone
UNFINISHED = 3600  # seconds after which files of one that was never finished are deleted

Clock = Callable[[], datetime]


def folder(adapted_id: str) -> str:
    """Where its files lie in the artefact store."""
    return f"adapted-models/{adapted_id}"


@dataclass(frozen=True, slots=True)
class Served:
    """An adapted model that may be asked, and the id of its metering key."""

    model: AdaptedModel
    key_id: str


class AdaptedModelStore:
    """Adapted models, each with its metering key. `images_per_second`: what each may answer; None: no limit."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        *,
        images_per_second: float | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._keyring = Keyring(redis, scripts, index=keys.ADAPTED_KEYS)
        self._images_per_second = images_per_second
        self.clock = clock

    async def begin(self, adapted_id: str) -> Key:
        """Note that files of it are about to be written, so that they are deleted if it is never finished: its key."""
        key = await self._keyring.create(
            KeyRequest(name=adapted_id, models=[adapted_id], images_per_second=self._images_per_second)
        )
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.adapted_model(adapted_id), "key", key.id)
                pipe.zadd(keys.ADAPTED_ENDS, {adapted_id: self.clock().timestamp() + UNFINISHED})
                await pipe.execute()
        return key

    async def finish(self, model: AdaptedModel) -> None:
        """It is served from now until its end, to the tenant of its meta-model. Raises `StoreUnavailable`."""
        with store_errors():
            tenant = await self._redis.hget(keys.meta_model(model.meta_model), "tenant") or DEFAULT_TENANT
            async with self._redis.pipeline(transaction=True) as pipe:
                told = {"record": model.model_dump_json(), "tenant": tenant}
                pipe.hset(keys.adapted_model(model.id), mapping=told)
                pipe.zadd(keys.ADAPTED_MODELS, {model.id: 0})
                pipe.zadd(keys.ADAPTED_ENDS, {model.id: model.expires_at.timestamp()})
                await pipe.execute()

    async def served(self, adapted_id: str) -> Served:
        """The model and its key. Raises `ProblemError` (`not-found`, `gone`), `StoreUnavailable`."""
        with store_errors():
            text, key_id, ended = await self._redis.hmget(keys.adapted_model(adapted_id), "record", "key", "ended")
        if text is None:
            raise ProblemError("not-found", f"there is no adapted model {adapted_id}")
        model = AdaptedModel.model_validate_json(text)
        if ended is not None:
            raise ProblemError("gone", f"the adapted model was deleted: adapt {model.meta_model} again")
        if model.expires_at <= self.clock():
            raise ProblemError("gone", f"the adapted model ended at {model.expires_at}: adapt {model.meta_model} again")
        return Served(model, key_id.decode())

    async def get(self, adapted_id: str) -> AdaptedModel:
        """The model with what it has answered. Raises `ProblemError` (`not-found`, `gone`), `StoreUnavailable`."""
        return await self._counted(await self.served(adapted_id))

    async def delete(self, adapted_id: str) -> None:
        """End it now; `ended` then lists it. Raises `ProblemError` (`not-found`, `gone`), `StoreUnavailable`."""
        await self.served(adapted_id)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.adapted_model(adapted_id), "ended", "deleted")
                pipe.zrem(keys.ADAPTED_MODELS, adapted_id)
                pipe.zadd(keys.ADAPTED_ENDS, {adapted_id: 0})
                await pipe.execute()

    async def ended(self) -> list[str]:
        """Those whose files and keys are to be deleted: past their end, deleted, or never finished."""
        with store_errors():
            found = await self._redis.zrangebyscore(keys.ADAPTED_ENDS, "-inf", self.clock().timestamp())
        return [name.decode() for name in found]

    async def forget(self, adapted_id: str) -> None:
        """Delete what is kept of one that has ended, save that it was; its files are gone already."""
        with store_errors():
            key_id = await self._redis.hget(keys.adapted_model(adapted_id), "key")
            if key_id is not None:
                await self._keyring.forget(key_id.decode())
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zrem(keys.ADAPTED_MODELS, adapted_id)
                pipe.zrem(keys.ADAPTED_ENDS, adapted_id)
                pipe.expire(keys.adapted_model(adapted_id), REMEMBERED)
                await pipe.execute()

    async def list(
        self, *, tenant: str = DEFAULT_TENANT, after: str | None = None, limit: int = 20
    ) -> AdaptedModelPage:
        """A tenant's that are served now, newest first, from the one after `after`. Raises `StoreUnavailable`."""
        page, following = await matching(
            self._redis,
            keys.ADAPTED_MODELS,
            after,
            limit,
            record=keys.adapted_model,
            fields=["tenant"],
            keep=of_tenant(tenant),
        )
        items = []
        for adapted_id in page:
            try:
                items.append(await self.get(adapted_id))
            except ProblemError:  # it ended, and is not collected yet
                continue
        return AdaptedModelPage(items=items, next=following)

    async def _counted(self, served: Served) -> AdaptedModel:
        with store_errors():
            spent = await self._redis.hget(record(served.key_id), "spent")
        return served.model.model_copy(update={"answered": int(spent or 0)})
