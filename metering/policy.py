"""Whether a Redis keeps what it is told: what its persistence, memory and eviction are set to."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from metering.scripts import store_errors

OLDEST = (6, 2)
NEARLY_FULL = 0.9  # of maxmemory


@dataclass(frozen=True, slots=True)
class Policy:
    """What a server says of itself; None where it does not say. `faults`: what breaks the promise, and what to set."""

    version: str
    append_only: bool
    fsync: str | None
    eviction: str
    used: int  # bytes
    limit: int  # bytes; 0: none
    faults: list[str]


async def policy_of(redis: Redis) -> Policy:
    """Ask the server. Raises `StoreUnavailable`."""
    with store_errors():
        told: dict[str, Any] = await redis.info()
        try:
            settings: dict[Any, Any] = await redis.config_get("appendfsync")
        except ResponseError:  # managed servers often refuse CONFIG
            settings = {}
    told_fsync = {_text(name): _text(value) for name, value in settings.items()}.get("appendfsync")
    version = str(told.get("redis_version", "0"))
    append_only = bool(int(told.get("aof_enabled", 0)))
    eviction = _text(told.get("maxmemory_policy", ""))
    used, limit = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    faults = []
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        faults.append(f"version {version} is too old: use Redis 6.2 or later, or Valkey")
    if not append_only:
        faults.append("there is no append-only file: set appendonly yes, or a restart forgets what was spent")
    elif told_fsync is None:
        faults.append("it does not tell appendfsync: see to it that it is always")
    elif told_fsync != "always":
        faults.append(f"appendfsync is {told_fsync}: set always, or a power cut forgets the last writes")
    if eviction != "noeviction":
        faults.append(f"maxmemory-policy is {eviction}: set noeviction, or budgets may be evicted")
    if limit and used > NEARLY_FULL * limit:
        faults.append(f"{used} of {limit} bytes are used: raise maxmemory, or delete jobs")
    return Policy(version, append_only, told_fsync, eviction, used, limit, faults)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
