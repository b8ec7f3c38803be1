"""How fast one API may be asked, from what it says of itself: a bucket for each limit it states, and a word to hold off.

A stated limit of q in w seconds is a bucket of q that refills at q / w a second, as the API's own does. Each answer tells what
was left when it was counted, which bounds what is left now: by that, buckets follow an API that refills faster than it says, or
whose key others use too.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import random
from typing import Literal

from client._limits import Limit, RateLimits

LONGEST_PAUSE = 30.0  # seconds before the word to stop is looked for again
SOON = 1e-4  # seconds that no clock need be waited for
JITTER = 1.0  # seconds by which requests may arrive closer together than they were sent

Unit = Literal["images", "requests"]


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave to send one request: when it was given, whether it had to be waited for, and all that was sent up to it."""

    at: float
    waited: bool
    sent: dict[Unit, int]


@dataclass
class _Bucket:
    quota: float
    rate: float  # of refilling, a second
    tokens: float
    at: float

    def refill(self, now: float) -> None:
        self.tokens = min(self.quota, self.tokens + self.rate * (now - self.at))
        self.at = now

    def seconds_until(self, cost: float) -> float:
        """Until `cost` is there and half of what is left of the bucket, since arrivals may bunch up.

        Throughput loses nothing by it: it is what flows into the bucket, as long as that never is full.
        """
        spare = min(max(0.0, self.quota - cost) / 2, self.rate * JITTER)
        return max(0.0, min(self.quota, cost + spare) - self.tokens) / self.rate


@dataclass
class Pacer:
    """Gives turns in the order they were asked for. `sleep` may raise, to stop; `clock` is monotonic, in seconds."""

    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, Unit], _Bucket] = field(default_factory=dict)
    _sent: dict[Unit, int] = field(default_factory=lambda: {"images": 0, "requests": 0})
    _hold_until: float = 0.0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def knows_a_rate(self) -> bool:
        """Whether the API stated a limit by time."""
        return bool(self._buckets)

    @property
    def most_images(self) -> int | None:
        """Images a request that fit twice into every stated limit, so that there is always room for one; None: no limit."""
        quotas = [bucket.quota for (_, unit), bucket in self._buckets.items() if unit == "images"]
        return max(1, int(min(quotas) // 2)) if quotas else None

    async def turn(self, images: int) -> Turn:
        """Wait until a request of so many images may be sent; it counts as sent. Raises what `sleep` raises."""
        async with self._lock:
            waited = False
            while (wait := self._wait(images)) > SOON:
                waited = True
                await self.sleep(min(wait, LONGEST_PAUSE))
            for (_, unit), bucket in self._buckets.items():
                bucket.tokens -= images if unit == "images" else 1
            self._sent["images"] += images
            self._sent["requests"] += 1
            return Turn(self.clock(), waited, dict(self._sent))

    def hold_off(self, seconds: float) -> None:
        """Give no turn for so long, and up to a quarter longer, so that not all come back at once."""
        self._hold_until = max(self._hold_until, self.clock() + seconds * (1 + random() / 4))

    def learn(self, turn: Turn, limits: RateLimits) -> None:
        """Take in what the answer to the request of `turn` says of limits."""
        now = self.clock()
        for limit in limits.limits:
            if not limit.quota or not limit.window:
                continue
            # the draft's unit where none is stated is requests
            unit: Unit = "images" if limit.unit == "images" else "requests"
            if limit.unit in (None, "images", "requests", "request"):
                self._follow(limit, unit, turn, now)

    def _follow(self, limit: Limit, unit: Unit, turn: Turn, now: float) -> None:
        quota, rate = float(limit.quota or 1), (limit.quota or 1) / (limit.window or 1)
        bucket = self._buckets.get((limit.name, unit))
        if bucket is None or bucket.quota != quota or bucket.rate != rate:
            bucket = self._buckets[limit.name, unit] = _Bucket(quota, rate, quota, now)
        bucket.refill(now)
        if limit.remaining is None:
            return
        # what was left when it was counted, less all sent since, is there at least; nothing sent and all refilled, at most
        least = limit.remaining - (self._sent[unit] - turn.sent[unit])
        most = limit.remaining + rate * (now - turn.at)
        bucket.tokens = min(quota, max(least, min(most, bucket.tokens)))

    def _wait(self, images: int) -> float:
        now = self.clock()
        waits = [self._hold_until - now]
        for (_, unit), bucket in self._buckets.items():
            bucket.refill(now)
            waits.append(bucket.seconds_until(images if unit == "images" else 1))
        return max(waits)
