"""How routes describe themselves: the problems they answer, and the parameters that several of them take."""

from typing import Annotated, Any

from fastapi import Header, Query

from contracts.problems import Problem

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Error responses of a route, for its description."""
    return {status: {"model": Problem, "description": _PROBLEM_TEXTS[status]} for status in statuses}


_PROBLEM_TEXTS = {
    400: "The body cannot be read.",
    401: "No valid key was sent.",
    403: "The key may not do this.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "The state does not allow this.",
    410: "It was here and has ended.",
    413: "The body is larger than will ever be accepted.",
    415: "The body is no JSON.",
    416: "The file has no such bytes: `Content-Range` says how many it has.",
    422: "The request is invalid: `errors` names every fault by its dotted field path.",
    429: "Too many wrong keys came from this address: `Retry-After` says how long to wait.",
    500: "A fault of the server.",
    503: "Redis is not reachable; nothing was lost or charged.",
}
After = Annotated[str | None, Query(description="The `next` of the page before; absent for the first.", max_length=100)]
Limit = Annotated[int, Query(description="Most items on the page.", ge=1, le=100)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Repeating a request under its key within 24 hours answers the same job and makes no second one.",
        min_length=1,
        max_length=200,
    ),
]
