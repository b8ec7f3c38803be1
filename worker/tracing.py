"""Traces of tasks and of calls to APIs, told to OpenTelemetry: nothing unless the process was set up for it.

A span holds what lines of the log name too, and of a call the host, the method and the status: no path, no key, no image.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import structlog
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode

NAMED = ("tenant", "job_id", "role", "probe_id")

_tracer = trace.get_tracer("metazoo")


@contextmanager
def task(name: str, carried: Mapping[str, str] | None) -> Iterator[None]:
    """A span of a task, below the one whose context its message carried. It is named what log lines are bound to at its end."""
    with _span(name, SpanKind.CONSUMER, context=propagate.extract(carried or {})) as span:
        try:
            yield
        finally:
            bound = structlog.contextvars.get_contextvars()
            span.set_attributes({f"metazoo.{name}": bound[name] for name in NAMED if name in bound})


@contextmanager
def _span(name: str, kind: SpanKind, **more: Any) -> Iterator[Span]:
    with _tracer.start_as_current_span(
        name, kind=kind, record_exception=False, set_status_on_exception=False, **more
    ) as span:  # what an exception says may be an API's words
        try:
            yield span
        except BaseException as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__qualname__)
            raise


class TracedTransport(httpx.AsyncBaseTransport):
    """Notes each call through `inner`. Who is called learns nothing of the trace: it may be a stranger."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        attributes = {"http.request.method": request.method, "server.address": request.url.host}
        with _span(request.method, SpanKind.CLIENT, attributes=attributes) as span:
            response = await self._inner.handle_async_request(request)
            span.set_attribute("http.response.status_code", response.status_code)
            return response

    async def aclose(self) -> None:
        await self._inner.aclose()
