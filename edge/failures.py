"""Callers who send wrong keys are slowed down."""

import time
from collections import OrderedDict

from fastapi import Request

from contracts.problems import ProblemError


class Failures:
    """Counts wrong keys: more than `most` in `seconds` from one address are answered 429, whatever they say.

    Each process counts what it saw itself, in memory: a count that all shared would write to disk for every guess.
    """

    def __init__(self, *, most: int = 30, seconds: float = 60.0, addresses: int = 10_000) -> None:
        self._most, self._seconds, self._addresses = most, seconds, addresses
        self._counted: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address -> how many, since when

    def count(self, request: Request) -> None:
        """One more from where the request comes from. Raises `ProblemError` (`rate-limited`) when they are too many."""
        address = request.client.host if request.client else ""
        now = time.monotonic()
        count, since = self._counted.pop(address, (0, now))
        if now - since >= self._seconds:
            count, since = 0, now
        self._counted[address] = (count + 1, since)
        if len(self._counted) > self._addresses:
            self._counted.popitem(last=False)
        if count >= self._most:
            wait = max(1, round(self._seconds - (now - since)))
            detail = f"too many wrong keys from this address: wait {wait} s, and send the right one"
            raise ProblemError("rate-limited", detail, headers={"Retry-After": str(wait)})
