"""Rate limits as servers state them: read leniently, because a header nobody understands must never fail a request.

Understood: `RateLimit-Policy` and `RateLimit` lists (draft-ietf-httpapi-ratelimit-headers-10), their older dictionary
form (`limit=…, remaining=…, reset=…`), the separate headers `RateLimit-*` and `X-RateLimit-*`, and `Retry-After`.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import http_sf


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit, such as `burst` or `budget`. What the server does not say is None."""

    name: str
    quota: int | None = None
    window: int | None = None  # seconds
    unit: str | None = None  # `images`, `requests`
    remaining: int | None = None
    reset: int | None = None  # seconds until more is there


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Every limit a response states, by name."""

    limits: tuple[Limit, ...] = ()

    def get(self, name: str) -> Limit | None:
        """The limit of that name, if it was stated."""
        return next((limit for limit in self.limits if limit.name == name), None)

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> "RateLimits":
        """Read `headers`, whose names must compare without regard to case. Never raises."""
        found: dict[str, Limit] = {}
        for name, stated in _members(headers.get("ratelimit-policy")):
            found[name] = Limit(
                name, quota=_count(stated.get("q")), window=_count(stated.get("w")), unit=_text(stated.get("qu"))
            )
        for name, stated in _members(headers.get("ratelimit")):
            known = found.get(name, Limit(name))
            found[name] = replace(known, remaining=_count(stated.get("r")), reset=_count(stated.get("t")))
        return cls(tuple(found.values()) or _older(headers))


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait by `Retry-After`, a number or a date; None when it is absent or unreadable, never negative."""
    stated = headers.get("retry-after", "").strip()
    if stated.isascii() and stated.isdigit() and len(stated) < 10:
        return float(stated)
    try:
        until = parsedate_to_datetime(stated).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, until - (time.time() if now is None else now))


def _members(value: str | None) -> Iterable[tuple[str, dict[str, Any]]]:
    """The named members of a structured list of items with parameters; nothing if it is not one."""
    try:
        members: Any = http_sf.parse((value or "").encode("ascii"), tltype="list")
    except (ValueError, RecursionError):
        return []
    named = (member for member in members if isinstance(member, tuple) and isinstance(member[1], dict))
    return [(str(name), parameters) for name, parameters in named if isinstance(name, str)]


def _older(headers: Mapping[str, str]) -> tuple[Limit, ...]:
    """The one unnamed limit of drafts before 08 and of `X-RateLimit-*`."""
    parts = dict(part.strip().split("=", 1) for part in headers.get("ratelimit", "").split(",") if "=" in part)
    quota, remaining, reset = (
        _count(parts.get(name) or headers.get(f"ratelimit-{name}") or headers.get(f"x-ratelimit-{name}"))
        for name in ("limit", "remaining", "reset")
    )
    if quota is None and remaining is None:
        return ()
    return (Limit("default", quota=quota, remaining=remaining, reset=reset),)


def _count(value: object) -> int | None:
    """A whole number, none negative, in whatever dress."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str) else None
