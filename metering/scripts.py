"""Loads the Lua of `metering/lua` and runs it by `EVALSHA`, the source sent again if Redis forgot it.

All of one client go over one connection, none waiting for the answers of others; Redis writes to disk once for all that it
finds together.

Every script begins with the same prelude, which is the only place where time is read: `TIME` of the Redis server in
production, the value of a key in tests. Redis 6.2 commands only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

import hiredis
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
)

from metering.wire import Line

MICROSECONDS = 1_000_000
CONNECTIONS = 50  # of one process at once

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


_tracer = trace.get_tracer("metazoo")


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
    `timeout` bounds, in seconds, connecting, each command, and the wait for one of `CONNECTIONS` to be free: many callers at
    once take turns.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        protocol=2,
    )
    return Redis.from_pool(pool)


async def disconnect(redis: Redis) -> None:
    """Close a client of `connect`, once what is on its way through `Scripts` has been answered.

    Closed before that, it would open a connection again, which nobody would close.
    """
    if line := _lines.get(redis):
        await line.quiet()
    await redis.aclose()


_lines: "WeakKeyDictionary[Redis, Line]" = WeakKeyDictionary()


@lru_cache(256)
def source(name: str, *, clock_key: str | None = None) -> str:
    """The text of script `name` behind its prelude. With `clock_key`, time is that key's value in microseconds."""
    folder = files("metering") / "lua"
    clock = _SERVER_TIME if clock_key is None else _KEY_TIME % clock_key
    return "".join([clock, *((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))])


class Scripts:
    """The scripts of `metering/lua` over one Redis client.

    `clock_key` names the key that tests set to move time; without it, time is the server's.
    """

    def __init__(self, redis: Redis, *, clock_key: str | None = None) -> None:
        self._line = _lines.setdefault(redis, Line(redis.connection_pool))
        self._clock_key = clock_key

    async def run(self, name: str, *, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run script `name` and return its answer. Raises `StoreUnavailable`.

        A caller that is cancelled no longer hears of the outcome; the script may have run, or may yet run.
        """
        if not trace.get_current_span().is_recording():  # a poll, or nobody takes traces
            return await self._run(name, keys, args)
        with _span(name):
            return await self._run(name, keys, args)

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        text = source(name, clock_key=self._clock_key)
        with store_errors():
            try:
                return await self._line.send(_packed("EVALSHA", _sha(text), len(keys), *keys, *args))
            except NoScriptError:  # it has not run
                return await self._line.send(_packed("EVAL", text, len(keys), *keys, *args))


@contextmanager
def _span(name: str) -> Iterator[None]:
    """Tells that a script runs, for the request or task that has it run: no key and no argument of it."""
    with _tracer.start_as_current_span(
        f"EVALSHA {name}",
        kind=SpanKind.CLIENT,
        attributes={"db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": name},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__qualname__)
            raise


def _packed(*parts: str | bytes | float) -> bytes:
    """A command as Redis reads it."""
    pack: Any = hiredis.pack_command  # whose stub allows one part
    command: bytes = pack(parts)
    return command


@lru_cache(256)
def _sha(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()  # what Redis calls a script
