"""The I/O-free core: a flow says what to send and how long to pause; a driver does it, blocking or not.

A flow is a generator. It yields a `Request` and is sent back the outcome: the `httpx.Response`, whole, or the
`MetazooError` of a request that got no answer. It yields a `Pause` and is sent back nothing. What it returns is the
result of the call. So every decision is written once, and the two drivers below are all that differs between the
blocking and the asynchronous client.
"""

import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent
from pydantic import BaseModel, ValidationError

from client import _retry
from client.errors import InvalidAnswer, MetazooError, from_failure, from_response

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

SILENCE = 45.0  # seconds without a byte (heartbeats count) after which an event stream is taken for dead
_STREAM = httpx.Timeout(10.0, read=SILENCE)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send; `url` is relative to the driver's base URL.

    `repeatable`: a second execution does no harm, because it reads or carries an idempotency key.
    `save_to`: the body of a 200 goes to this file instead of into memory.
    """

    method: str
    url: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True
    save_to: Path | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds in which nothing is to be done."""

    seconds: float


Outcome = httpx.Response | MetazooError
Flow = Generator[Request | Pause, Any, T]


def once(request: Request, *, echo: bool = True) -> Flow[httpx.Response]:
    """One attempt. Returns a success; raises the typed error of anything else (`echo`: see `errors.from_response`)."""
    outcome: Outcome = yield request
    if isinstance(outcome, MetazooError):
        raise outcome
    if not outcome.is_success:
        raise from_response(outcome, echo=echo)
    return outcome


def retried(request: Request, *, retries: int) -> Flow[httpx.Response]:
    """Attempts until one succeeds or another is of no use. It is one request throughout: so is its idempotency key."""
    attempt = 0
    while True:
        try:
            return (yield from once(request))
        except MetazooError as error:
            wait = _retry.pause(error, attempt=attempt, retries=retries, repeatable=request.repeatable)
            if wait is None:
                raise
        attempt += 1
        yield Pause(wait)


def call(request: Request, model: type[M], *, retries: int) -> Flow[M]:
    """`retried`, read as `model`."""
    return read((yield from retried(request, retries=retries)), model)


def read(response: httpx.Response, model: type[M]) -> M:
    """The body as `model`. Raises `InvalidAnswer` when it is something else."""
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        what = f"{response.request.url.path} answered no {model.__name__}" + (f" (see {place})" if place else "")
        raise InvalidAnswer(
            f"{what}: is the URL that of a Metazoo service, and is this client as new as it is?"
        ) from None


class Driver:
    """Runs flows, blocking, over one connection pool."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None,
        timeout: float,
        retries: int = 0,
    ) -> None:
        self.retries = retries
        self.http = httpx.Client(**_options(base_url, api_key, timeout), transport=transport)

    def run(self, flow: Flow[T]) -> T:
        """Do what the flow says; return what it returns, raise what it raises."""
        outcome: Outcome | None = None
        try:
            while True:
                step = flow.send(outcome)
                outcome = None
                if isinstance(step, Request):
                    outcome = self._attempt(step)
                else:
                    time.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    def call(self, request: Request, model: type[M]) -> M:
        """One request, repeated where that helps, read as `model`."""
        return self.run(call(request, model, retries=self.retries))

    def events(self, step: Request) -> Iterator[ServerSentEvent]:
        """The events of one connection until the server ends it; raises the typed error of a failure."""
        request = build(self.http, step, timeout=_STREAM)
        try:
            response = self.http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    response.read()
                    raise from_response(response)
                yield from EventSource(response).iter_sse()
            finally:
                response.close()
        except httpx.RequestError as error:
            raise from_failure(error, request) from error

    def _attempt(self, step: Request) -> Outcome:
        request = build(self.http, step)
        try:
            response = self.http.send(request, stream=True)
            try:
                if step.save_to is None or response.status_code != 200:
                    response.read()
                else:
                    with step.save_to.open("wb") as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
            finally:
                response.close()
        except httpx.RequestError as error:
            return from_failure(error, request)
        return response


class AsyncDriver:
    """Runs flows on the event loop, over one connection pool."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        transport: httpx.AsyncBaseTransport | None,
        timeout: float,
        retries: int = 0,
    ) -> None:
        self.retries = retries
        self.http = httpx.AsyncClient(**_options(base_url, api_key, timeout), transport=transport)

    async def run(self, flow: Flow[T]) -> T:
        """Do what the flow says; return what it returns, raise what it raises."""
        outcome: Outcome | None = None
        try:
            while True:
                step = flow.send(outcome)
                outcome = None
                if isinstance(step, Request):
                    outcome = await self._attempt(step)
                else:
                    await anyio.sleep(step.seconds)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            flow.close()

    async def call(self, request: Request, model: type[M]) -> M:
        """One request, repeated where that helps, read as `model`."""
        return await self.run(call(request, model, retries=self.retries))

    async def events(self, step: Request) -> AsyncIterator[ServerSentEvent]:
        """The events of one connection until the server ends it; raises the typed error of a failure."""
        request = build(self.http, step, timeout=_STREAM)
        try:
            response = await self.http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    await response.aread()
                    raise from_response(response)
                async with aclosing(EventSource(response).aiter_sse()) as events:
                    async for event in events:
                        yield event
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            raise from_failure(error, request) from error

    async def _attempt(self, step: Request) -> Outcome:
        request = build(self.http, step)
        try:
            response = await self.http.send(request, stream=True)
            try:
                if step.save_to is None or response.status_code != 200:
                    await response.aread()
                else:
                    async with await anyio.open_file(step.save_to, "wb") as file:
                        async for chunk in response.aiter_bytes():
                            await file.write(chunk)
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            return from_failure(error, request)
        return response


def build(http: httpx.Client | httpx.AsyncClient, step: Request, **extra: Any) -> httpx.Request:
    """The step as httpx sends it."""
    return http.build_request(
        step.method, step.url, params=step.params or None, headers=step.headers, content=step.content, **extra
    )


def _options(base_url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    headers = {"User-Agent": "metazoo", "Accept": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return {
        "base_url": base_url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, 10.0)),
        # Redirects are not followed: a key must not travel to where the caller did not send it.
        "follow_redirects": False,
        # No proxy stands between a client and its own machine.
        "mounts": dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]")),
    }
