"""Rate-limit headers, ours and everybody's: read when they can be, never fatal."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client._limits import Limit, RateLimits, retry_after


def test_both_headers_of_draft_10_are_joined_by_name() -> None:
    limits = RateLimits.parse(
        httpx.Headers(
            {
                "RateLimit-Policy": '"burst";q=512;w=2;qu="images", "budget";q=20480;qu="images"',
                "RateLimit": '"burst";r=100;t=3, "budget";r=7',
            }
        )
    )
    assert limits.get("burst") == Limit("burst", quota=512, window=2, unit="images", remaining=100, reset=3)
    assert limits.get("budget") == Limit("budget", quota=20480, unit="images", remaining=7)
    assert limits.get("other") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"RateLimit": "limit=10, remaining=4, reset=50"},
        {"RateLimit-Limit": "10", "RateLimit-Remaining": "4", "RateLimit-Reset": "50"},
        {"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "50"},
    ],
)
def test_older_forms(headers: dict[str, str]) -> None:
    assert RateLimits.parse(httpx.Headers(headers)).limits == (Limit("default", quota=10, remaining=4, reset=50),)


@pytest.mark.parametrize(
    "value", ['"burst";r=-1;t="soon"', '"burst";r=1.5', "burst", '"burst"', "10;w=1", "", "ünï", "=,="]
)
def test_odd_values_are_no_failure(value: str) -> None:
    limits = RateLimits.parse(httpx.Headers({"RateLimit": value.encode(), "RateLimit-Policy": value.encode()}))
    assert all(limit.remaining is None and limit.reset is None for limit in limits.limits)


@given(st.text(max_size=80))
def test_nothing_fails_it(value: str) -> None:
    headers = {"ratelimit": value, "ratelimit-policy": value, "x-ratelimit-limit": value, "retry-after": value}
    RateLimits.parse(headers)
    assert (retry_after(headers) or 0) >= 0


def test_retry_after() -> None:
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=90.0) == 10
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, now=200.0) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None
