"""Nobody's body is read before it is known who sends it."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.problems import ProblemError
from edge import errors
from metering.scripts import StoreUnavailable

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing and whose body nobody reads."""

_GUARDED = ("/v1/", "/v2/", "/admin/")

Authenticate = Callable[[Request], Awaitable[object]]
"""Finds out who calls, once a request. Raises `ProblemError`, `StoreUnavailable`."""


class Gatekeeper:
    """Asks for the key of every request that may carry a body, before its first byte is read."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self.app = app
        self.authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE or not scope["path"].startswith(_GUARDED):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            await self.authenticate(request)
        except (ProblemError, StoreUnavailable) as error:
            await (await errors.answer(request, error))(scope, receive, send)
            return
        await self.app(scope, receive, send)
