"""The dashboard: pages for people, over the same store as the REST interface and with the same keys."""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meta_server.dashboard import pages
from meta_server.dashboard.faults import answer
from meta_server.dashboard.look import STATIC, STATIC_PATH

__all__ = ["answer", "install"]

_HEADERS = {
    # Nothing from elsewhere, nothing inline, nothing evaluated; pictures that a person chose are blobs and data.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def install(app: FastAPI) -> None:
    """Add the pages, their static files, and the headers that keep them to themselves."""
    app.include_router(pages.router)
    app.mount(STATIC_PATH, StaticFiles(directory=STATIC))
    app.add_middleware(_PageHeaders)


class _PageHeaders:
    """Guards every HTML page; static files are named by content and may be kept for good."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                static = scope["path"].startswith(STATIC_PATH)
                if static or headers.get("content-type", "").startswith("text/html"):
                    headers.update(_HEADERS)
                    kept = static and message["status"] == 200
                    headers["Cache-Control"] = "public, max-age=31536000, immutable" if kept else "no-store"
            await send(message)

        await self.app(scope, receive, send_guarded)
