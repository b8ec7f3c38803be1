"""What callers asked for, beyond looking, is written down."""

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.gatekeeper import SAFE
from meta_server.routes.access import Caller, authenticate, services
from metering.scripts import StoreUnavailable

_AUDITED = ("/v1/", "/admin/")
_UNAUDITED = ("/predict", "/classify", "/estimate")  # they change nothing, and there are many

log = structlog.get_logger()


class Audit:
    """Notes each request of a known caller before its answer leaves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        looks = scope["type"] != "http" or scope["method"] in SAFE
        if looks or not scope["path"].startswith(_AUDITED) or scope["path"].endswith(_UNAUDITED):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        caller = await authenticate(request)  # whom the gatekeeper let in

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
