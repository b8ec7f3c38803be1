"""Traces of requests, told to OpenTelemetry: nothing unless the process was set up for it before the application is made.

A span holds the method, the route's template, the status, and what lines of the log name too: tenant, job and request. No path,
no query, no key and no body ever enters one.
"""

from typing import Any

import structlog
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.metrics import route_of

NAMED = ("tenant", "job_id", "request_id")

FRAMEWORKS_OWN: Any = {"tracing": False, "metrics": False, "logs": False}
"""What FastAPI would tell by itself holds paths, queries and the words of exceptions."""


def taken() -> bool:
    """Whether somebody takes traces: then an application adds `Traced`, outermost."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Traced:
    """A span for each request, below that of a caller who sends `traceparent`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._tracer = trace.get_tracer("metazoo")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method,
            context=propagate.extract(
                {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            ),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:

            def told(status: int) -> None:
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)
                if (route := route_of(scope)) != "none":
                    span.set_attribute("http.route", route)
                    span.update_name(f"{method} {route}")
                bound = structlog.contextvars.get_contextvars()
                span.set_attributes({f"metazoo.{name}": bound[name] for name in NAMED if name in bound})

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    told(message["status"])
                await send(message)

            try:
                await self.app(scope, receive, noted)
            except Exception:  # answered further out, if nothing of an answer has left
                told(500)
                raise
