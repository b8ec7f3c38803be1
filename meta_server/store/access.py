"""Keys, tenants' quotas and the audit log in Redis. A secret is shown once and kept as its SHA-256."""

import hmac
import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from redis.asyncio import Redis

from contracts.access import AccessKey, AccessKeyRequest, AuditEntry, AuditPage, NewAccessKey, Quota, TenantUsage
from contracts.problems import ProblemError
from meta_server.store import events, keys
from metering.scripts import store_errors

AUDITED = 100_000  # entries kept, about
_SECRET = re.compile(r"mzs_([0-9a-f]{16})_[0-9A-Za-z_-]{43}")


class AccessStore:
    """Who may call, and what was asked for."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def create(self, request: AccessKeyRequest) -> NewAccessKey:
        """A new key with its secret. Raises `StoreUnavailable`."""
        key_id = secrets.token_hex(8)
        secret = f"mzs_{key_id}_{secrets.token_urlsafe(32)}"
        key = AccessKey(id=key_id, created_at=datetime.now(UTC), revoked=False, **dict(request))
        fields = {"record": key.model_dump_json(), "secret": sha256(secret.encode()).hexdigest()}
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(keys.access_key(key_id), mapping=fields)
                pipe.sadd(keys.ACCESS_KEYS, key_id)
                await pipe.execute()
        return NewAccessKey(**dict(key), secret=secret)

    async def find(self, secret: str) -> AccessKey | None:
        """The key of this secret if it grants anything now. Raises `StoreUnavailable`."""
        found = _SECRET.fullmatch(secret)
        if found is None:
            return None
        with store_errors():
            record, kept, revoked = await self._redis.hmget(keys.access_key(found[1]), "record", "secret", "revoked")
        same = hmac.compare_digest((kept or b"").decode(), sha256(secret.encode()).hexdigest())
        if record is None or not same or revoked is not None:
            return None
        key = AccessKey.model_validate_json(record)
        return None if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else key

    async def list(self) -> "list[AccessKey]":
        """Every key, oldest first. Raises `StoreUnavailable`."""
        with store_errors():
            ids = [name.decode() for name in await self._redis.smembers(keys.ACCESS_KEYS)]
        return sorted([await self._get(key_id) for key_id in ids], key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> AccessKey:
        """The key, which from now on grants nothing. Raises `ProblemError` (`not-found`), `StoreUnavailable`."""
        await self._get(key_id)
        with store_errors():
            await self._redis.hset(keys.access_key(key_id), "revoked", "1")
        return await self._get(key_id)

    async def set_quota(self, tenant: str, quota: Quota) -> TenantUsage:
        """What the tenant may use from now on. Raises `StoreUnavailable`."""
        told = {name: str(limit) for name, limit in quota.model_dump().items() if limit is not None}
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(keys.tenant(tenant))
                if told:
                    pipe.hset(keys.tenant(tenant), mapping=told)
                await pipe.execute()
        return await self.usage(tenant)

    async def usage(self, tenant: str) -> TenantUsage:
        """What the tenant may use, and has used. Raises `StoreUnavailable`."""
        with store_errors():
            fields = await self._redis.hgetall(keys.tenant(tenant))
            day = (await self._redis.time())[0] // 86400
            used = await self._redis.get(f"{keys.tenant(tenant)}:day:{day}")
        quota = Quota(**{name.decode(): int(limit) for name, limit in fields.items()})
        return TenantUsage(tenant=tenant, quota=quota, queries_today=int(used or 0))

    async def note(self, *, tenant: str, key: str, action: str, status: int) -> None:
        """Write down what was asked for. Raises `StoreUnavailable`."""
        entry = {"data": json.dumps({"tenant": tenant, "key": key, "action": action, "status": status})}
        with store_errors():
            await self._redis.xadd(keys.AUDIT, entry, maxlen=AUDITED, approximate=True)

    async def audit(self, *, after: str | None, limit: int) -> AuditPage:
        """What was asked for, newest first, from before the entry `after`. Raises `StoreUnavailable`."""
        if after is not None and events.place(after) == (0, 0):
            return AuditPage(items=[], next=None)  # nothing is before it, and Redis takes it for an error
        newest = "+" if after is None else f"({after}"
        with store_errors():
            found = await self._redis.xrevrange(keys.AUDIT, newest, "-", count=limit + 1)
        items = [
            AuditEntry(
                id=entry.decode(),
                time=datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(entry.partition(b"-")[0])),
                **json.loads(fields[b"data"]),
            )
            for entry, fields in found[:limit]
        ]
        return AuditPage(items=items, next=items[-1].id if len(found) > limit else None)

    async def tenant_of(self, key: str) -> str | None:
        """The tenant that a record (a Redis key) belongs to; None for the default one, or when there is none."""
        with store_errors():
            tenant = await self._redis.hget(key, "tenant")
        return None if tenant is None else str(tenant.decode())

    async def _get(self, key_id: str) -> AccessKey:
        with store_errors():
            record, revoked = await self._redis.hmget(keys.access_key(key_id), "record", "revoked")
        if record is None:
            raise ProblemError("not-found", f"there is no key {key_id}")
        return AccessKey.model_validate_json(record).model_copy(update={"revoked": revoked is not None})
