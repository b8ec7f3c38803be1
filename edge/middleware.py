"""What every request passes: it gets an id, and its body an end in bytes and in time."""

import asyncio
import os
import re
import zlib

import anyio.lowlevel
import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_PIECE = 2**18  # bytes unpacked before others get their turn
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _header(scope: Scope, name: bytes) -> str:
    """The first header of that lower-case name, empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def request_id(given: str) -> str:
    """The caller's, if it sent a sound one, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


class RequestId:
    """Gives every response an `X-Request-Id`: the caller's, if it sent a sound one, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = request_id(_header(scope, b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = told  # for the handler of faults, which is further out

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", told.encode())]
            await send(message)

        bound = structlog.contextvars.bind_contextvars(request_id=told)  # the block form copies every other first
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            structlog.contextvars.reset_contextvars(**bound)


class BodyLimit:
    """Refuses bodies of more than `most` bytes with 413, by what they declare and by what really comes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = _header(scope, b"content-length")
        received = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
        too_large = HTTPException(413, f"the body is larger than {self.most} bytes")
        counted = 0

        async def receive_within() -> Message:
            nonlocal counted
            if received > self.most:
                raise too_large
            message = await receive()
            counted += len(message.get("body", b""))
            if counted > self.most:
                raise too_large
            return message

        await self.app(scope, receive_within, send)


class BodyDeadline:
    """Refuses bodies that have not arrived in full after `seconds` with 408, however steadily they drip."""

    def __init__(self, app: ASGIApp, seconds: float = 60.0) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self.seconds
        arrived = False

        async def receive_in_time() -> Message:
            nonlocal arrived
            if arrived:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self.seconds:.0f} s") from None
            arrived = not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)


class Decompress:
    """Unpacks bodies in gzip or deflate (zlib, RFC 9110) piece by piece; more than `most` bytes unpacked are a 413.

    Bodies that are damaged, cut short or followed by more are a 400. Other encodings pass as they are, header and all.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _header(scope, b"content-encoding").strip().lower() if scope["type"] == "http" else ""
        if encoding not in _WINDOWS:
            await self.app(scope, receive, send)
            return
        told = (b"content-encoding", b"content-length")  # both are of the packed body
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in told]
        unpacked = _Unpacked(receive, encoding, self.most)
        await self.app({**scope, "headers": headers}, unpacked.receive, send)


class _Unpacked:
    """A request's messages with its body unpacked; at most `_PIECE` bytes of it are in memory beside what was received."""

    def __init__(self, receive: Receive, encoding: str, most: int) -> None:
        self._receive = receive
        self._encoding = encoding
        self._most = most
        self._stream = zlib.decompressobj(_WINDOWS[encoding])
        self._packed = b""  # received, not yet unpacked
        self._more = True  # to be received
        self._count = 0
        self._ended = False

    async def receive(self) -> Message:
        if self._ended:
            return await self._receive()  # that the caller went away
        while not self._packed and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed = message.get("body", b"")
            self._more = message.get("more_body", False)
        await anyio.lowlevel.checkpoint()
        body = self._unpack()
        self._ended = not self._packed and not self._more and len(body) < _PIECE
        if self._ended and not self._stream.eof:
            raise HTTPException(400, f"the {self._encoding} body is cut short")
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    def _unpack(self) -> bytes:
        try:
            body = self._stream.decompress(self._packed, _PIECE)
        except zlib.error:
            raise HTTPException(400, f"the body is no {self._encoding}") from None
        self._packed = self._stream.unconsumed_tail
        if self._stream.unused_data:
            raise HTTPException(400, f"bytes follow the end of the {self._encoding} body")
        self._count += len(body)
        if self._count > self._most:
            raise HTTPException(413, f"the body is larger than {self._most} bytes once unpacked")
        return body
