"""The short way of infer requests, which are nearly all that callers send: what the layers do for every request, in one step.

The layers, and what the framework does for a route, take longer than computing a small answer. Requests with anything unusual
about them go the long way, to the same `infer_at_once`.
"""

import re
import time
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_zoo.routes.infer import INFER, infer_at_once
from edge import errors
from edge.metrics import Metrics
from edge.middleware import BodyDeadline, request_id

INFER_PATH = "/v2/models/{model}/infer"  # with the prefixes of the routers that hold the route
_PATH = re.compile(r"/v2/models/([^/]+)/infer")
_UNUSUAL = frozenset({b"content-encoding", b"transfer-encoding", b"content-length"})


class LanedApp(FastAPI):
    """An application with `layers` around it, outermost first, and a `Lane` beside them."""

    def __init__(self, layers: Sequence[Middleware], **more: Any) -> None:
        super().__init__(middleware=layers, **more)
        self.lane: Lane | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if self.lane is not None and scope["type"] == "http" and (model := self.lane.takes(scope)) is not None:
            scope["app"], scope["route"], scope["path_params"] = self, INFER, {"model": model}
            await self.lane(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Lane:
    """Answers infer requests whose body comes as it is and says its length, at most `most` bytes, within `seconds`."""

    def __init__(self, metrics: Metrics, *, most: int, seconds: float) -> None:
        self._metrics = metrics
        self._most = most
        self._infer: ASGIApp = BodyDeadline(self._answer, seconds)

    def takes(self, scope: Scope) -> str | None:
        """The model of a request that goes this way."""
        if scope["method"] != "POST" or (asked := _PATH.fullmatch(scope["path"])) is None:
            return None
        length = -1
        for name, value in scope["headers"]:
            if name == b"content-length" and length < 0 and value.isdigit() and len(value) < 20:
                length = int(value)  # the server holds the body to it
            elif name in _UNUSUAL:
                return None
        return asked[1] if 0 <= length <= self._most else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that it takes."""
        await self._infer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        told = request_id(given)
        scope.setdefault("state", {})["request_id"] = told
        bound = structlog.contextvars.bind_contextvars(request_id=told)
        request = Request(scope, receive)
        fault: Exception | None = None
        charged = 0
        try:
            answer = await infer_at_once(request)
            status, headers, body, charged = 200, answer.headers, answer.body, answer.charged
        except Exception as error:
            response = await errors.answer(request, error)
            status, headers, body = response.status_code, response.raw_headers, bytes(response.body)
            fault = None if isinstance(error, errors.EXPECTED) else error
        finally:
            structlog.contextvars.reset_contextvars(**bound)
        self._metrics.note("POST", INFER_PATH, status, time.perf_counter() - began, charged)
        if fault is None:
            headers = [*headers, (b"x-request-id", told.encode())]
        start: Message = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})
        if fault is not None:
            raise fault  # the server writes it down
