"""The application: routes, error handling and what they use, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from redis.asyncio import Redis

from contracts.problems import MEDIA_TYPE
from meta_server import errors, routes
from meta_server.middleware import BodyLimit, RequestId
from meta_server.queue import Queue
from meta_server.services import open_services
from meta_server.settings import Settings


def create_app(settings: Settings, *, redis: Redis | None = None, queue: Queue | None = None) -> FastAPI:
    """The meta server. Connects to nothing before it is started; `redis` and `queue` replace those of the settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, redis=redis, queue=queue) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Metazoo meta server",
        version=version("metazoo"),
        summary="Meta-learning from black-box classification APIs, without data and within a query budget.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.key_digest = sha256(settings.api_key.get_secret_value().encode()).digest()
    app.include_router(routes.v1)
    app.include_router(routes.health)
    errors.install(app)
    app.add_middleware(BodyLimit, most=settings.max_body)
    app.add_middleware(RequestId)  # added last, so it is the outermost
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, in which errors are problem documents and every response has its request id."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in described["paths"].values():
            for operation in path.values():
                for status, response in operation["responses"].items():
                    _describe(status, response)
        app.openapi_schema = described
    return app.openapi_schema


def _describe(status: str, response: dict[str, Any]) -> None:
    request_id = {"description": "Quote it when you report a fault.", "schema": {"type": "string"}}
    response.setdefault("headers", {})["X-Request-Id"] = request_id
    if int(status) >= 400 and "application/json" in response.get("content", {}):
        response["content"] = {MEDIA_TYPE: response["content"]["application/json"]}
    if status == "503":
        wait = {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
        response["headers"]["Retry-After"] = wait
