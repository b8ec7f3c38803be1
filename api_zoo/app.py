"""The application: routes, error handling and what they use, put together."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from redis.asyncio import Redis
from starlette.middleware import Middleware

from api_zoo import routes
from api_zoo.inference import Model
from api_zoo.lane import Lane, LanedApp
from api_zoo.routes.access import authenticate
from api_zoo.services import open_services
from api_zoo.settings import Settings
from edge import errors, metrics, openapi, tracing
from edge.failures import Failures
from edge.gatekeeper import Gatekeeper
from edge.middleware import BodyDeadline, BodyLimit, Decompress, RequestId
from metering.gate import Gate


def create_app(
    settings: Settings,
    *,
    redis: Redis | None = None,
    registry: Mapping[str, Model] | None = None,
    gate: Gate | None = None,
) -> FastAPI:
    """The zoo. Opens nothing before it is started; what is passed replaces what the settings would make.

    `registry` holds models by name, `gate` decides and charges.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, redis=redis, registry=registry, gate=gate) as services:
            app.state.services = services
            yield

    counters = metrics.Metrics("zoo")
    app = LanedApp(
        [
            *([Middleware(tracing.Traced)] if tracing.taken() else []),
            Middleware(RequestId),
            Middleware(metrics.Measure, metrics=counters),
            Middleware(Gatekeeper, authenticate=authenticate),
            Middleware(BodyDeadline, seconds=settings.body_seconds),
            Middleware(BodyLimit, most=settings.max_body),
            Middleware(Decompress, most=settings.max_body),  # innermost: the others see the body as it was sent
        ],
        title="Metazoo API zoo",
        version=version("metazoo"),
        summary="Classifiers as metered, rate-limited APIs over the Open Inference Protocol v2.",
        lifespan=lifespan,
        telemetry=tracing.FRAMEWORKS_OWN,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their script from elsewhere; /openapi.json says the same
        redoc_url=None,
    )
    if not tracing.taken():
        app.lane = Lane(counters, most=settings.max_body, seconds=settings.body_seconds)
    app.state.failures = Failures()
    app.state.host = None  # it hosts its folder's models
    app.include_router(routes.root)
    errors.install(app)
    metrics.tell(app, counters)
    openapi.install(app)
    return app
