"""The gate against a plain model: they agree after each step, and no budget is exceeded by one image."""

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from contracts.zoo import KeyRequest
from metering.gate import LARGEST_ANSWER, Admission, Gate
from metering.keyring import Keyring
from metering.refusals import (
    BudgetSpent,
    BurstExceeded,
    InProgress,
    KeyReused,
    Limits,
    ModelForbidden,
    Rate,
    RateExceeded,
    Refused,
    TakenOver,
    TooMany,
)
from metering.scripts import MICROSECONDS, Scripts, connect

CLOCK = "test:clock"
START = 10**15  # microseconds
LEASE, REPLAY = 65, 200  # seconds
ALLOWED = ("a", "b")
MODELS = (*ALLOWED, "c")
NAMES = ("k0", "k1", "k2")  # idempotency keys
TOO_LARGE = b"x" * (LARGEST_ANSWER + 1)


@dataclass
class Request:
    """What the plain model remembers of a granted request."""

    charge: str
    model: str
    digest: str
    images: int
    deadline: int
    until: int
    repeatable: bool
    turn: int = 1
    running: bool = True
    answered: bool = False
    answer: bytes | None = None


@dataclass
class Plain:
    """A token bucket, a sum and a dictionary: the gate as anyone would write it for one process that never dies."""

    budget: int | None
    rate: int | None
    burst: int
    request_rate: int | None = None
    concurrency: int | None = None
    now: int = START
    tokens: Fraction = Fraction(0)
    request_tokens: Fraction = Fraction(0)
    requests: dict[str, Request] = field(default_factory=dict)
    ledger: list[tuple[str, str, str, int]] = field(default_factory=list)  # (kind, charge, model, images)

    def spent(self, model: str | None = None) -> int:
        return sum(
            images if kind == "charge" else -images for kind, _, of, images in self.ledger if model in (None, of)
        )

    def left(self) -> int | None:
        return None if self.budget is None else self.budget - self.spent()

    def limits(self) -> Limits:
        at_once = None if self.concurrency is None else self.concurrency - self.running()
        return Limits(
            bucket(self.rate, self.burst, self.tokens),
            bucket(self.request_rate, self.request_rate, self.request_tokens),
            self.concurrency,
            at_once,
            self.budget,
            self.left(),
        )

    def running(self) -> int:
        return sum(request.running and request.deadline > self.now for request in self.requests.values())

    def full(self) -> bool:
        return self.concurrency is not None and self.running() >= self.concurrency

    def seconds(self, images: int) -> float:
        """Until a request of so many images is granted by the rates."""
        waits = [(images - self.tokens) / self.rate] if self.rate else []
        waits += [(1 - self.request_tokens) / self.request_rate] if self.request_rate else []
        return float(max(waits))

    def wait(self, microseconds: int) -> None:
        self.now += microseconds
        if self.rate is not None:
            self.tokens = min(Fraction(self.burst), self.tokens + Fraction(self.rate * microseconds, MICROSECONDS))
        if self.request_rate is not None:
            refilled = self.request_tokens + Fraction(self.request_rate * microseconds, MICROSECONDS)
            self.request_tokens = min(Fraction(self.request_rate), refilled)

    def verdict(self, name: str | None, model: str, images: int, digest: str) -> str | type[Refused]:
        seen = None if name is None else self.requests.get(name)
        if seen is not None and seen.until > self.now:
            if (seen.model, seen.digest) != (model, digest):
                return KeyReused
            if seen.running and seen.deadline > self.now:
                return InProgress
            if seen.answer is not None:
                return "replayed"
            return TooMany if self.full() else "resumed"
        if model not in ALLOWED:
            return ModelForbidden
        if self.rate is not None and images > self.burst:
            return BurstExceeded
        if self.budget is not None and images > self.budget - self.spent():
            return BudgetSpent
        if self.rate is not None and images > self.tokens:
            return RateExceeded
        if self.request_rate is not None and self.request_tokens < 1:
            return RateExceeded
        return TooMany if self.full() else "charged"

    def charge(self, name: str, charge: str, model: str, images: int, digest: str, *, repeatable: bool) -> None:
        self.ledger.append(("charge", charge, model, images))
        self.tokens -= images if self.rate is not None else 0
        self.request_tokens -= 1 if self.request_rate is not None else 0
        deadline, until = self.now + LEASE * MICROSECONDS, self.now + REPLAY * MICROSECONDS
        self.requests[name] = Request(charge, model, digest, images, deadline, until, repeatable)

    def resume(self, name: str) -> Request:
        request = self.requests[name]
        request.turn += 1
        request.running = True
        request.deadline = self.now + LEASE * MICROSECONDS
        return request

    def current(self, name: str, admission: Admission) -> Request | None:
        """The request, if this admission may still end it."""
        request = self.requests.get(name)
        if request is None or not request.running:
            return None
        return request if (request.charge, request.turn) == (admission.charge, admission.turn) else None

    def settle(self, name: str, answer: bytes) -> None:
        request = self.requests[name]
        if not request.repeatable:
            del self.requests[name]
            return
        request.running, request.answered = False, True
        request.answer = answer if len(answer) <= LARGEST_ANSWER else None

    def refund(self, name: str) -> None:
        request = self.requests[name]
        if request.answered:
            request.running = False
            return
        self.ledger.append(("refund", request.charge, request.model, request.images))
        del self.requests[name]


def bucket(rate: int | None, burst: int | None, tokens: Fraction) -> Rate | None:
    if rate is None or burst is None:
        return None
    return Rate(burst, int(tokens), float((burst - tokens) / rate), float(rate))


class Machine(RuleBasedStateMachine):
    """Callers ask, repeat, answer, give up, die and come back late, alone and at once, while time passes."""

    loop: asyncio.AbstractEventLoop
    redis: Redis

    def run(self, work):
        return self.loop.run_until_complete(work)

    @initialize(
        budget=st.none() | st.integers(0, 200),
        rate=st.none() | st.sampled_from([1, 8, 100]),
        burst=st.integers(1, 30),
        request_rate=st.none() | st.sampled_from([1, 4, 50]),
        concurrency=st.none() | st.integers(1, 4),
    )
    def start(
        self, budget: int | None, rate: int | None, burst: int, request_rate: int | None, concurrency: int | None
    ) -> None:
        self.run(self.redis.flushdb())
        self.run(self.redis.set(CLOCK, START))
        scripts = Scripts(self.redis, clock_key=CLOCK)
        self.keyring = Keyring(self.redis, scripts)
        self.gate = Gate(self.redis, scripts, replay_seconds=REPLAY, lease_seconds=LEASE)
        wanted = KeyRequest(
            budget=budget,
            images_per_second=rate,
            burst=burst if rate else None,
            requests_per_second=request_rate,
            concurrency=concurrency,
            models=list(ALLOWED),
        )
        self.key = self.run(self.keyring.create(wanted)).id
        self.plain = Plain(budget, rate, burst, request_rate, concurrency, tokens=Fraction(burst))
        self.plain.request_tokens = Fraction(request_rate or 0)
        self.known: list[tuple[str, Admission]] = []  # what callers hold, whatever has become of it
        self.delivered: dict[str, int] = {}  # charge -> images, as the callers count what they got
        self.serial = itertools.count()

    async def ask(
        self, name: str | None, model: str, images: int, digest: str, at_hand: bytes = b""
    ) -> Admission | Refused:
        try:
            return await self.gate.admit(
                self.key, model=model, images=images, idempotency_key=name, digest=digest, at_hand=at_hand
            )
        except Refused as refused:
            return refused

    def follow(
        self,
        told: Admission | Refused,
        name: str | None,
        model: str,
        images: int,
        digest: str,
        *,
        lost: bool = False,
        at_hand: bytes = b"",
    ) -> None:
        """Take the same step in the plain model and compare."""
        expected = self.plain.verdict(name, model, images, digest)
        if isinstance(told, Refused):
            assert type(told) is expected
            if isinstance(told, BudgetSpent | RateExceeded | TooMany):
                assert told.limits == self.plain.limits()
            if isinstance(told, BudgetSpent):
                assert told.left == self.plain.left()
            if isinstance(told, RateExceeded):
                assert told.retry_after == self.plain.seconds(images)
            if isinstance(told, BurstExceeded):
                assert told.max_images == self.plain.burst
            if isinstance(told, InProgress):
                assert told.retry_after == (self.plain.requests[name].deadline - self.plain.now) / MICROSECONDS
            return
        assert told.kind == expected
        kept = told.charge if name is None else name
        if told.kind == "charged":
            self.plain.charge(kept, told.charge, model, images, digest, repeatable=name is not None)
        request = self.plain.resume(kept) if told.kind == "resumed" else self.plain.requests[kept]
        assert (told.charge, told.cost, told.answer) == (request.charge, request.images, request.answer)
        assert told.kept == (told.kind == "charged" and name is not None and at_hand != b"")
        if told.kept:
            self.plain.settle(kept, at_hand)
        assert told.limits == self.plain.limits()
        if lost:
            return
        if told.kind == "replayed" or told.kept:
            self.delivered[told.charge] = told.cost
        self.known.append((kept, told))

    @rule(
        name=st.none() | st.sampled_from(NAMES),
        model=st.sampled_from(["a", "a", *MODELS]),
        images=st.sampled_from([1, 2, 3, 5, 8, 31]),
        digest=st.sampled_from(["d", "d", "d", "e"]),
        lost=st.sampled_from([False, False, True]),
        at_hand=st.sampled_from([b"", b"answer"]),
    )
    def send(self, name: str | None, model: str, images: int, digest: str, lost: bool, at_hand: bytes) -> None:
        told = self.run(self.ask(name, model, images, digest, at_hand))
        self.follow(told, name, model, images, digest, lost=lost, at_hand=at_hand)

    @precondition(lambda self: self.plain.requests)
    @rule(data=st.data(), lost=st.sampled_from([False, False, True]), at_hand=st.sampled_from([b"", b"answer"]))
    def send_again(self, data: st.DataObject, lost: bool, at_hand: bytes) -> None:
        names = [name for name, request in self.plain.requests.items() if request.repeatable]
        if names:
            name = data.draw(st.sampled_from(names))
            request = self.plain.requests[name]
            self.send(name, request.model, request.images, request.digest, lost, at_hand)

    @rule(count=st.integers(2, 16), images=st.integers(1, 8), same=st.booleans())
    def crowd(self, count: int, images: int, same: bool) -> None:
        """Many at once: the server puts them in some order, and every order must give the same count of each outcome."""
        name = f"crowd{next(self.serial)}" if same else None

        async def at_once() -> list[Admission | Refused]:
            return await asyncio.gather(*(self.ask(name, "a", images, "d") for _ in range(count)))

        told = self.run(at_once())
        granted = [one for one in told if isinstance(one, Admission)]
        granted.sort(key=lambda one: -(one.limits.budget_left or 0))
        refused = [one for one in told if isinstance(one, Refused)]
        if self.plain.rate is not None:
            granted.sort(key=lambda one: -one.limits.images.left)
        if self.plain.request_rate is not None:
            granted.sort(key=lambda one: -one.limits.requests.left)
        if self.plain.concurrency is not None:
            granted.sort(key=lambda one: -one.limits.concurrency_left)
        for one in [*granted, *refused]:
            self.follow(one, name, "a", images, "d")

    @precondition(lambda self: self.known)
    @rule(data=st.data(), answer=st.sampled_from([b"answer", TOO_LARGE]))
    def settle(self, data: st.DataObject, answer: bytes) -> None:
        name, admission = data.draw(st.sampled_from(self.known[-6:]))
        if admission.kind == "replayed" or admission.kept:
            self.run(self.gate.settle(admission, answer))
        elif self.plain.current(name, admission) is None:
            with pytest.raises(TakenOver):
                self.run(self.gate.settle(admission, answer))
        else:
            self.run(self.gate.settle(admission, answer))
            self.plain.settle(name, answer)
            self.delivered[admission.charge] = admission.cost

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        name, admission = data.draw(st.sampled_from(self.known[-6:]))
        self.run(self.gate.refund(admission))
        if admission.kind != "replayed" and self.plain.current(name, admission):
            self.plain.refund(name)

    @rule(microseconds=st.sampled_from([1, 125_000, 10**6, 65 * 10**6 - 1, 65 * 10**6, 135 * 10**6]))
    def wait(self, microseconds: int) -> None:
        self.plain.wait(microseconds)
        self.run(self.redis.set(CLOCK, self.plain.now))

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "plain"):
            return
        usage = self.run(self.keyring.usage(self.key))
        assert usage.spent == self.plain.spent() >= sum(self.delivered.values())
        assert usage.left == self.plain.left()
        assert usage.left is None or usage.left >= 0
        used = {model: images for model, images in usage.per_model.items() if images}
        assert used == {model: self.plain.spent(model) for model in MODELS if self.plain.spent(model)}
        # the order within a crowd is the server's, so entries are compared as a collection
        entries = self.run(self.gate.audit(self.key, limit=10**6))
        told = Counter((entry.kind, entry.charge, entry.model, entry.images) for entry in entries)
        assert told == Counter(self.plain.ledger)
        assert sum(entry.images if entry.kind == "charge" else -entry.images for entry in entries) == usage.spent


@pytest.mark.redis
@pytest.mark.timeout(400)  # a failure is first made small, for up to 300 s
def test_the_gate_agrees_with_a_plain_model(redis_url: str) -> None:
    loop = asyncio.new_event_loop()
    Machine.loop, Machine.redis = loop, connect(redis_url)
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        loop.run_until_complete(Machine.redis.aclose())
        loop.close()
