"""The two kinds of model on the wire: what we accept is strict about unknown fields, what we send is frozen."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


class Input(BaseModel):
    """Something a caller sends: an unknown field is a fault, because a misspelt option must never be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(BaseModel):
    """Something we send or store: immutable; a reader ignores fields that a newer writer added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,62}$")]


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
