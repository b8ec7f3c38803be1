"""Leases: who may work on what. Exclusive by a deadline that is stored, safe after it by a fencing number.

All leases of one thing (a job, say) are one hash; a role names one lease in it. Taking a lease counts an attempt; durable
progress (a settled chunk, a checkpoint) sets the count back, so that a crash loop ends and a busy night of restarts does not.
"""

from dataclasses import dataclass

from metering.scripts import MICROSECONDS, Scripts

SECONDS = 45.0
RENEW_EVERY = 15.0
ATTEMPTS = 3
UNLIMITED = 2**53  # attempts: a service may restart as often as it likes


class LeaseLost(Exception):
    """The fence is stale: someone else holds the lease, or it was released. Stop; nothing was written."""


class AttemptsExhausted(Exception):
    """The work was begun `attempts` times without durable progress: it would go on failing."""

    def __init__(self, role: str, attempts: int) -> None:
        super().__init__(f"{role} was begun {attempts} times without progress")
        self.role = role
        self.attempts = attempts


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was taken. `key` is the hash, `fence` goes with every write made under it."""

    key: str
    role: str
    fence: int
    attempt: int


class Leases:
    """Takes, renews and gives back leases. `seconds` is how long one lasts without renewal."""

    def __init__(self, scripts: Scripts, *, seconds: float = SECONDS, attempts: int = ATTEMPTS) -> None:
        self._scripts = scripts
        self._duration = round(seconds * MICROSECONDS)
        self._attempts = attempts

    async def take(self, key: str, role: str, holder: str) -> Lease | None:
        """The lease, or None while someone holds it. Raises `AttemptsExhausted`, `StoreUnavailable`."""
        verdict, *rest = await self._scripts.run(
            "lease_take", keys=[key], args=[role, holder, self._duration, self._attempts]
        )
        if verdict == b"taken":
            return None
        if verdict == b"exhausted":
            raise AttemptsExhausted(role, rest[0])
        return Lease(key=key, role=role, fence=rest[0], attempt=rest[1])

    async def renew(self, lease: Lease) -> None:
        """Move the deadline. Raises `LeaseLost`, `StoreUnavailable`."""
        args: list[str | int] = [lease.role, lease.fence, self._duration]
        if not await self._scripts.run("lease_renew", keys=[lease.key], args=args):
            raise LeaseLost(f"{lease.role} of {lease.key}, fence {lease.fence}")

    async def release(self, lease: Lease, *, orderly: bool = False) -> bool:
        """Give it back; False when it was lost before. `orderly`: an ordered shutdown, which counts as no attempt."""
        args: list[str | int] = [lease.role, lease.fence, int(orderly)]
        return bool(await self._scripts.run("lease_release", keys=[lease.key], args=args))
