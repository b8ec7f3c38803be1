"""The two kinds of model on the wire: what we accept is strict about unknown fields, what we send is frozen."""

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class Input(BaseModel):
    """Something a caller sends: an unknown field is a fault, because a misspelt option must never be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(BaseModel):
    """Something we send or store: immutable; a reader ignores fields that a newer writer added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


MASKED = "**********"  # what a secret shows as

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$")]


def plain_http(url: str, *, example: str, instead: str) -> SplitResult:
    """The parts of an http or https URL without a user's name in it. Raises `ValueError`, which says what to do `instead`."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"must be an http or https URL, such as {example}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"must not hold a user name or password: {instead}")
    return parts


Place = tuple[str | int, ...]
"""Where a fault is: names of fields and indexes of lists."""


def refuse(title: str, found: Sequence[tuple[Place, str]]) -> None:
    """Raise every fault found, each at its place; for validators that look at several fields at once."""
    if found:
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{told}", {"told": message}), loc=place, input=None
            )
            for place, message in found
        ]
        raise ValidationError.from_exception_data(title, errors)
