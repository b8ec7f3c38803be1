"""What a service counts of its requests, as Prometheus reads it at `/metrics`.

Labels are route templates and statuses: no ids, no keys, nothing that a caller chose. With several processes behind one port
`PROMETHEUS_MULTIPROC_DIR` must name an empty folder; each process then answers for all.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterable

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Gauges = Callable[[Request], Awaitable[Iterable[Metric]]]
"""What a service tells of itself when it is asked."""


class Metrics:
    """The counters of one application; `service` is a label of each."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        labels = ("service", "method", "route", "status")
        self._service = service
        self._requests = Counter("metazoo_requests", "Requests answered.", labels, registry=self.registry)
        self._seconds = Histogram(
            "metazoo_request_seconds",
            "Seconds until the answer began.",
            labels[:3],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._images = Counter(
            "metazoo_images", "Images charged, replays left out.", labels[:1], registry=self.registry
        ).labels(service)
        self._found: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def note(self, method: str, route: str, status: int, seconds: float, images: int = 0) -> None:
        """A request whose answer began after `seconds`, and the images charged for it."""
        asked = method, route, status
        if asked not in self._found:  # routes, methods and statuses are few; finding their counters takes a while
            self._found[asked] = (
                self._requests.labels(self._service, *asked),
                self._seconds.labels(self._service, *asked[:2]),
            )
        count, duration = self._found[asked]
        count.inc()
        duration.observe(seconds)
        if images:
            self._images.inc(images)

    def exposition(self) -> bytes:
        """All of it as text."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)
        return generate_latest(shared)


def route_of(scope: Scope) -> str:
    """The template of the route that answered, with the prefixes of the routers that hold it; `none` for any other path."""
    held = scope.get("fastapi", {}).get("effective_route_context")  # a route knows no prefix of `include_router`
    path: str = getattr(held or scope.get("route"), "path", "none")
    return path


class Measure:
    """Notes each request of `app`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()

        def told(status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
            sent = dict(headers) if status == 200 else {}
            charged = 0 if b"idempotency-replayed" in sent else int(sent.get(b"x-query-cost", 0))
            self.metrics.note(scope["method"], route_of(scope), status, time.perf_counter() - started, charged)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                told(message["status"], message["headers"])
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:  # answered further out, if nothing of an answer has left
            told(500, ())
            raise


def install(app: FastAPI, service: str, gauges: Gauges | None = None) -> None:
    """Let `app` count its requests and tell at `/metrics`, with what `gauges` adds. Call it before the outermost layers."""
    metrics = Metrics(service)
    tell(app, metrics, gauges)
    app.add_middleware(Measure, metrics=metrics)


def tell(app: FastAPI, metrics: Metrics, gauges: Gauges | None = None) -> None:
    """Let `app` tell `metrics` at `/metrics`, with what `gauges` adds."""

    async def told(request: Request) -> Response:
        text = metrics.exposition()
        if gauges is not None:
            text += generate_latest(_Once(await gauges(request)))
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    app.add_route("/metrics", told, include_in_schema=False)


class _Once(CollectorRegistry):
    """Metrics that are told once."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics
