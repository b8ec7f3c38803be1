"""Every error as an RFC 9457 document: one handler, whatever was raised."""

from collections.abc import Awaitable, Callable

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from contracts.problems import MEDIA_TYPE, PROBLEMS, ProblemError, faults
from metering.scripts import StoreUnavailable

log = structlog.get_logger()

RETRY_SECONDS = 5  # after Redis was not reachable

# What the framework itself answers, as problems of ours.
_BY_STATUS = {status: name for name, (status, _) in reversed(PROBLEMS.items())}


Handler = Callable[[Request, Exception], Awaitable[Response]]


EXPECTED = (ProblemError, RequestValidationError, HTTPException, StoreUnavailable, RedisError)
"""What is raised on purpose; anything else is a fault of ours."""


def install(app: FastAPI, handler: Handler | None = None) -> None:
    """Let `handler` (`answer`, if none is given) handle everything that is raised in `app`."""
    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, handler or answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """The response to `error`."""
    told = as_problem(request, error)
    return JSONResponse(
        told.problem.model_dump(mode="json"), told.problem.status, headers=told.headers, media_type=MEDIA_TYPE
    )


def as_problem(request: Request, error: Exception) -> ProblemError:
    """`error` as the problem that its caller can act on; what a caller cannot act on is not described."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(request, error)
    if isinstance(error, HTTPException):
        name = _BY_STATUS.get(error.status_code, "internal")
        return ProblemError(name, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, StoreUnavailable | RedisError):
        detail = "Redis is not reachable; nothing was lost or charged: try again"
        return ProblemError("unavailable", detail, headers={"Retry-After": str(RETRY_SECONDS)})
    request_id = request.state.request_id
    log.error("request_failed", request_id=request_id, method=request.method, path=request.url.path)
    detail = "this is a fault of the server: report it with the X-Request-Id"
    return ProblemError("internal", detail, headers={"X-Request-Id": request_id})


def _invalid(request: Request, error: RequestValidationError) -> ProblemError:
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return ProblemError("malformed", "the body is no JSON")
    if [each["loc"] for each in found] == [("body",)] and "json" not in request.headers.get("content-type", ""):
        return ProblemError("unsupported-media-type", "send JSON, with Content-Type: application/json")
    named = [fault for each in found for fault in faults([each], prefix=str(each["loc"][0]))]
    count = "1 fault" if len(named) == 1 else f"{len(named)} faults"
    return ProblemError("invalid-request", f"{count}; nothing was done", errors=named)
