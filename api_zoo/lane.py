"""The short way of infer requests, which are nearly all that callers send: the layers of every request, then the answer.

What the framework does for a route with dependencies takes longer than computing a small answer.
"""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api_zoo.routes.infer import INFER, infer_at_once
from edge import errors

_PATH = re.compile(r"/v2/models/([^/]+)/infer")


class LanedApp(FastAPI):
    """An application whose infer requests pass `layers`, outermost first, and nothing else before they are answered.

    They are found at the path that the route `INFER` has; the route describes them.
    """

    def __init__(self, layers: Sequence[Middleware], **more: Any) -> None:
        super().__init__(middleware=layers, **more)
        lane: ASGIApp = _answer_infer
        for layer in (Middleware(ServerErrorMiddleware, handler=errors.answer), *layers)[::-1]:
            lane = layer.cls(lane, *layer.args, **layer.kwargs)
        self._lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        asked = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"], scope["route"], scope["path_params"] = self, INFER, {"model": asked[1]}
        await self._lane(scope, receive, send)


async def _answer_infer(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    try:
        response = await infer_at_once(request)
    except errors.EXPECTED as error:
        response = await errors.answer(request, error)
    await response(scope, receive, send)
