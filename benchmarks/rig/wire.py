"""HTTP/1.1 as thin as a caller can be, so that the server is what is measured: kept connections, whole answers, event lines."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class Connections:
    """Connections to one server; at most `most` requests at once, others wait their turn."""

    def __init__(self, url: str, key: str, most: int = 256) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        self._idle: list[Pair] = []
        self._open = 0
        self._turn = asyncio.Condition()
        self.most = most

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send and read to the end. A new connection is made when none is idle."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._open < self.most)
            self._open += 1
        try:
            self._idle = [pair for pair in self._idle if not pair[0].at_eof()]  # the server closes what idles for long
            pair = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
            answer = await self._exchange(pair, method, path, body, headers or {"Content-Type": "application/json"})
            self._idle.append(pair)
            return answer
        finally:
            async with self._turn:
                self._open -= 1
                self._turn.notify()

    async def lines(self, path: str, ready: asyncio.Semaphore) -> AsyncIterator[bytes]:
        """Lines of an event stream; `ready` is released when it has begun."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n".encode())
            status, _ = await _head(reader)
            assert status == 200, status
            ready.release()
            held = b""
            while size := int(await reader.readline(), 16):
                held += await reader.readexactly(size)
                await reader.readexactly(2)
                *whole, held = held.split(b"\n")
                for line in whole:
                    yield line.rstrip(b"\r")
        finally:
            writer.close()

    async def _exchange(self, pair: Pair, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        reader, writer = pair
        told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{told}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status, length = await _head(reader)
        return Answer(status, await reader.readexactly(length))

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, int]:
    """Status and content length."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.split("\r\n")
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    return int(first.split()[1]), length
