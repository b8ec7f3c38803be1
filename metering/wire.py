"""A connection to Redis on which commands follow each other without waiting for answers.

However many requests are served at once, their commands share one connection, and those that Redis finds together one write to
its disk. The client of `redis` opens it, with all that addresses, keys and TLS need, and closes it; in between its streams and
pools would take longer than Redis.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio.connection import ConnectionPool, DefaultParser
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, TimeoutError


class Wire(asyncio.Protocol):
    """An open connection of the pool, taken over from its streams. Belongs to one event loop."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.lost = False
        self._timeout: float | None = connection.socket_timeout
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=DefaultParser.parse_error)
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
        self._opening: asyncio.Task[Wire] | None = None

    async def send(self, command: bytes) -> Any:
        """As `Wire.send`."""
        wire = self._wire
        if wire is None or wire.lost or wire.loop is not asyncio.get_running_loop():
            wire = await self._opened()
        return await wire.send(command)

    async def quiet(self) -> None:
        """Wait until everything that was sent is answered."""
        loop = asyncio.get_running_loop()
        if self._opening is not None and self._opening.get_loop() is loop:
            await asyncio.wait([self._opening])
        while self._wire is not None and self._wire.loop is loop and (asked := self._wire.pending()):
            await asyncio.wait(asked)

    async def _opened(self) -> Wire:
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening.done() or self._opening.get_loop() is not loop:
            self._opening = loop.create_task(self._open())
            self._opening.add_done_callback(_seen)
        return await asyncio.shield(self._opening)  # who gives up does not end it for the others

    async def _open(self) -> Wire:
        before, self._wire = self._wire, None
        if before is not None:
            with suppress(RuntimeError):  # of a loop that was closed
                await before.connection.disconnect(nowait=True)
            await self._pool.release(before.connection)
        connection = await self._pool.get_connection()
        self._wire = Wire(connection)
        return self._wire


def _seen(opening: "asyncio.Task[Wire]") -> None:
    """Those who wait for it are told of its error; there may be none left."""
    if not opening.cancelled():
        opening.exception()
