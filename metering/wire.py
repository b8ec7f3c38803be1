"""A connection to Redis on which commands follow each other without waiting for answers.

However many requests are served at once, their commands share one connection, and those that Redis finds together one write to
its disk. The client of `redis` opens it, with all that addresses, keys and TLS need, and closes it; in between its streams and
pools would take longer than Redis. It has no public way to give its transport away: `_taken_over` is the one place that looks
inside, and where a version of it looks otherwise, commands go the ordinary way, a pooled connection for each under way.
"""

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import connection as streams
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError, TimeoutError

log = logging.getLogger(__name__)


class Wire(asyncio.Protocol):
    """An open connection of the pool, taken over from its streams. Belongs to one event loop.

    Raises AttributeError where the connection is not made as it is known here, and leaves it as it is.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.lost = False
        self._timeout: float | None = connection.socket_timeout
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=streams.DefaultParser.parse_error)
        self._asked: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport = connection._writer.transport
        self._before = self._transport.get_protocol()  # waits for the end when the client closes
        self._transport.set_protocol(self)

    def send(self, command: bytes) -> "asyncio.Future[Any]":
        """The answer to a packed command. Raises what Redis answers; `ConnectionError`, after which it may have run."""
        answer: asyncio.Future[Any] = self.loop.create_future()
        if self.lost:
            answer.set_exception(ConnectionError("the connection was lost"))
            return answer
        now = self.loop.time()
        self._asked.append((answer, now))
        self._transport.write(command)
        if self._timer is None and self._timeout is not None:
            self._timer = self.loop.call_at(now + self._timeout, self._too_late)
        return answer

    def pending(self) -> "list[asyncio.Future[Any]]":
        """What has not been answered."""
        return [answer for answer, _ in self._asked]

    def data_received(self, data: bytes) -> None:
        """Give each answer to who asked."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:  # no script answers that
                answer, _ = self._asked.popleft()
                if answer.done():
                    continue  # its caller was cancelled
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        except (RedisError, IndexError):  # no answer, or one that nobody asked for
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody who waits."""
        self._end(ConnectionError(f"the connection was lost: {error or 'closed'}"))
        self._before.connection_lost(error)

    def _too_late(self) -> None:
        self._timer = None
        if not self._asked or self._timeout is None:
            return
        late = self._asked[0][1] + self._timeout
        if late > self.loop.time():
            self._timer = self.loop.call_at(late, self._too_late)
            return
        self._end(TimeoutError(f"no answer within {self._timeout:g} s"))
        self._transport.abort()

    def _end(self, error: RedisError) -> None:
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            answer, _ = self._asked.popleft()
            if not answer.done():
                answer.set_exception(error)


class Line:
    """The wire to the Redis of one client, opened when it is first used and again after it was lost."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Any = pool
        self._wire: Wire | None = None
        self._opening: asyncio.Task[Wire | None] | None = None
        self._ordinary = False  # nothing can be taken over
        self._under_way: set[asyncio.Future[None]] = set()  # the ordinary way

    async def send(self, command: bytes) -> Any:
        """As `Wire.send`."""
        wire = self._wire
        if not self._ordinary and (wire is None or wire.lost or wire.loop is not asyncio.get_running_loop()):
            wire = await self._opened()
        return await (self._send_ordinarily(command) if wire is None else wire.send(command))

    async def _send_ordinarily(self, command: bytes) -> Any:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(done)
        try:
            connection = await self._pool.get_connection()
            try:
                await connection.send_packed_command(command)
                return await connection.read_response()
            except ResponseError:
                raise
            except BaseException:  # an answer may yet come, to whoever asked next
                await connection.disconnect(nowait=True)
                raise
            finally:
                await self._pool.release(connection)
        finally:
            self._under_way.discard(done)
            done.set_result(None)

    async def quiet(self) -> None:
        """Wait until everything that was sent is answered."""
        loop = asyncio.get_running_loop()
        if self._opening is not None and self._opening.get_loop() is loop:
            await asyncio.wait([self._opening])
        while self._wire is not None and self._wire.loop is loop and (asked := self._wire.pending()):
            await asyncio.wait(asked)
        while here := [done for done in self._under_way if done.get_loop() is loop]:
            await asyncio.wait(here)

    async def _opened(self) -> Wire | None:
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening.done() or self._opening.get_loop() is not loop:
            self._opening = loop.create_task(self._open())
            self._opening.add_done_callback(_seen)
        return await asyncio.shield(self._opening)  # who gives up does not end it for the others

    async def _open(self) -> Wire | None:
        before, self._wire = self._wire, None
        if before is not None:
            with suppress(RuntimeError):  # of a loop that was closed
                await before.connection.disconnect(nowait=True)
            await self._pool.release(before.connection)
        connection = await self._pool.get_connection()
        self._wire = _taken_over(connection)
        if self._wire is None:
            self._ordinary = True
            await self._pool.release(connection)
        return self._wire


def _taken_over(connection: Any) -> Wire | None:
    try:
        return Wire(connection)
    except AttributeError as error:
        log.warning("this version of redis gives no connection away, commands take turns: %s", error)
        return None


def _seen(opening: "asyncio.Task[Wire | None]") -> None:
    """Those who wait for it are told of its error; there may be none left."""
    if not opening.cancelled():
        opening.exception()
