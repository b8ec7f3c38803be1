"""API keys of a zoo: made, recognised, revoked. A secret is shown once and kept as its SHA-256.

All Redis keys of one API key share a hash tag, so that one script can touch them all.
"""

import hmac
import json
import math
import re
import secrets
import string
from datetime import UTC, datetime
from hashlib import sha256

from redis.asyncio import Redis

from contracts.zoo import LARGEST_BUDGET, Key, KeyRequest, NewKey, Usage
from metering.scripts import MICROSECONDS, Scripts, store_errors

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
SECRET_LENGTH = 43  # base62 digits that hold 256 bits
ID_LENGTH = 12
SECRET = re.compile(rf"mz_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}")
INDEX = "mz:zoo:keys"  # set: every key id
FULL_REQUEST = 1024  # images; a burst that is not stated holds at least this many


class UnknownKey(Exception):
    """There is no key of that id."""


def record(key_id: str) -> str:
    """Redis key of the hash that holds the key's limits and what it has spent."""
    return f"mz:zoo:{{{key_id}}}:key"


def audit(key_id: str) -> str:
    """Redis key of the append-only stream of its charges and refunds."""
    return f"mz:zoo:{{{key_id}}}:audit"


def mark(key_id: str, idempotency_key: str) -> str:
    """Redis key of the hash that remembers one request."""
    return f"mz:zoo:{{{key_id}}}:mark:{sha256(idempotency_key.encode()).hexdigest()}"


class CannotTopUp(Exception):
    """The budget cannot be raised; the message says why."""


class Keyring:
    """The keys of one zoo; `index` is the Redis key that lists them."""

    def __init__(self, redis: Redis, scripts: Scripts, *, index: str = INDEX) -> None:
        self._redis = redis
        self._scripts = scripts
        self._index = index

    async def create(self, request: KeyRequest) -> NewKey:
        """A new key with its secret, which is not kept. Raises `StoreUnavailable`."""
        key_id, secret = _random(ID_LENGTH), _random(SECRET_LENGTH)
        shown = f"mz_{key_id}_{secret}"
        burst = request.burst
        if burst is None and request.images_per_second is not None:
            burst = max(math.ceil(request.images_per_second), FULL_REQUEST)
        fields = {
            "name": request.name,
            "secret": sha256(shown.encode()).hexdigest(),
            "budget": _text(request.budget),
            "spent": "0",
            "rate": _text(request.images_per_second),
            "burst": _text(burst),
            "arrival": "0",
            # an object, so that the script's look-up does not depend on how many there are
            "models": "" if request.models is None else json.dumps(dict.fromkeys(request.models, True)),
            "revoked": "0",
            "expires": "" if request.expires_at is None else str(round(request.expires_at.timestamp() * MICROSECONDS)),
            "notes": request.notes,
        }
        await self._scripts.run("key_create", keys=[record(key_id), self._index], args=[key_id, json.dumps(fields)])
        return NewKey(**(await self.get(key_id)).model_dump(), secret=shown)

    async def authenticate(self, secret: str) -> Key | None:
        """The key of this secret, also when it is revoked; None for any other. Raises `StoreUnavailable`."""
        found = SECRET.fullmatch(secret)
        if found is None:
            return None
        fields = await self._fields(found[1])
        kept = fields.get("secret", "0" * 64)
        same = hmac.compare_digest(kept, sha256(secret.encode()).hexdigest())
        return _key(found[1], fields) if same else None

    async def get(self, key_id: str) -> Key:
        """The key. Raises `UnknownKey`, `StoreUnavailable`."""
        return _key(key_id, await self._known(key_id))

    async def list(self) -> "list[Key]":
        """Every key, oldest first. Raises `StoreUnavailable`."""
        with store_errors():
            ids = sorted(_decoded(member) for member in await self._redis.smembers(self._index))
        return sorted([await self.get(key_id) for key_id in ids], key=lambda key: (key.created_at, key.id))

    async def revoke(self, key_id: str) -> Key:
        """The key, which from now on grants nothing. Raises `UnknownKey`, `StoreUnavailable`."""
        await self._known(key_id)
        with store_errors():
            await self._redis.hset(record(key_id), "revoked", 1)
        return await self.get(key_id)

    async def forget(self, key_id: str) -> None:
        """Delete the key and its audit stream: for keys whose model is gone. Raises `StoreUnavailable`."""
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(record(key_id), audit(key_id))
                pipe.srem(self._index, key_id)
                await pipe.execute()

    async def top_up(self, key_id: str, images: int) -> Key:
        """The key with `images` more in its budget. Raises `UnknownKey`, `CannotTopUp`, `StoreUnavailable`."""
        verdict = await self._scripts.run("key_top_up", keys=[record(key_id)], args=[images, LARGEST_BUDGET])
        if verdict == b"unknown":
            raise UnknownKey(f"there is no key {key_id}")
        if verdict == b"unlimited":
            raise CannotTopUp("the key has no budget: it may ask without limit")
        if verdict == b"large":
            raise CannotTopUp(f"the budget would be more than {LARGEST_BUDGET} images")
        return await self.get(key_id)

    async def usage(self, key_id: str) -> Usage:
        """What the key was charged. Raises `UnknownKey`, `StoreUnavailable`."""
        fields = await self._known(key_id)
        key = _key(key_id, fields)
        models = {
            name.removeprefix("model:"): int(count) for name, count in fields.items() if name.startswith("model:")
        }
        left = None if key.budget is None else key.budget - key.spent
        return Usage(key=key_id, budget=key.budget, spent=key.spent, left=left, per_model=dict(sorted(models.items())))

    async def _known(self, key_id: str) -> dict[str, str]:
        fields = await self._fields(key_id)
        if not fields:
            raise UnknownKey(f"there is no key {key_id}")
        return fields

    async def _fields(self, key_id: str) -> dict[str, str]:
        with store_errors():
            fields = await self._redis.hgetall(record(key_id))
        return {_decoded(name): _decoded(value) for name, value in fields.items()}


def _key(key_id: str, fields: dict[str, str]) -> Key:
    return Key(
        id=key_id,
        name=fields["name"],
        created_at=datetime.fromtimestamp(int(fields["created"]) / MICROSECONDS, UTC),
        budget=int(fields["budget"]) if fields["budget"] else None,
        spent=int(fields["spent"]),
        images_per_second=float(fields["rate"]) if fields["rate"] else None,
        burst=int(fields["burst"]) if fields["burst"] else None,
        models=sorted(json.loads(fields["models"])) if fields["models"] else None,
        revoked=fields["revoked"] == "1",
        expires_at=datetime.fromtimestamp(int(fields["expires"]) / MICROSECONDS, UTC)
        if fields.get("expires")
        else None,
        notes=fields.get("notes", ""),
    )


def _text(number: float | None) -> str:
    return "" if number is None else repr(number)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _decoded(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
