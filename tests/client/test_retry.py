"""The one function that decides about retries, as a table."""

import pytest

from client._retry import CEILING, FIRST, LONGEST, pause
from client.errors import (
    ApiUnavailable,
    BudgetExhausted,
    Conflict,
    InProgress,
    InvalidRequest,
    MetazooError,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthorized,
)

AGAIN = [
    # error, attempt, repeatable, wait without jitter, wait with the most jitter
    (RateLimited("", retry_after=3), 0, False, 3, 3 + FIRST),
    (RateLimited("", retry_after=0), 0, False, 0, FIRST),
    (RateLimited("", retry_after=LONGEST), 2, True, LONGEST, LONGEST + FIRST),
    (RateLimited(""), 0, False, FIRST / 2, FIRST),
    (InProgress("", retry_after=1), 0, True, 1, 1 + FIRST),
    (ApiUnavailable("", retry_after=2), 0, True, 2, 2 + FIRST),
    (ApiUnavailable(""), 0, True, FIRST / 2, FIRST),
    (ApiUnavailable(""), 1, True, FIRST, 2 * FIRST),
    (ApiUnavailable(""), 4, True, CEILING / 2, CEILING),
    (ApiUnavailable("", sent=False), 0, False, FIRST / 2, FIRST),
]

NEVER = [
    # error, attempt, repeatable
    (RateLimited("", retry_after=LONGEST + 1), 0, True),  # the caller decides about long waits
    (RateLimited("", retry_after=1), 5, True),  # attempts are used up
    (ApiUnavailable("", retry_after=1), 0, False),  # it may have been executed, and must not be twice
    (BudgetExhausted("", left=0), 0, True),  # no wait brings images back
    (TooLarge("", max_images=8), 0, True),
    (InvalidRequest(""), 0, True),
    (Unauthorized(""), 0, True),
    (NotFound(""), 0, True),
    (Conflict(""), 0, True),
]


@pytest.mark.parametrize(("error", "attempt", "repeatable", "least", "most"), AGAIN)
def test_waits(error: MetazooError, attempt: int, repeatable: bool, least: float, most: float) -> None:
    options = {"attempt": attempt, "retries": 5, "repeatable": repeatable}
    assert pause(error, **options, random=lambda: 0.0) == least
    assert pause(error, **options, random=lambda: 1.0) == most


@pytest.mark.parametrize(("error", "attempt", "repeatable"), NEVER)
def test_gives_up(error: MetazooError, attempt: int, repeatable: bool) -> None:
    assert pause(error, attempt=attempt, retries=5, repeatable=repeatable) is None
