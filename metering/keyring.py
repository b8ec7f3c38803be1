"""API keys of a zoo: made, recognised, revoked. A secret is shown once and kept as its SHA-256.

All Redis keys of one API key share a hash tag, so that one script can touch them all.
"""

import hmac
import json
import math
import re
import secrets
import string
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256

from redis.asyncio import Redis

from contracts.zoo import LARGEST_BUDGET, Key, KeyRequest, NewKey, Usage
from metering.scripts import MICROSECONDS, Scripts, store_errors

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
SECRET_LENGTH = 43  # base62 digits that hold 256 bits
ID_LENGTH = 12
SECRET = re.compile(rf"mz_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}")
INDEX = "mz:zoo:keys"  # set: every key id
FIELDS = (
    "created", "name", "secret", "budget", "spent", "rate", "burst", "request_rate", "concurrency", "models", "revoked",
    "expires", "notes",
)  # fmt: skip
EPOCH = date(1970, 1, 1)
CALLERS = 10_000  # remembered
STANDING_SECONDS = 1.0  # for which it is taken that a key was not revoked, until it is charged
FULL_REQUEST = 1024  # images; a burst that is not stated holds at least this many


class UnknownKey(Exception):
    """There is no key of that id."""


def record(key_id: str) -> str:
    """Redis key of the hash that holds the key's limits and what it has spent."""
    return f"mz:zoo:{{{key_id}}}:key"


def audit(key_id: str) -> str:
    """Redis key of the append-only stream of its charges, refunds and top-ups."""
    return f"mz:zoo:{{{key_id}}}:audit"


def slots(key_id: str) -> str:
    """Redis key of the sorted set of requests that run now, scored by when their leases end."""
    return f"mz:zoo:{{{key_id}}}:slots"


def usage(key_id: str) -> str:
    """Redis key of the hash of images charged, by `<day since the epoch> <model>`."""
    return f"mz:zoo:{{{key_id}}}:usage"


def mark(key_id: str, idempotency_key: str) -> str:
    """Redis key of the hash that remembers one request."""
    return f"mz:zoo:{{{key_id}}}:mark:{sha256(idempotency_key.encode()).hexdigest()}"


class CannotTopUp(Exception):
    """The budget cannot be raised; the message says why."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, what that key may ask, and how it stood a moment ago. The gate, which charges, has the last word."""

    id: str
    models: frozenset[str] | None  # None: every model
    expires: float | None  # seconds since the epoch
    revoked: bool
    seen: float  # on the monotonic clock


class Keyring:
    """The keys of one zoo; `index` is the Redis key that lists them."""

    def __init__(self, redis: Redis, scripts: Scripts, *, index: str = INDEX) -> None:
        self._redis = redis
        self._scripts = scripts
        self._index = index
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()  # by the SHA-256 of their secret

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
            "request_rate": _text(request.requests_per_second),
            "request_burst": _text(
                None if request.requests_per_second is None else math.ceil(request.requests_per_second)
            ),
            "request_arrival": "0",
            "concurrency": _text(request.concurrency),
            # an object, so that the script's look-up does not depend on how many there are
            "models": "" if request.models is None else json.dumps(dict.fromkeys(request.models, True)),
            "revoked": "0",
            "expires": "" if request.expires_at is None else str(round(request.expires_at.timestamp() * MICROSECONDS)),
            "notes": request.notes,
        }
        await self._scripts.run("key_create", keys=[record(key_id), self._index], args=[key_id, json.dumps(fields)])
        return NewKey(**(await self.get(key_id)).model_dump(), secret=shown)

    async def recognise(self, secret: str) -> Caller | None:
        """Whose secret this is, also when the key was revoked or has expired; None for any other.

        Asks Redis once in `STANDING_SECONDS`, and never again about a revoked key. Raises `StoreUnavailable`.
        """
        digest = sha256(secret.encode()).digest()
        caller = self._callers.get(digest)
        now = time.monotonic()
        if caller is None or (now - caller.seen > STANDING_SECONDS and not caller.revoked):
            if caller is not None:
                self._callers[digest] = replace(caller, seen=now)  # one asks, for all who come meanwhile
            key = await self.authenticate(secret)
            if key is None:
                self._callers.pop(digest, None)
                return None
            models = None if key.models is None else frozenset(key.models)
            expires = None if key.expires_at is None else key.expires_at.timestamp()
            caller = Caller(key.id, models, expires, key.revoked, now)
            self._callers[digest] = caller
            if len(self._callers) > CALLERS:
                self._callers.popitem(last=False)
        return caller

    async def authenticate(self, secret: str) -> Key | None:
        """The key of this secret, also when it is revoked; None for any other. Raises `StoreUnavailable`."""
        found = SECRET.fullmatch(secret)
        if found is None:
            return None
        fields = await self._fields(found[1])
        kept = (fields or {}).get("secret", "0" * 64)
        same = hmac.compare_digest(kept, sha256(secret.encode()).hexdigest())
        return _key(found[1], fields) if same and fields else None

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
        if not await self._scripts.run("key_revoke", keys=[record(key_id), audit(key_id)], args=[]):
            raise UnknownKey(f"there is no key {key_id}")
        return await self.get(key_id)

    async def forget(self, key_id: str) -> None:
        """Delete the key and all that is counted of it: for keys whose model is gone. Raises `StoreUnavailable`."""
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(record(key_id), audit(key_id), slots(key_id), usage(key_id))
                pipe.srem(self._index, key_id)
                await pipe.execute()

    async def top_up(self, key_id: str, images: int) -> Key:
        """The key with `images` more in its budget. Raises `UnknownKey`, `CannotTopUp`, `StoreUnavailable`."""
        verdict = await self._scripts.run(
            "key_top_up", keys=[record(key_id), audit(key_id)], args=[images, LARGEST_BUDGET]
        )
        if verdict == b"unknown":
            raise UnknownKey(f"there is no key {key_id}")
        if verdict == b"unlimited":
            raise CannotTopUp("the key has no budget: it may ask without limit")
        if verdict == b"large":
            raise CannotTopUp(f"the budget would be more than {LARGEST_BUDGET} images")
        return await self.get(key_id)

    async def usage(self, key_id: str) -> Usage:
        """What the key was charged. Raises `UnknownKey`, `StoreUnavailable`."""
        key = await self.get(key_id)
        with store_errors():
            counted = await self._redis.hgetall(usage(key_id))
        models: Counter[str] = Counter()
        days: dict[date, dict[str, int]] = {}
        for name, count in counted.items():
            day, model = _decoded(name).split(" ", 1)
            models[model] += int(count)
            days.setdefault(EPOCH + timedelta(days=int(day)), {})[model] = int(count)
        return Usage(
            key=key_id,
            budget=key.budget,
            spent=key.spent,
            left=None if key.budget is None else key.budget - key.spent,
            per_model=_counted(models),
            per_day={day: _counted(days[day]) for day in sorted(days)},
        )

    async def _known(self, key_id: str) -> dict[str, str]:
        fields = await self._fields(key_id)
        if fields is None:
            raise UnknownKey(f"there is no key {key_id}")
        return fields

    async def _fields(self, key_id: str) -> dict[str, str] | None:
        with store_errors():
            values = await self._redis.hmget(record(key_id), FIELDS)
        if values[0] is None:
            return None
        return {name: "" if value is None else _decoded(value) for name, value in zip(FIELDS, values, strict=True)}


def _counted(models: dict[str, int]) -> dict[str, int]:
    """Without those of which everything was given back."""
    return {model: count for model, count in sorted(models.items()) if count}


def _key(key_id: str, fields: dict[str, str]) -> Key:
    return Key(
        id=key_id,
        name=fields["name"],
        created_at=datetime.fromtimestamp(int(fields["created"]) / MICROSECONDS, UTC),
        budget=int(fields["budget"]) if fields["budget"] else None,
        spent=int(fields["spent"]),
        images_per_second=float(fields["rate"]) if fields["rate"] else None,
        burst=int(fields["burst"]) if fields["burst"] else None,
        requests_per_second=float(fields["request_rate"]) if fields["request_rate"] else None,
        concurrency=int(fields["concurrency"]) if fields["concurrency"] else None,
        models=sorted(json.loads(fields["models"])) if fields["models"] else None,
        revoked=fields["revoked"] == "1",
        expires_at=datetime.fromtimestamp(int(fields["expires"]) / MICROSECONDS, UTC) if fields["expires"] else None,
        notes=fields["notes"],
    )


def _text(number: float | None) -> str:
    return "" if number is None else repr(number)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _decoded(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
