"""Probes of APIs in Redis: what a worker is to ask, sealed; that it was taken, once; and what came of it, for a few minutes.

A probe spends, so it is never begun twice: a message that is delivered again finds it taken, or gone.
"""

import json
import time
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis

from contracts._base import MASKED
from contracts.estimates import EstimateRequest, Probe
from contracts.problems import Fault, ProblemError
from meta_server.store import ids, keys
from meta_server.store.secrets import Secrets
from metering.scripts import store_errors

SECONDS_KEPT = 300
DAY = 86400


class Asked(BaseModel):
    """What a worker is to ask: at most so many images of each API (by id), until then, in seconds since the epoch."""

    request: EstimateRequest
    images: dict[str, int]
    until: float


class Probes:
    """Reads and writes probes. `secrets` encrypts what is asked, APIs' keys included."""

    def __init__(self, redis: Redis, *, secrets: Secrets) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text
        self._secrets = secrets

    async def create(self, asked: Asked) -> str:
        """Store what is to be asked; its id. Raises `ProblemError` for a key that is masked, `StoreUnavailable`."""
        probe_id = ids.new("probe")
        content = json.dumps({**asked.model_dump(mode="json"), "request": _revealed(asked.request)})
        place = keys.probe(probe_id)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as together:
                together.hset(place, "sealed", self._secrets.seal({"asked": content}))
                together.expire(place, SECONDS_KEPT)
                await together.execute()
        return probe_id

    async def claim(self, probe_id: str) -> Asked | None:
        """What to ask, to the first who comes in time; None to the others. Raises `BadSecretKey`, `StoreUnavailable`."""
        place = keys.probe(probe_id)
        with store_errors():
            first = await self._redis.hsetnx(place, "claimed", 1)
            await self._redis.expire(place, SECONDS_KEPT)
            sealed = await self._redis.hget(place, "sealed")
            await self._redis.hdel(place, "sealed")
        if not first or sealed is None:
            return None
        asked = Asked.model_validate_json(self._secrets.open(sealed.decode())["asked"])
        return asked if asked.until > time.time() else None

    async def finish(self, probe_id: str, probe: Probe) -> None:
        """Tell what came of it. Raises `StoreUnavailable`."""
        with store_errors():
            await self._redis.hset(keys.probe(probe_id), "result", probe.model_dump_json())
            await self._redis.expire(keys.probe(probe_id), SECONDS_KEPT)

    async def result(self, probe_id: str) -> Probe | None:
        """What came of it; None so far. Raises `StoreUnavailable`."""
        with store_errors():
            told = await self._redis.hget(keys.probe(probe_id), "result")
        return None if told is None else Probe.model_validate_json(told)

    async def withdraw(self, probe_id: str) -> bool:
        """Have it not begun any more; whether it was. Raises `StoreUnavailable`."""
        with store_errors():
            async with self._redis.pipeline(transaction=True) as together:
                together.hexists(keys.probe(probe_id), "claimed")
                together.delete(keys.probe(probe_id))
                claimed, _ = await together.execute()
        return bool(claimed)

    async def count(self, tenant: str, images: int) -> str:
        """Count images to the tenant's day, as the ledger does; where.

        Raises `ProblemError` (`conflict`) when they are more than its quota, `StoreUnavailable`.
        """
        with store_errors():
            day = (await self._redis.time())[0] // DAY
            most = await self._redis.hget(keys.tenant(tenant), "queries_a_day")
            counter = f"{keys.tenant(tenant)}:day:{day}"
            sent = await self._redis.incrby(counter, images)
            await self._redis.expire(counter, 3 * DAY)
            if most is not None and sent > int(most):
                await self._redis.decrby(counter, images)
                detail = (
                    f"a probe of {images} images is more than the tenant's quota leaves today: ask after midnight UTC"
                )
                raise ProblemError("conflict", detail)
        return counter

    async def uncount(self, counter: str, images: int) -> None:
        """Images that were counted and not sent. Raises `StoreUnavailable`."""
        with store_errors():
            await self._redis.decrby(counter, images)


def _revealed(request: EstimateRequest) -> dict[str, Any]:
    """The request with the APIs' keys, and without its webhook, of which a probe has no need."""
    body = request.model_dump(mode="json", exclude={"webhook"})
    found = []
    for index, (told, api) in enumerate(zip(body["apis"], request.apis, strict=True)):
        told["api_key"] = api.api_key and api.api_key.get_secret_value()
        if told["api_key"] == MASKED:
            found.append(Fault(field=f"apis.{index}.api_key", message="is masked: send the key itself"))
    if found:
        raise ProblemError("invalid-request", f"{len(found)} faults; nothing was asked", errors=found)
    return body
