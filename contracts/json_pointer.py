"""JSON Pointer (RFC 6901), and `*` for each element of a list."""

from typing import Any

EACH = "*"


class NotThere(LookupError):
    """The value has nothing at the place that the pointer says."""


def parse(text: str) -> tuple[str, ...]:
    """`/a~1b/0/*` -> ("a/b", "0", "*"); "" points to the whole. Raises ValueError where it is no pointer.

    A step `*` is always each element, so a member of that name cannot be pointed to.
    """
    if text and not text.startswith("/"):
        raise ValueError("must be empty or begin with /, such as /predictions/*")
    steps = text.split("/")[1:]
    if any("~" in step.replace("~0", "").replace("~1", "") for step in steps):
        raise ValueError("must write ~ as ~0 and / as ~1")
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)


def find(value: Any, steps: tuple[str, ...]) -> Any:
    """What the steps lead to in a JSON value; each `*` makes a list of what is found in each element.

    Raises `NotThere`.
    """
    for place, step in enumerate(steps):
        if step == EACH:
            if not isinstance(value, list):
                raise NotThere
            return [find(each, steps[place + 1 :]) for each in value]
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and _is_index(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            raise NotThere
    return value


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdigit() and len(step) < 10 and (step == "0" or not step.startswith("0"))
