"""The gate against a plain model: they agree after each step, and no budget is exceeded by one image."""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
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
from metering.gate import (
    LARGEST_ANSWER,
    Admission,
    BudgetSpent,
    BurstExceeded,
    Gate,
    InProgress,
    KeyExpired,
    KeyReused,
    KeyRevoked,
    Limits,
    ModelForbidden,
    Rate,
    RateExceeded,
    Refused,
    TakenOver,
    TooMany,
)
from metering.keyring import Keyring
from metering.scripts import MICROSECONDS, Scripts, StoreUnavailable, connect

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

    async def ask(self, name: str | None, model: str, images: int, digest: str) -> Admission | Refused:
        try:
            return await self.gate.admit(self.key, model=model, images=images, idempotency_key=name, digest=digest)
        except Refused as refused:
            return refused

    def follow(
        self, told: Admission | Refused, name: str | None, model: str, images: int, digest: str, *, lost: bool = False
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
        assert told.limits == self.plain.limits()
        if lost:
            return
        if told.kind == "replayed":
            self.delivered[told.charge] = told.cost
        self.known.append((kept, told))

    @rule(
        name=st.none() | st.sampled_from(NAMES),
        model=st.sampled_from(["a", "a", *MODELS]),
        images=st.sampled_from([1, 2, 3, 5, 8, 31]),
        digest=st.sampled_from(["d", "d", "d", "e"]),
        lost=st.sampled_from([False, False, True]),
    )
    def send(self, name: str | None, model: str, images: int, digest: str, lost: bool) -> None:
        told = self.run(self.ask(name, model, images, digest))
        self.follow(told, name, model, images, digest, lost=lost)

    @precondition(lambda self: self.plain.requests)
    @rule(data=st.data(), lost=st.sampled_from([False, False, True]))
    def send_again(self, data: st.DataObject, lost: bool) -> None:
        names = [name for name, request in self.plain.requests.items() if request.repeatable]
        if names:
            name = data.draw(st.sampled_from(names))
            request = self.plain.requests[name]
            self.send(name, request.model, request.images, request.digest, lost)

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
        if admission.kind == "replayed":
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


@dataclass
class Bench:
    """A gate over a clock that the test moves."""

    redis: Redis
    keyring: Keyring
    gate: Gate
    now: int = START

    async def wait(self, seconds: float) -> None:
        self.now += round(seconds * MICROSECONDS)
        await self.redis.set(CLOCK, self.now)

    async def key(self, **wanted) -> str:
        return (await self.keyring.create(KeyRequest(**wanted))).id

    async def ask(self, key: str, images: int = 10, name: str | None = None, model: str = "a", digest: str = "d"):
        return await self.gate.admit(key, model=model, images=images, idempotency_key=name, digest=digest)


@pytest.fixture
async def bench(redis_url: str, anyio_backend: str):
    redis = connect(redis_url)
    scripts = Scripts(redis, clock_key=CLOCK)
    made = Bench(redis, Keyring(redis, scripts), Gate(redis, scripts))
    await made.wait(0)
    yield made
    await redis.aclose()


@pytest.mark.redis
@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(4))
async def test_16_callers_that_die_repeat_and_give_up_spend_one_budget_exactly(bench: Bench, seed: int) -> None:
    key = await bench.key(budget=1000)
    chance = random.Random(seed)
    # callers share requests: each is known to four of them
    requests = [(f"r{number}", chance.randint(1, 9)) for number in range(400)]
    delivered: dict[str, int] = {}
    at_work = True

    async def try_one(name: str, images: int, fate: float) -> None:
        admission = await bench.ask(key, images, name)
        if admission.kind != "replayed":
            if fate < 0.2:
                return  # it died: no outcome
            if fate < 0.35:
                return await bench.gate.refund(admission)
            await bench.gate.settle(admission, TOO_LARGE if fate > 0.95 else b"answer")
        delivered[admission.charge] = admission.cost

    async def caller(number: int) -> None:
        mine = requests[number % 4 :: 4]
        chance = random.Random(1000 * seed + number)
        for name, images in chance.sample(mine, len(mine)):
            with suppress(InProgress, BudgetSpent, TimeoutError):
                # some are cancelled in the middle of a command, whose outcome they never learn
                async with asyncio.timeout(chance.choice([0.002, 5.0, 5.0])):
                    await try_one(name, images, chance.random())

    async def watch() -> None:
        while at_work:
            counted = sum(delivered.values())
            assert counted <= (await bench.keyring.usage(key)).spent <= 1000
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*map(caller, range(16)))
    at_work = False
    await watching

    assert sum(delivered.values()) <= (await bench.keyring.usage(key)).spent
    await bench.wait(66)
    for name, images in requests:  # each client tries its open keys once more
        with suppress(BudgetSpent):
            await try_one(name, images, 0.5)
    spent = (await bench.keyring.usage(key)).spent
    entries = await bench.gate.audit(key, limit=10**6)
    assert sum(delivered.values()) == spent <= 1000
    assert spent > 990  # nine images or fewer fit no more
    assert sum(entry.images if entry.kind == "charge" else -entry.images for entry in entries) == spent
    assert max(Counter((entry.kind, entry.charge) for entry in entries).values()) == 1


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_budget_is_granted_to_the_last_image_by_16_callers_at_once(bench: Bench) -> None:
    key = await bench.key(budget=500)

    async def caller() -> int:
        for granted in itertools.count():
            try:
                await bench.ask(key, 1)
            except BudgetSpent:
                return granted
        raise AssertionError("unreachable")

    assert sum(await asyncio.gather(*(caller() for _ in range(16)))) == 500


@pytest.mark.redis
@pytest.mark.anyio
async def test_an_expired_key_gets_nothing_and_no_replay(bench: Bench) -> None:
    key = await bench.key(expires_at=datetime.fromtimestamp((START + 5 * MICROSECONDS) / MICROSECONDS, UTC))
    await bench.wait(4.999)
    await bench.gate.settle(await bench.ask(key, name="k"), b"answer")
    await bench.wait(0.001)
    for name in ("k", None):
        with pytest.raises(KeyExpired):
            await bench.ask(key, name=name)
    assert (await bench.keyring.usage(key)).spent == 10


@pytest.mark.redis
@pytest.mark.anyio
async def test_top_ups_and_charges_at_once_lose_nothing(bench: Bench) -> None:
    key = await bench.key(budget=100)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(bench.keyring.top_up(key, 7))
            tasks.create_task(bench.ask(key))
    used = await bench.keyring.usage(key)
    assert (used.budget, used.spent) == (170, 100)


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_revoked_or_unknown_key_gets_nothing_and_no_replay(bench: Bench) -> None:
    key = await bench.key()
    await bench.gate.settle(await bench.ask(key, name="k"), b"answer")
    await bench.keyring.revoke(key)
    for name in ("k", None):
        with pytest.raises(KeyRevoked):
            await bench.ask(key, name=name)
    with pytest.raises(KeyRevoked):
        await bench.ask("nobody")
    assert (await bench.keyring.usage(key)).spent == 10


@pytest.mark.redis
@pytest.mark.anyio
async def test_the_same_key_is_replayed_for_a_day_and_charged_after_it(bench: Bench) -> None:
    key = await bench.key(budget=10)
    first = await bench.ask(key, name="k")
    await bench.gate.settle(first, b"answer")
    await bench.wait(24 * 3600 - 1)
    again = await bench.ask(key, name="k")
    assert (again.kind, again.charge, again.cost, again.answer) == ("replayed", first.charge, 10, b"answer")
    with pytest.raises(KeyReused):
        await bench.ask(key, name="k", digest="e")
    with pytest.raises(KeyReused):
        await bench.ask(key, name="k", model="b")
    await bench.wait(1)
    with pytest.raises(BudgetSpent):
        await bench.ask(key, name="k")


@pytest.mark.redis
@pytest.mark.anyio
async def test_no_answer_outlives_its_window(bench: Bench) -> None:
    key = await bench.key()
    await bench.gate.settle(await bench.ask(key, name="k"), b"old")
    await bench.wait(24 * 3600)
    paid = await bench.ask(key, name="k")
    assert paid.kind == "charged"
    await bench.wait(65)  # it died: what was answered for the charge before must not be taken for its answer
    again = await bench.ask(key, name="k")
    assert (again.kind, again.charge) == ("resumed", paid.charge)
    await bench.gate.refund(again)
    assert (await bench.keyring.usage(key)).spent == 10


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_request_without_a_key_leaves_nothing_but_its_charge(bench: Bench) -> None:
    key = await bench.key()
    before = set(await bench.redis.keys())
    await bench.gate.settle(await bench.ask(key), b"answer")
    assert set(await bench.redis.keys()) - before == {
        f"mz:zoo:{{{key}}}:{kept}".encode() for kept in ("audit", "usage")
    }


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_request_without_a_key_ends_without_asking_redis(bench: Bench) -> None:
    key = await bench.key()
    admission = await bench.ask(key)
    said = (await bench.redis.info("stats"))["total_commands_processed"]
    await bench.gate.settle(admission, b"answer")
    assert (await bench.redis.info("stats"))["total_commands_processed"] == said + 1  # the question itself
    await bench.gate.refund(admission)  # it was answered: nothing is given back
    assert (await bench.keyring.usage(key)).spent == 10


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_refund_whose_outcome_was_lost_is_made_once(bench: Bench) -> None:
    key = await bench.key(concurrency=2)
    admission = await bench.ask(key)
    lost = replace(admission)
    await bench.gate.refund(lost)
    await bench.gate.refund(admission)  # as after a `StoreUnavailable`
    assert (await bench.keyring.usage(key)).spent == 0
    assert (await bench.ask(key)).limits.concurrency_left == 1


@pytest.mark.redis
@pytest.mark.anyio
async def test_the_slot_of_a_request_without_a_key_is_free_before_its_answer_leaves(bench: Bench) -> None:
    key = await bench.key(concurrency=1)
    for _ in range(3):
        await bench.gate.settle(await bench.ask(key), b"answer")


@pytest.mark.redis
@pytest.mark.anyio
async def test_who_is_overtaken_can_neither_answer_nor_refund(bench: Bench) -> None:
    key = await bench.key()
    slow = await bench.ask(key, name="k")
    with pytest.raises(InProgress) as running:
        await bench.ask(key, name="k")
    assert running.value.retry_after == 65
    await bench.wait(65)
    quick = await bench.ask(key, name="k")
    assert (quick.kind, quick.charge, quick.cost) == ("resumed", slow.charge, 10)
    await bench.gate.refund(slow)
    with pytest.raises(TakenOver):
        await bench.gate.settle(slow, b"late")
    await bench.gate.settle(quick, b"answer")
    assert (await bench.ask(key, name="k")).answer == b"answer"
    assert (await bench.keyring.usage(key)).spent == 10


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_late_answer_that_nobody_overtook_stands(bench: Bench) -> None:
    key = await bench.key()
    slow = await bench.ask(key, name="k")
    await bench.wait(1000)
    await bench.gate.settle(slow, b"late")
    assert (await bench.ask(key, name="k")).answer == b"late"


@pytest.mark.redis
@pytest.mark.anyio
async def test_an_answer_too_large_to_keep_is_computed_again_unpaid_and_stays_charged(bench: Bench) -> None:
    key = await bench.key(budget=10)
    await bench.gate.settle(await bench.ask(key, name="k"), TOO_LARGE)
    again = await bench.ask(key, name="k")
    assert again.kind == "resumed"
    await bench.gate.refund(again)  # what was delivered before is not given back
    assert (await bench.keyring.usage(key)).spent == 10
    assert (await bench.ask(key, name="k")).kind == "resumed"


@pytest.mark.redis
@pytest.mark.anyio
@pytest.mark.parametrize("name", [None, "k"])
async def test_a_refund_counts_once_and_frees_the_key(bench: Bench, name: str | None) -> None:
    key = await bench.key(budget=10)
    admission = await bench.ask(key, name=name)
    await bench.gate.refund(admission)
    await bench.gate.refund(admission)
    assert (await bench.keyring.usage(key)).spent == 0
    assert (await bench.ask(key, name=name, digest="e")).kind == "charged"


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_refusal_tells_when_and_writes_nothing(bench: Bench) -> None:
    key = await bench.key(images_per_second=10, burst=20, budget=100)
    await bench.ask(key, 20)
    written = {name: await bench.redis.dump(name) for name in await bench.redis.keys()}
    with pytest.raises(RateExceeded) as fast:
        await bench.ask(key, 5, "k")
    with pytest.raises(BurstExceeded):
        await bench.ask(key, 21, "k")
    assert {name: await bench.redis.dump(name) for name in await bench.redis.keys()} == written
    await bench.wait(fast.value.retry_after - 1e-6)
    with pytest.raises(RateExceeded):
        await bench.ask(key, 5, "k")
    await bench.wait(1e-6)
    assert (await bench.ask(key, 5, "k")).limits.images.left == 0


@pytest.mark.redis
@pytest.mark.anyio
async def test_no_images_are_no_request(bench: Bench) -> None:
    with pytest.raises(ValueError, match="one at least"):
        await bench.ask(await bench.key(), 0)


@pytest.mark.redis
@pytest.mark.anyio
async def test_audit_pages_follow_each_other(bench: Bench) -> None:
    key = await bench.key()
    for images in (1, 2, 3):
        await bench.ask(key, images)
    first = await bench.gate.audit(key, limit=2)
    rest = await bench.gate.audit(key, after=first[-1].id)
    assert [entry.images for entry in [*first, *rest]] == [1, 2, 3]
    assert first[0].time.timestamp() == START / MICROSECONDS


@pytest.mark.anyio
async def test_without_redis_nothing_is_granted(unused_redis: Redis) -> None:
    gate = Gate(unused_redis, Scripts(unused_redis))
    with pytest.raises(StoreUnavailable):
        await gate.admit("key", model="a", images=1, idempotency_key=None, digest="d")


@pytest.mark.redis
@pytest.mark.anyio
async def test_what_is_said_to_be_left_is_granted(bench: Bench) -> None:
    key = await bench.key(images_per_second=7, burst=6)  # an interval that no float holds
    left = (await bench.ask(key, 2)).limits.images.left
    assert left == 4
    assert (await bench.ask(key, left)).limits.images.left == 0


@pytest.mark.redis
@pytest.mark.anyio
async def test_no_more_than_the_burst_is_said_to_be_left_at_any_rate(bench: Bench) -> None:
    key = await bench.key(images_per_second=1e9, burst=100)  # many images in the half microsecond of rounding
    assert 0 <= (await bench.ask(key, 1)).limits.images.left <= 100


@pytest.mark.redis
@pytest.mark.anyio
async def test_a_clock_that_is_set_back_locks_a_key_for_a_burst_at_most(bench: Bench) -> None:
    key = await bench.key(images_per_second=10, burst=20)
    await bench.ask(key, 1)
    await bench.wait(-3600)
    with pytest.raises(RateExceeded) as fast:
        await bench.ask(key, 20)
    assert fast.value.retry_after <= 2
    await bench.wait(fast.value.retry_after)
    await bench.ask(key, 20)
