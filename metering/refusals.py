"""How a key stands, and why a gate refuses a request."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A sustained rate and the burst above it, as they stand."""

    burst: int
    left: int  # of the burst
    reset: float  # seconds until the whole burst is there again
    per_second: float


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's limits as they stand; None where there is no limit."""

    images: Rate | None = None
    requests: Rate | None = None
    concurrency: int | None = None  # requests at once
    concurrency_left: int | None = None
    budget: int | None = None  # images
    budget_left: int | None = None


UNLIMITED = Limits()


class Refused(Exception):
    """The request was refused whole; nothing was charged."""


class KeyRevoked(Refused):
    """The key was revoked, or is unknown."""


class KeyExpired(Refused):
    """The key's time is over."""


class ModelForbidden(Refused):
    """The key may not use this model."""


class KeyReused(Refused):
    """The idempotency key came with another body before."""


class InProgress(Refused):
    """The same request is being computed; after `retry_after` seconds it is taken over."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"still running for up to {retry_after:.1f} s")
        self.retry_after = retry_after


class TakenOver(InProgress):
    """The lease ended and another process computes or has ended the same request: this answer must not leave."""

    def __init__(self) -> None:
        super().__init__(1.0)


class BurstExceeded(Refused):
    """More images than the key may ever send at once: no wait would help."""

    def __init__(self, max_images: int) -> None:
        super().__init__(f"at most {max_images} images at once")
        self.max_images = max_images


class RateExceeded(Refused):
    """Too fast: the same request passes after `retry_after` seconds of silence."""

    def __init__(self, retry_after: float, limits: Limits) -> None:
        super().__init__(f"too fast by {retry_after:.3f} s")
        self.retry_after = retry_after
        self.limits = limits


class TooMany(Refused):
    """As many requests of the key are running as may at once: one must end first."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(f"{limits.concurrency} requests are running")
        self.limits = limits


class BudgetSpent(Refused):
    """The key's budget does not hold these images; `left` it does hold."""

    def __init__(self, left: int, limits: Limits) -> None:
        super().__init__(f"{left} images are left")
        self.left = left
        self.limits = limits
