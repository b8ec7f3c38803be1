"""The application: routes, error handling and what they use, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.metadata import version

from fastapi import FastAPI
from redis.asyncio import Redis

from edge import errors, metrics, openapi, tracing
from edge.failures import Failures
from edge.gatekeeper import Gatekeeper
from edge.middleware import BodyDeadline, BodyLimit, Decompress, RequestId
from meta_server import dashboard, routes
from meta_server.audit import Audit
from meta_server.gauges import gauges
from meta_server.queue import Queue
from meta_server.routes import hosted
from meta_server.routes.access import authenticate
from meta_server.services import open_services
from meta_server.session import Sessions
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
        telemetry=tracing.FRAMEWORKS_OWN,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their script from elsewhere; the dashboard has one of its own
        redoc_url=None,
    )
    app.state.key_digest = sha256(settings.api_key.get_secret_value().encode()).digest()
    app.state.failures = Failures()
    app.state.sessions = Sessions(settings.secret_key.get_secret_value())
    app.include_router(routes.root)
    hosted.install(app)
    errors.install(app, dashboard.answer)
    dashboard.install(app)
    app.add_middleware(Decompress, most=settings.max_body)  # innermost: the others see the body as it was sent
    app.add_middleware(BodyLimit, most=settings.max_body)
    app.add_middleware(BodyDeadline)
    app.add_middleware(Audit)
    app.add_middleware(Gatekeeper, authenticate=authenticate)
    metrics.install(app, "server", gauges)
    app.add_middleware(RequestId)
    if tracing.taken():
        app.add_middleware(tracing.Traced)  # the outermost
    openapi.install(app)
    return app
