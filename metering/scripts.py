"""Loads the Lua of `metering/lua` and runs it: one round trip by `EVALSHA`, the source sent again if Redis forgot it.

Every script begins with the same prelude, which is the only place where time is read: `TIME` of the Redis server in
production, the value of a key in tests. Redis 6.2 commands only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, TimeoutError

MICROSECONDS = 1_000_000

_SERVER_TIME = """
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
"""

_KEY_TIME = """
local function now()
  return tonumber(redis.call('GET', '%s'))
end
"""


class StoreUnavailable(Exception):
    """Redis cannot be reached, is loading, is read-only or is full. Whether the last command took effect is unknown."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what Redis raises when it cannot serve into `StoreUnavailable`; faults of ours pass unchanged."""
    try:
        yield
    except (ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError, OSError) as error:
        raise StoreUnavailable(f"Redis does not serve: {error}") from error
    except RuntimeError as error:
        # uvloop's word for a connection that was closed behind redis-py's back
        if "handler is closed" not in str(error):
            raise
        raise StoreUnavailable(f"Redis does not serve: {error}") from error


def connect(url: str, *, timeout: float = 5.0) -> Redis:
    """A client for scripts that charge; answers are bytes. Does not connect yet.

    Commands are never repeated by the client: a charge whose outcome was lost must not be made again blindly.
    `timeout` bounds, in seconds, connecting and each command.
    """
    return Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout, socket_connect_timeout=timeout, protocol=2
    )


def source(name: str, *, clock_key: str | None = None) -> str:
    """The text of script `name` behind its prelude. With `clock_key`, time is that key's value in microseconds."""
    folder = files("metering") / "lua"
    clock = _SERVER_TIME if clock_key is None else _KEY_TIME % clock_key
    return "".join([clock, *((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))])


class Scripts:
    """The scripts of `metering/lua` over one Redis client, loaded when first run.

    `clock_key` names the key that tests set to move time; without it, time is the server's.
    """

    def __init__(self, redis: Redis, *, clock_key: str | None = None) -> None:
        self._redis = redis
        self._clock_key = clock_key
        self._loaded: dict[str, Any] = {}

    async def run(self, name: str, *, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run script `name` and return its answer. Raises `StoreUnavailable`."""
        script = self._loaded.get(name)
        if script is None:
            script = self._loaded[name] = self._redis.register_script(source(name, clock_key=self._clock_key))
        with store_errors():
            return await script(keys=keys, args=args)
