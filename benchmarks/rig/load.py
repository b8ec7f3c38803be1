"""Asks a server over plain HTTP/1.1 connections, as cheaply as a client can, and notes how long each answer took."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What came of it: answers a second, and how long each took in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float


def post(address: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request to `host:port`."""
    told = {"Host": address, "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def ask(address: str, request: bytes, *, clients: int, seconds: float, warm: int = 3) -> Load:
    """Have `clients` send `request` again and again for `seconds`, each waiting for its answer. Raises on any but a 200."""
    return asyncio.run(_ask(address, request, clients, seconds, warm))


async def _ask(address: str, request: bytes, clients: int, seconds: float, warm: int) -> Load:
    took: list[float] = []
    for _ in range(warm):
        await _client(address, request, 0.0, [])
    began = time.perf_counter()
    await asyncio.gather(*(_client(address, request, began + seconds, took) for _ in range(clients)))
    passed = time.perf_counter() - began
    took.sort()
    return Load(len(took) / passed, 1000 * took[len(took) // 2], 1000 * took[-1 - len(took) // 100])


async def _client(address: str, request: bytes, until: float, took: list[float]) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        while True:
            began = time.perf_counter()
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            assert b" 200 " in head.partition(b"\r\n")[0], body[:500]
            took.append(time.perf_counter() - began)
            if time.perf_counter() >= until:
                return
    finally:
        writer.close()
