"""Faults, drawn at random and done to a service whose jobs run; and how long the work of killed workers is idle then."""

import os
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis

from benchmarks.chaos.service import Part, Service
from contracts.jobs import JobStatus
from meta_server.store import keys

KINDS = {"child": 3, "worker": 3, "zoo": 2, "server": 1, "redis": 2, "cut zoo": 2, "cut redis": 2}  # and how often
LONGEST_CUT = 3.0  # seconds that a cut connection may stay cut


@dataclass(frozen=True)
class Held:
    """A role of a running job and who holds its lease."""

    job_id: str
    role: str
    fence: int
    pid: int


@dataclass
class Idle:
    """Work whose holder was killed: when, by `time.monotonic`, and for how many seconds since then a worker had room for it."""

    since: float
    workable: float = 0.0


@dataclass
class Recovery:
    """How long work lies idle whose worker was killed: until somebody else holds its lease, or its job runs no more.

    `longest` leaves out the time in which no worker could have taken it, all being down or full, or Redis away; `by_clock` does
    not.
    """

    service: Service
    longest: float | None = None  # seconds
    by_clock: float | None = None
    _idle: dict[Held, Idle] = field(default_factory=dict)
    _looked: float = field(default_factory=time.monotonic)

    def began(self, held: Iterable[Held]) -> None:
        """Their holder was killed now."""
        self._idle |= {one: Idle(time.monotonic()) for one in held}

    def look(self) -> None:
        """Who works again? Call it a few times a second. Raises redis's errors."""
        now = time.monotonic()
        step, self._looked = now - self._looked, now
        if not self._idle:
            return
        with self.service.redis() as connection:
            room = self.service.with_room(one.pid for one in holders(connection))
            for held, idle in list(self._idle.items()):
                idle.workable += min(step, now - idle.since) if held.role.partition(":")[0] in room else 0.0
                fence = int(connection.hget(keys.job(held.job_id, "leases"), f"fence:{held.role}") or 0)
                status: Any = connection.hget(keys.job(held.job_id, "record"), "status")
                if fence > held.fence:
                    self.longest = max(self.longest or 0.0, idle.workable)
                    self.by_clock = max(self.by_clock or 0.0, now - idle.since)
                if fence > held.fence or status != JobStatus.RUNNING.encode():
                    del self._idle[held]


def holders(connection: redis.Redis) -> list[Held]:
    """Who holds a lease of a running job, alive or not. Raises redis's errors."""
    running: Any = connection.zrange(keys.JOBS_BY_STATUS + JobStatus.RUNNING, 0, -1)
    found = []
    for job in running:
        fields: Any = connection.hgetall(keys.job(job.decode(), "leases"))
        for name, fence in fields.items():
            if name.startswith(b"held:") and fence:
                pid = int(fields[b"holder:" + name[5:]].rpartition(b":")[2])
                found.append(Held(job.decode(), name[5:].decode(), int(fence), pid))
    return found


@dataclass
class Chaos:
    """Picks and does faults, one at a time, on a service with running jobs."""

    service: Service
    random: random.Random
    kinds: dict[str, int] = field(default_factory=lambda: KINDS)
    done: list[str] = field(default_factory=list)
    recovery: Recovery = field(init=False)

    def __post_init__(self) -> None:
        self.recovery = Recovery(self.service)

    def strike(self) -> str | None:
        """One fault, if a job runs to be hit by it: what was done."""
        held = self._holders()
        if held is None:
            return None
        (kind,) = self.random.choices(list(self.kinds), list(self.kinds.values()))
        try:
            told: str | None = getattr(self, "_" + kind.replace(" ", "_"))(held)
        except ProcessLookupError:  # it had just ended
            return None
        if told:
            self.done.append(kind)
        return told

    def _holders(self) -> list[Held] | None:
        """Who holds leases of running jobs; None when no job runs or Redis is away."""
        try:
            with self.service.redis() as connection:
                running = connection.zcard(keys.JOBS_BY_STATUS + JobStatus.RUNNING)
                return holders(connection) if running else None
        except redis.RedisError:
            return None

    def _child(self, working: list[Held]) -> str | None:
        pids = {held.pid for held in working}
        alive = sorted(pid for part in self.service.workers for pid in part.children() if pid in pids)
        if not alive:
            return None
        chosen = self.random.choice(alive)
        os.kill(chosen, signal.SIGKILL)
        self.recovery.began(held for held in working if held.pid == chosen)
        return "killed a worker's child at work"

    def _worker(self, working: list[Held]) -> str | None:
        pids = {held.pid for held in working}
        at_work = [part for part in self.service.workers if pids & part.processes()]
        if not at_work:
            return None
        part = self.random.choice(at_work)
        its_own = part.processes()
        if told := self._kill(part):
            self.recovery.began(held for held in working if held.pid in its_own)
        return told

    def _zoo(self, _: list[Held]) -> str | None:
        return self._kill(self.service.parts["zoo"])

    def _server(self, _: list[Held]) -> str | None:
        return self._kill(self.service.parts["server"])

    def _redis(self, _: list[Held]) -> str | None:
        return self._kill(self.service.parts["redis"])

    def _cut_zoo(self, _: list[Held]) -> str | None:
        cut = self.service.zoo_proxy.cut(self.random.choice((0.0, LONGEST_CUT)))
        return f"cut {cut} connections to the zoo" if cut else None

    def _cut_redis(self, _: list[Held]) -> str | None:
        cut = self.service.redis_proxy.cut(self.random.choice((0.0, LONGEST_CUT)))
        return f"cut {cut} connections to Redis" if cut else None

    def _kill(self, part: Part) -> str | None:
        if not part.up or not part.process:
            return None
        os.killpg(part.process.pid, signal.SIGKILL)
        return f"killed {part.name}"
