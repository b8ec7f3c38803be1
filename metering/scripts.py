"""Loads the Lua of `metering/lua` and runs it by `EVALSHA`, the source sent again if Redis forgot it.

Scripts that are wanted while others are on their way are sent together: however many requests are served at once, one
connection and one write to disk at a time carry them all.

Every script begins with the same prelude, which is the only place where time is read: `TIME` of the Redis server in
production, the value of a key in tests. Redis 6.2 commands only.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

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
    while sending := _sending.get(redis):
        await asyncio.wait(sending)
    await redis.aclose()


_sending: "WeakKeyDictionary[Redis, set[asyncio.Task[None]]]" = WeakKeyDictionary()


@lru_cache(256)
def source(name: str, *, clock_key: str | None = None) -> str:
    """The text of script `name` behind its prelude. With `clock_key`, time is that key's value in microseconds."""
    folder = files("metering") / "lua"
    clock = _SERVER_TIME if clock_key is None else _KEY_TIME % clock_key
    return "".join([clock, *((folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("prelude", name))])


class _Call(NamedTuple):
    text: str
    sha: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int | float]
    answer: "asyncio.Future[Any]"


class Scripts:
    """The scripts of `metering/lua` over one Redis client.

    `clock_key` names the key that tests set to move time; without it, time is the server's.
    """

    def __init__(self, redis: Redis, *, clock_key: str | None = None) -> None:
        self._redis = redis
        self._clock_key = clock_key
        self._waiting: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, name: str, *, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """Run script `name` and return its answer. Raises `StoreUnavailable`.

        A caller that is cancelled no longer hears of the outcome; the script may have run, or may yet run.
        """
        text = source(name, clock_key=self._clock_key)
        loop = asyncio.get_running_loop()
        call = _Call(text, _sha(text), keys, args, loop.create_future())
        self._waiting.append(call)
        if self._sender is None or self._sender.done() or self._sender.get_loop() is not loop:
            self._sender = loop.create_task(self._send())
            senders = _sending.setdefault(self._redis, set())
            senders.add(self._sender)
            self._sender.add_done_callback(senders.discard)
        with store_errors():
            return await call.answer

    async def _send(self) -> None:
        """Until nothing waits, send together whatever does."""
        while self._waiting:
            calls, self._waiting = self._waiting, []
            try:
                answers = await self._together(calls, known=True)
                forgotten = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                if forgotten:  # none of these has run
                    again = await self._together([calls[at] for at in forgotten], known=False)
                    for at, answer in zip(forgotten, again, strict=True):
                        answers[at] = answer
            except BaseException as error:
                answers = [error if isinstance(error, Exception) else ConnectionError("stopped")] * len(calls)
                if not isinstance(error, Exception):
                    raise
            finally:
                for call, answer in zip(calls, answers, strict=True):
                    if call.answer.done():
                        continue  # its caller was cancelled
                    if isinstance(answer, Exception):
                        call.answer.set_exception(answer)
                    else:
                        call.answer.set_result(answer)

    async def _together(self, calls: Sequence[_Call], *, known: bool) -> list[Any]:
        # what a pipeline of the client does, without its accounts of each command
        command = "EVALSHA" if known else "EVAL"
        packed = [
            _packed(command, call.sha if known else call.text, len(call.keys), *call.keys, *call.args) for call in calls
        ]
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        answers: list[Any] = []
        try:
            await connection.send_packed_command(packed)
            for _ in calls:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
        except BaseException:  # what it would answer next belongs to nobody
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)
        return answers


def _packed(*parts: str | bytes | float) -> bytes:
    """A command as Redis reads it."""
    told = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(told) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in told])


@lru_cache(256)
def _sha(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()  # what Redis calls a script
