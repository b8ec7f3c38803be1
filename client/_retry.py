"""Whether a failed attempt is worth another, and after how long: one pure function.

The server's hint comes first. A hint beyond `LONGEST` is not slept through: the error goes to the caller, who can
decide with its `retry_after`. Without a hint the wait doubles from half a second. Jitter keeps many clients apart,
and never makes anyone come earlier than the server said.
"""

from collections.abc import Callable
from random import random

from client.errors import ApiUnavailable, InProgress, MetazooError, RateLimited

FIRST = 0.5  # seconds before the first repetition without a hint
CEILING = 8.0  # longest wait without a hint
LONGEST = 60.0  # longest hint that is waited for


def pause(
    error: MetazooError,
    *,
    attempt: int,
    retries: int,
    repeatable: bool,
    random: Callable[[], float] = random,
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    `attempt` counts failed attempts from 0, `retries` is how many repetitions are allowed, `repeatable` says that a
    second execution does no harm (it reads, or carries an idempotency key), `random` draws from [0, 1).
    """
    if attempt >= retries or not isinstance(error, ApiUnavailable | InProgress | RateLimited):
        return None
    if isinstance(error, ApiUnavailable) and error.sent and not repeatable:
        return None
    if error.retry_after is not None:
        return error.retry_after + FIRST * random() if error.retry_after <= LONGEST else None
    return min(CEILING, FIRST * 2.0**attempt) * (0.5 + 0.5 * random())
