"""Image sets: their records in Redis, and their archives in the artefact store."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from anyio import to_thread
from redis.asyncio import Redis

from contracts.access import DEFAULT_TENANT
from contracts.image_sets import ImageSet, ImageSetPage
from contracts.problems import ProblemError
from meta_server.store import ids, keys
from meta_server.store.artifacts import ArtifactMissing, Artifacts
from meta_server.store.index import newest_first
from metering.scripts import store_errors

MOST_SETS = 100
"""Of a tenant."""


def folder(image_set: str) -> str:
    """Where its archive lies in the artefact store."""
    return f"image-sets/{image_set}"


def keep_archive(artifacts: Artifacts, image_set: str, content: bytes) -> None:
    """Store the archive, under its SHA-256."""
    artifacts.keep(f"{folder(image_set)}/images", ".zip", content)


def archive_of(artifacts: Artifacts, image_set: str) -> bytes:
    """The archive. Raises `ArtifactMissing` for one that was deleted, `ArtifactDamaged`."""
    for path in artifacts.list(folder(image_set)):
        return artifacts.recall(path)
    raise ArtifactMissing(f"the image set {image_set} was deleted: upload the images again")


class ImageSetStore:
    """The records, by tenant."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def check_room(self, tenant: str = DEFAULT_TENANT) -> None:
        """Raises `ProblemError` (`conflict`) where the tenant has as many as it may, `StoreUnavailable`."""
        with store_errors():
            if await self._redis.zcard(keys.image_sets(tenant)) >= MOST_SETS:
                raise ProblemError("conflict", f"there are {MOST_SETS} image sets, the most: delete one first")

    async def add(self, name: str, images: int, content: bytes, artifacts: Artifacts, *, tenant: str) -> ImageSet:
        """Store a set whose archive was checked. Raises `StoreUnavailable`, OSError."""
        made = ImageSet(
            id=ids.new("is"),
            name=name,
            created_at=datetime.now(UTC),
            images=images,
            bytes=len(content),
            sha256=await to_thread.run_sync(lambda: sha256(content).hexdigest()),
        )
        await to_thread.run_sync(keep_archive, artifacts, made.id, content)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.image_set(made.id), mapping={"record": made.model_dump_json(), "tenant": tenant})
                pipe.zadd(keys.image_sets(tenant), {made.id: 0})
                await pipe.execute()
        return made

    async def get(self, image_set: str) -> ImageSet:
        """Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        with store_errors():
            text = await self._redis.hget(keys.image_set(image_set), "record")
        if text is None:
            raise ProblemError("not-found", f"there is no image set {image_set}")
        return ImageSet.model_validate_json(text)

    async def list(self, *, tenant: str = DEFAULT_TENANT, after: str | None = None, limit: int = 20) -> ImageSetPage:
        """A tenant's, newest first, from the one after `after`. Raises `StoreUnavailable`."""
        page, following = await newest_first(self._redis, keys.image_sets(tenant), after, limit)
        return ImageSetPage(items=[await self.get(name) for name in page], next=following)

    async def delete(self, image_set: str) -> None:
        """Forget it; its archive is then removed by whoever asked. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        await self.get(image_set)
        with store_errors():
            tenant = await self._redis.hget(keys.image_set(image_set), "tenant")
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(keys.image_set(image_set))
                pipe.zrem(keys.image_sets(tenant.decode()), image_set)
                await pipe.execute()
