"""What can go wrong, one class per decision that a caller can take.

MetazooError
├── NotConfigured          a URL or key was not given                     give it
├── InvalidRequest         the request is at fault: `fields` says where   fix the call
│   └── TooLarge           larger than will ever be taken                 send `max_images` or fewer
├── Unauthorized           no valid key, or it may not do this            use another key
├── NotFound               no such thing, or no longer                    look at the id
├── Conflict               the state does not allow this                  look at the state first
│   └── InProgress         the same request is still running              wait, then repeat it
├── RateLimited            too fast                                       wait `retry_after` seconds
├── BudgetExhausted        the key's image budget is spent                stop, or raise the budget
├── ApiUnavailable         not reachable, or failing                      try again later, or drop the API
├── InvalidAnswer          it answered, but not what the protocol says    check the URL; report it
├── JobFailed              the job ended without a meta-model             read `code`
└── TimedOut               the wait was given up; the job goes on         wait again
"""

import json
from typing import Any

import httpx
from httpx_sse import SSEError
from pydantic import ValidationError

from client._limits import RateLimits, retry_after
from contracts.jobs import Job
from contracts.problems import URN, Fault, Problem


class MetazooError(Exception):
    """Anything this package raises about a service. What is not known is None.

    `status` is the HTTP status, `problem` the RFC 9457 document answered, `request_id` what to quote to the operator.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: Problem | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem
        self.request_id = request_id


class NotConfigured(MetazooError):
    """A URL or key that this call needs was neither passed nor found in the environment."""


class InvalidRequest(MetazooError):
    """The request is at fault. `fields` holds every fault by dotted field path; it may be empty for foreign servers."""

    def __init__(self, message: str, *, fields: list[Fault] | None = None, **known: Any) -> None:
        super().__init__(message, **known)
        self.fields = fields or []


class TooLarge(InvalidRequest):
    """The request is larger than will ever be taken, so waiting is of no use: send at most `max_images` images."""

    def __init__(self, message: str, *, max_images: int | None = None, **known: Any) -> None:
        super().__init__(message, **known)
        self.max_images = max_images


class Unauthorized(MetazooError):
    """No valid key was sent (401), or the key may not do this (403)."""


class NotFound(MetazooError):
    """There is no such thing (404), or no longer (410)."""


class Conflict(MetazooError):
    """The state does not allow this: a job that has ended cannot be cancelled."""


class InProgress(Conflict):
    """A request with this idempotency key is still running: repeat it after `retry_after` seconds (None: not said)."""

    def __init__(self, message: str, *, retry_after: float | None = None, **known: Any) -> None:
        super().__init__(message, **known)
        self.retry_after = retry_after


class RateLimited(MetazooError):
    """Too fast: nothing was charged. `retry_after` is the server's hint in seconds (None: it gave none)."""

    def __init__(self, message: str, *, retry_after: float | None = None, **known: Any) -> None:
        super().__init__(message, **known)
        self.retry_after = retry_after


class BudgetExhausted(MetazooError):
    """The key's image budget does not cover the request, of which nothing was charged. Counts are images."""

    def __init__(
        self,
        message: str,
        *,
        spent: int | None = None,
        limit: int | None = None,
        left: int | None = None,
        **known: Any,
    ) -> None:
        super().__init__(message, **known)
        self.spent = spent
        self.limit = limit
        self.left = left


class ApiUnavailable(MetazooError):
    """Not reachable, too slow, or failing (5xx). `sent` is False when the request surely never left."""

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = True, **known: Any) -> None:
        super().__init__(message, **known)
        self.retry_after = retry_after
        self.sent = sent


class InvalidAnswer(MetazooError):
    """It answered, but not what the protocol says: another kind of server, a redirect, a wrong shape, a damaged file."""


class JobFailed(MetazooError):
    """The job ended without a meta-model. `code` is the job's error code, or `cancelled`; `job` is its last state."""

    def __init__(self, code: str, message: str, *, job: Job) -> None:
        super().__init__(f"job {job.id}: {message} ({code})")
        self.code = code
        self.job = job


class TimedOut(MetazooError, TimeoutError):
    """The wait took longer than allowed. Nothing was stopped: wait again."""


def from_failure(error: httpx.RequestError, request: httpx.Request) -> MetazooError:
    """The typed error of a request that got no answer, or one that could not be read."""
    url = _plain(request.url)
    if isinstance(error, httpx.DecodingError | SSEError):
        return InvalidAnswer(f"{url} sent a body that cannot be decoded: is the URL right?")
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    what = "took too long" if isinstance(error, httpx.TimeoutException) else "is not reachable"
    cause = str(error) or type(error).__name__
    return ApiUnavailable(f"{url} {what} ({cause}): is it running, and is the URL right?", sent=sent)


def from_response(response: httpx.Response, *, echo: bool = True) -> MetazooError:
    """The typed error of a response that is no success; its body must have been read.

    `echo=False` keeps the server's words out of the message (they stay in `problem`): for servers nobody vouches for.
    """
    status = response.status_code
    problem = _problem(response)
    known: dict[str, Any] = {
        "status": status,
        "problem": problem,
        "request_id": response.headers.get("x-request-id"),
    }
    message = _message(response, problem if echo else None)
    wait = retry_after(response.headers)
    kind = problem.type.removeprefix(URN) if problem else ""
    if status == 402:
        return BudgetExhausted(message, **_budget(response, problem), **known)
    if status == 429:
        return RateLimited(message, retry_after=wait, **known)
    if status in {401, 403}:
        return Unauthorized(message, **known)
    if status in {404, 410}:
        return NotFound(message, **known)
    if status == 409:
        in_progress = kind == "in-progress"
        return InProgress(message, retry_after=wait, **known) if in_progress else Conflict(message, **known)
    if status == 413:
        return TooLarge(message, fields=_faults(problem), max_images=_count(problem, "max_images"), **known)
    if status in {408, 425} or status >= 500:
        return ApiUnavailable(message, retry_after=wait, **known)
    if 400 <= status < 500:
        return InvalidRequest(message, fields=_faults(problem), **known)
    return InvalidAnswer(message, **known)


def _problem(response: httpx.Response) -> Problem | None:
    """The problem document, or what can be made of the errors of other servers (`error` or `detail`, a string)."""
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    try:
        return Problem.model_validate({name: value for name, value in body.items() if name != "error"})
    except ValidationError:
        detail = next((body[name] for name in ("detail", "error", "message") if isinstance(body.get(name), str)), None)
    if detail is None:
        return None
    return Problem(type="about:blank", title=response.reason_phrase, status=response.status_code, detail=detail[:500])


def _message(response: httpx.Response, problem: Problem | None) -> str:
    if problem is None:
        asked = f"{response.request.method} {_plain(response.request.url)}"
        hint = ": it redirects; give the final URL" if response.is_redirect else ""
        return f"{asked} answered {response.status_code} {response.reason_phrase}{hint}"
    faults = "; ".join(f"{fault.field}: {fault.message}" for fault in problem.errors)
    return f"{problem.title}: {problem.detail}" + (f" ({faults})" if faults else "")


def _plain(url: httpx.URL) -> str:
    return str(url.copy_with(userinfo=b"", query=None))


def _faults(problem: Problem | None) -> list[Fault]:
    return problem.errors if problem else []


def _count(problem: Problem | None, name: str) -> int | None:
    value = (problem.model_extra or {}).get(name) if problem else None
    return value if type(value) is int and value >= 0 else None


def _budget(response: httpx.Response, problem: Problem | None) -> dict[str, int | None]:
    stated = RateLimits.parse(response.headers).get("budget")
    limit = stated.quota if stated else None
    left = _count(problem, "left")
    if left is None and stated:
        left = stated.remaining
    return {"limit": limit, "left": left, "spent": limit - left if limit is not None and left is not None else None}
