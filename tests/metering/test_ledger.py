"""The ledger and its leases against a plain model: they agree after each step, whatever the order of steps."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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

from contracts.money import micro
from metering.leases import SECONDS, Lease, LeaseLost, Leases
from metering.ledger import (
    AlreadySettled,
    BudgetSpent,
    Chunk,
    JobClosed,
    Ledger,
    LedgerKeys,
    Outcome,
    budget_fields,
)
from metering.scripts import Scripts, StoreUnavailable, connect, store_errors

PARTS = ("leases", "record", "budget", "holds", "settled", "events")
KEYS = LedgerKeys(**{part: f"test:{part}" for part in PARTS})
CLOCK = "test:clock"
APIS = ("a0", "a1", "a2")
PRICES = {"a0": 7, "a1": 12_345, "a2": 40_000}  # millionths per 1,000 images: most chunks are rounded up
WORKERS = ("w0", "w1", "w2")


@dataclass
class Plain:
    """The ledger as anyone would write it without thinking of crashes."""

    limit: int
    per_api: int | None
    cost: int | None = None
    seconds: int | None = None
    started: float = 0.0
    status: str = "running"
    holds: dict[str, Chunk] = field(default_factory=dict)
    settled: dict[str, tuple[Chunk, Outcome]] = field(default_factory=dict)

    def spent(self, *outcomes: Outcome, api: str | None = None) -> int:
        found = [chunk for chunk, outcome in self.settled.values() if outcome in outcomes]
        return sum(chunk.images for chunk in found if api in (None, chunk.api))

    def reserved(self, api: str | None = None) -> int:
        return sum(chunk.images for chunk in self.holds.values() if api in (None, chunk.api))

    def taken(self, api: str | None = None) -> int:
        return self.spent(Outcome.CONFIRMED, Outcome.UNCONFIRMED, api=api) + self.reserved(api)

    def money(self, chunks: Iterable[Chunk]) -> int:
        return sum(-(-chunk.images * PRICES[chunk.api] // 1000) for chunk in chunks)

    def ended(self, *outcomes: Outcome) -> list[Chunk]:
        return [chunk for chunk, outcome in self.settled.values() if outcome in outcomes]

    def left(self, api: str, now: float) -> int:
        left = self.limit - self.taken()
        if self.per_api is not None:
            left = min(left, self.per_api - self.taken(api))
        if self.cost is not None:
            spent = self.money([*self.holds.values(), *self.ended(Outcome.CONFIRMED, Outcome.UNCONFIRMED)])
            left = min(left, (self.cost - spent) * 1000 // PRICES[api])
        return 0 if self.seconds is not None and now - self.started >= self.seconds else left


class Machine(RuleBasedStateMachine):
    """Workers take, lose and give back leases of APIs, reserve and settle, some of them long after they lost the right to."""

    loop: asyncio.AbstractEventLoop
    redis: Redis

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    @initialize(
        limit=st.integers(1, 60),
        per_api=st.none() | st.integers(1, 30),
        cost=st.none() | st.integers(0, 900),
        seconds=st.none() | st.integers(1, 90),
    )
    def start(self, limit: int, per_api: int | None, cost: int | None, seconds: int | None) -> None:
        self.run(self.redis.flushdb())
        self.run(self.redis.set(CLOCK, 10**15))
        fields = budget_fields(limit, per_api, cost=cost, seconds=seconds, prices=PRICES, currency="EUR")
        self.run(self.redis.hset(KEYS.record, mapping={"status": "running", "started": 10**15}))  # type: ignore[arg-type]
        self.run(self.redis.hset(KEYS.budget, mapping=fields))  # type: ignore[arg-type]
        scripts = Scripts(self.redis, clock_key=CLOCK)
        self.leases = Leases(scripts, attempts=10**6)
        self.ledger = Ledger(self.redis, scripts, KEYS)
        self.plain = Plain(limit, per_api, cost, seconds)
        self.now = 0.0
        self.holders: dict[str, tuple[Lease, float]] = {}  # API -> the lease that stands, and its deadline
        self.known: list[Lease] = []  # every lease ever given, stale ones too
        self.numbers = dict.fromkeys(APIS, 0)

    def valid(self, lease: Lease) -> bool:
        return lease.role in self.holders and self.holders[lease.role][0] == lease

    @contextmanager
    def fenced(self, lease: Lease) -> Iterator[None]:
        """What is done under a stale lease must be refused."""
        if self.valid(lease):
            yield
        else:
            with pytest.raises(LeaseLost):
                yield

    @rule(api=st.sampled_from(APIS), worker=st.sampled_from(WORKERS))
    def take(self, api: str, worker: str) -> None:
        lease = self.run(self.leases.take(KEYS.leases, api, worker))
        held = api in self.holders and self.holders[api][1] > self.now
        assert (lease is None) == held
        if isinstance(lease, Lease):
            assert all(lease.fence > old.fence for old in self.known if old.role == api)
            self.holders[api] = (lease, self.now + SECONDS)
            self.known.append(lease)

    @rule(seconds=st.sampled_from([1.0, 20.0, 46.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.run(self.redis.incrby(CLOCK, round(seconds * 1e6)))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.known))
        with self.fenced(lease):
            self.run(self.leases.renew(lease))
            self.holders[lease.role] = (lease, self.now + SECONDS)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), orderly=st.booleans())
    def release(self, data: st.DataObject, orderly: bool) -> None:
        lease = data.draw(st.sampled_from(self.known))
        assert self.run(self.leases.release(lease, orderly=orderly)) == self.valid(lease)
        if self.valid(lease):
            del self.holders[lease.role]

    @precondition(lambda self: self.known)
    @rule(data=st.data(), images=st.integers(1, 20))
    def reserve(self, data: st.DataObject, images: int) -> None:
        lease = data.draw(st.sampled_from(self.known))
        number = self.numbers[lease.role]
        chunk = Chunk(api=lease.role, number=number, start=0, stop=images, digest="0" * 64)
        with self.fenced(lease):
            left = self.plain.left(chunk.api, self.now)
            if self.plain.status != "running":
                with pytest.raises(JobClosed):
                    self.run(self.ledger.reserve(lease, chunk))
            elif images > left:
                with pytest.raises(BudgetSpent) as spent:
                    self.run(self.ledger.reserve(lease, chunk))
                assert spent.value.left == left
            else:
                self.run(self.ledger.reserve(lease, chunk))
                self.plain.holds[chunk.id] = chunk
                self.numbers[lease.role] += 1

    @precondition(lambda self: self.known and self.plain.holds)
    @rule(data=st.data())
    def reserve_again(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(list(self.plain.holds.values())))
        lease = data.draw(st.sampled_from([lease for lease in self.known if lease.role == chunk.api]))
        with self.fenced(lease):
            self.run(self.ledger.reserve(lease, chunk))

    @precondition(lambda self: self.plain.holds)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        chunk = data.draw(st.sampled_from(list(self.plain.holds.values())))
        lease = data.draw(st.sampled_from([lease for lease in self.known if lease.role == chunk.api]))
        with self.fenced(lease):
            self.run(self.ledger.settle(lease, chunk, outcome, path="p"))
            del self.plain.holds[chunk.id]
            self.plain.settled[chunk.id] = (chunk, outcome)

    @precondition(lambda self: self.plain.settled)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def settle_again(self, data: st.DataObject, outcome: Outcome) -> None:
        chunk, _ = data.draw(st.sampled_from(list(self.plain.settled.values())))
        lease = data.draw(st.sampled_from([lease for lease in self.known if lease.role == chunk.api]))
        with self.fenced(lease):
            with pytest.raises(AlreadySettled):
                self.run(self.ledger.settle(lease, chunk, outcome))
            with pytest.raises(AlreadySettled):
                self.run(self.ledger.reserve(lease, chunk))

    @rule()
    def cancel(self) -> None:
        self.plain.status = "cancelling"
        self.run(self.redis.hset(KEYS.record, "status", "cancelling"))  # type: ignore[arg-type]

    @rule()
    def abandon(self) -> None:
        answered = self.run(self.ledger.abandon())
        at_work = any(deadline > self.now for _, deadline in self.holders.values())
        if self.plain.status == "running" or at_work:
            assert answered is None
        else:
            assert answered == self.plain.reserved()
            for chunk in self.plain.holds.values():
                self.plain.settled[chunk.id] = (chunk, Outcome.UNCONFIRMED)
            self.plain.holds.clear()

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "plain"):
            return
        told = self.run(self.ledger.state())
        plain = self.plain
        assert told.limit == plain.limit  # type: ignore[attr-defined]
        assert told.left == plain.limit - plain.taken() >= 0  # type: ignore[attr-defined]
        for api, spend in [(None, told), *told.per_api.items()]:  # type: ignore[attr-defined]
            assert spend.confirmed == plain.spent(Outcome.CONFIRMED, api=api)
            assert spend.unconfirmed == plain.spent(Outcome.UNCONFIRMED, api=api)
            assert spend.reserved == plain.reserved(api)
            assert plain.per_api is None or api is None or plain.taken(api) <= plain.per_api
        cost = told.cost  # type: ignore[attr-defined]
        confirmed, unconfirmed = plain.ended(Outcome.CONFIRMED), plain.ended(Outcome.UNCONFIRMED)
        for part, chunks in (
            ("confirmed", confirmed),
            ("unconfirmed", unconfirmed),
            ("reserved", plain.holds.values()),
        ):
            assert micro(getattr(cost, part)) == plain.money(chunks)
        if plain.cost is not None:
            assert micro(cost.left) == plain.cost - plain.money([*confirmed, *unconfirmed, *plain.holds.values()]) >= 0
        holds = self.run(self.ledger.open_holds())
        assert {hold.chunk.id: hold.chunk for hold in holds} == plain.holds  # type: ignore[attr-defined]
        settled = self.run(self.ledger.settled())
        assert {one.chunk.id: (one.chunk, one.outcome) for one in settled} == plain.settled  # type: ignore[attr-defined]


@pytest.mark.redis
def test_the_ledger_agrees_with_a_plain_model(redis_url: str) -> None:
    loop = asyncio.new_event_loop()
    Machine.loop, Machine.redis = loop, connect(redis_url)
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=60,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(Machine.redis.aclose())
        loop.close()


@pytest.mark.redis
@pytest.mark.anyio
async def test_concurrent_workers_never_hold_more_than_the_budget(redis_url: str) -> None:
    redis = connect(redis_url)
    scripts = Scripts(redis)
    ledger, leases = Ledger(redis, scripts, KEYS), Leases(scripts)
    await redis.hset(KEYS.record, "status", "running")  # type: ignore[misc]
    await redis.hset(KEYS.budget, mapping=budget_fields(100, 40))  # type: ignore[misc]
    granted = dict.fromkeys(APIS, 0)

    async def work(api: str) -> None:
        lease = await leases.take(KEYS.leases, api, "w")
        assert lease is not None

        async def one(number: int) -> None:
            chunk = Chunk(api=api, number=number, start=0, stop=7, digest="0" * 64)
            try:
                await ledger.reserve(lease, chunk)
            except BudgetSpent:
                return
            await ledger.settle(lease, chunk, Outcome.CONFIRMED, path="p")
            granted[api] += chunk.images

        await asyncio.gather(*(one(number) for number in range(10)))

    await asyncio.gather(*map(work, APIS))
    state = await ledger.state()
    assert sum(granted.values()) == state.confirmed == 98
    assert max(granted.values()) <= 35
    await redis.aclose()


def test_a_chunk_is_sent_under_the_same_key_each_time_and_no_other_chunk_is() -> None:
    chunk = Chunk(api="a0", number=1, start=0, stop=10, digest="d")
    others = [
        Chunk(api="a1", number=1, start=0, stop=10, digest="d"),
        Chunk(api="a0", number=2, start=0, stop=10, digest="d"),
        Chunk(api="a0", number=1, start=0, stop=10, digest="e"),
    ]
    assert chunk.key("j") == Chunk(**{name: getattr(chunk, name) for name in Chunk.__dataclass_fields__}).key("j")
    assert len({chunk.key("j"), chunk.key("k"), *(other.key("j") for other in others)}) == 5


def test_a_connection_that_uvloop_found_closed_is_a_store_that_is_away() -> None:
    with pytest.raises(StoreUnavailable), store_errors():
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
    with pytest.raises(RuntimeError), store_errors():
        raise RuntimeError("a fault of ours")
