"""A TCP proxy that can be told to cut: every connection is reset, and for a while new ones are refused the same way."""

import asyncio
import contextlib
import socket
import struct
import threading
import time

CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; closing sends RST


class Proxy:
    """Listens on a loopback `port` and carries bytes to another one. Runs in a thread of its own until `close`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._down_until = 0.0
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=f"proxy of {target}", daemon=True)
        self._thread.start()

    def cut(self, seconds: float = 0.0) -> int:
        """Reset every connection, and each new one for `seconds`. How many there were."""
        self._down_until = time.monotonic() + seconds
        return asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self.cut(3600)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._carry, sock=self._listener))
        self._loop.run_forever()

    async def _cut(self) -> int:
        clients = len(self._open) // 2
        for writer in list(self._open):
            _reset(writer)
        self._open.clear()
        return clients

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if time.monotonic() < self._down_until:
            return _reset(writer)
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # whoever we stand for is down
            return _reset(writer)
        both = {writer, forth}
        self._open |= both
        await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        self._open -= both
        for one in both:
            one.close()
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
