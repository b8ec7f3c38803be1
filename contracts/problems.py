"""RFC 9457 problem documents: the one shape of every error that any Metazoo service answers.

`type` is a stable URN that a program can compare; `error` repeats the title and detail in one string, because clients of
the Open Inference Protocol read that field and nothing else.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

MEDIA_TYPE = "application/problem+json"
URN = "urn:metazoo:problem:"

# type suffix -> (status, title). One home for every problem that can be answered.
PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid-request": (422, "The request is invalid"),
    "malformed": (400, "The body cannot be read"),
    "unauthorized": (401, "No valid key was sent"),
    "budget-exhausted": (402, "The key's image budget is spent"),
    "forbidden": (403, "The key may not do this"),
    "not-found": (404, "There is no such thing here"),
    "method-not-allowed": (405, "The resource does not take this method"),
    "timeout": (408, "The request took too long to arrive"),
    "conflict": (409, "The state does not allow this"),
    "in-progress": (409, "A request with this idempotency key is still running"),
    "gone": (410, "This was here and is no longer"),
    "too-large": (413, "The request is larger than will ever be accepted"),
    "unsupported-media-type": (415, "The media type is not understood"),
    "range-not-satisfiable": (416, "The file has no such bytes"),
    "key-reused": (422, "The idempotency key was used with another body"),
    "rate-limited": (429, "Too fast: try again later"),
    "internal": (500, "The server made a mistake"),
    "unavailable": (503, "A part this service needs is not reachable"),
}


class Fault(BaseModel):
    """One fault of a request: where it is (dotted field path, `body` for the whole) and what to do about it."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="Dotted path of the field, or `body` for the whole.")
    message: str = Field(description="What is wrong and what to do.")


class Problem(BaseModel):
    """An RFC 9457 document. Extension members: `errors` (every fault by field), `left`, `max_images`, `retry_after`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(description="A stable URN that a program can compare.")
    title: str = Field(description="The same for every problem of this type.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong here, and what to do next.")
    errors: list[Fault] = Field(default=[], description="Every fault, by field.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def error(self) -> str:
        """Title, detail and every fault in one line, for clients of the Open Inference Protocol."""
        return "; ".join(
            [f"{self.title}: {self.detail}", *(f"{fault.field}: {fault.message}" for fault in self.errors)]
        )


class ProblemError(Exception):
    """Raised by services to answer a problem; each service's one exception handler turns it into a response.

    `name` is a key of `PROBLEMS`; `extra` are extension members; `headers` go on the response (`Retry-After`, say).
    """

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        errors: list[Fault] | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        status, title = PROBLEMS[name]
        self.headers = headers or {}
        self.problem = Problem(type=URN + name, title=title, status=status, detail=detail, errors=errors or [], **extra)


# Pydantic's words where they do not say what to do.
_READABLE = {
    "missing": "is required",
    "extra_forbidden": "is no field that is known here: check its spelling",
}
_SHOULD = re.compile(r"^(Input|String|List|Dictionary) should")


def faults(errors: list[Any], *, prefix: str = "") -> list[Fault]:
    """Pydantic's error list as faults by dotted path. `prefix` (`body`, `query`) is dropped from the front of a path."""
    found = []
    for error in errors:
        location = [str(part) for part in error["loc"]]
        if prefix and location[:1] == [prefix]:
            location = location[1:]
        message = _READABLE.get(error["type"], str(error["msg"]).removeprefix("Value error, "))
        message = _SHOULD.sub("must", message)
        found.append(Fault(field=".".join(location) or "body", message=message))
    return found
