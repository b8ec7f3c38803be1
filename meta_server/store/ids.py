"""Ids that sort by time and cannot be guessed."""

import secrets
from datetime import UTC, datetime

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford: none is mistaken for another


def new(prefix: str, now: datetime | None = None) -> str:
    """`prefix_` + the millisecond + 60 random bits, such as `job_01jt6m4k2c9w3h5x7y8z0ab`."""
    milliseconds = round((now or datetime.now(UTC)).timestamp() * 1000)
    return f"{prefix}_{_encode(milliseconds, 10)}{_encode(secrets.randbits(60), 12)}"


def _encode(number: int, length: int) -> str:
    return "".join(_DIGITS[(number >> 5 * place) & 31] for place in reversed(range(length)))
