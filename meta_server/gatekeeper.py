"""Nobody's body is read before it is known who sends it; and what callers asked for is written down."""

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.problems import ProblemError
from edge import errors
from meta_server.routes.access import Caller, authenticate, services
from meta_server.session import SAFE
from metering.scripts import StoreUnavailable

_GUARDED = ("/v1/", "/v2/", "/admin/")
_AUDITED = ("/v1/", "/admin/")
_UNAUDITED = ("/predict", "/classify", "/estimate")  # they change nothing, and there are many

log = structlog.get_logger()


class Gatekeeper:
    """Asks for the key of every request that may carry a body, before its first byte is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE or not scope["path"].startswith(_GUARDED):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            caller = await authenticate(request)
        except (ProblemError, StoreUnavailable) as error:
            await (await errors.answer(request, error))(scope, receive, send)
            return
        path: str = scope["path"]
        if not path.startswith(_AUDITED) or path.endswith(_UNAUDITED):
            await self.app(scope, receive, send)
            return

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                await _note(request, caller, message["status"])
            await send(message)

        await self.app(scope, receive, send_noted)


async def _note(request: Request, caller: Caller, status: int) -> None:
    """Best effort: what was done is done, also when it cannot be written down."""
    action = f"{request.method} {request.url.path}"
    try:
        await services(request).access.note(tenant=caller.tenant, key=caller.key, action=action, status=status)
    except StoreUnavailable as error:
        log.warning("not_audited", action=action, key=caller.key, cause=str(error))
