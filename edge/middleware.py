"""What every request passes: it gets an id, and its body an end in bytes and in time."""

import re
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Gives every response an `X-Request-Id`: the caller's, if it sent a sound one, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id  # for the handler of faults, which is further out

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses bodies of more than `most` bytes with 413, by what they declare and by what really comes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
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
        deadline = anyio.current_time() + self.seconds
        arrived = False

        async def receive_in_time() -> Message:
            nonlocal arrived
            if arrived:
                return await receive()
            with anyio.CancelScope(deadline=deadline):
                message = await receive()
                arrived = not message.get("more_body", False)
                return message
            raise HTTPException(408, f"the body did not arrive within {self.seconds:.0f} s")

        await self.app(scope, receive_in_time, send)
