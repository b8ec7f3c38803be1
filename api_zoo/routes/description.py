"""How routes describe themselves: the problems they answer, the headers of answers, and what several of them take."""

from typing import Annotated, Any

from fastapi import Header

from contracts.problems import Problem

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Error responses of a route, for its description."""
    return {status: {"model": Problem, "description": _PROBLEM_TEXTS[status]} for status in statuses}


_PROBLEM_TEXTS = {
    400: "The body does not follow the protocol: `errors` names every fault.",
    401: "No valid key was sent.",
    402: "The key's budget does not hold these images; `left` says what it holds. Waiting does not help.",
    403: "The key may not use this model.",
    404: "There is no such thing.",
    408: "The body took too long to arrive.",
    409: "The same request is still running; `Retry-After` says when it can be taken over.",
    413: "More than will ever be accepted; `max_images` says how many images are.",
    415: "The body is neither JSON nor raw tensors, or is compressed as neither gzip nor deflate.",
    422: "The request is invalid: `errors` names every fault. Or the idempotency key came with another body before.",
    429: "Too fast, or too many wrong keys came from this address; `Retry-After` says when to try again.",
    500: "A fault of the server; nothing was charged.",
    503: "Redis is not reachable; nothing was answered.",
}
ANSWER_HEADERS = {
    "X-Query-Cost": {
        "description": "Images charged; for a replay, what was charged then.",
        "schema": {"type": "integer"},
    },
    "RateLimit-Policy": {"description": "The key's limits.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of them.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true` for an answer that was given before.",
        "schema": {"type": "string"},
    },
}
LONGEST_KEY = 255
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=LONGEST_KEY, description="Same key, same body: the same answer for 24 h, charged once."
    ),
]
