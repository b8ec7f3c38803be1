"""The whole money protocol, simulated: two workers, an API behind the gate, and crashes between any two steps.

Leases, ledger and gate are the real scripts; time is the tests'. Worker and zoo are generators that stop before each step that
can be seen from outside, and hypothesis picks who goes on, who dies, which answer is lost on its way, and how time passes.
"""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
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
from metering import keyring
from metering.gate import Gate
from metering.keyring import Keyring
from metering.leases import LeaseLost, Leases
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
from metering.refusals import Refused
from metering.scripts import Scripts, connect

KEYS = LedgerKeys(**{part: f"test:{part}" for part in LedgerKeys.__dataclass_fields__})
CLOCK, API, JOB, CHUNK = "test:clock", "a0", "job", 4
Steps = Generator[None, None, None]


class Request:
    """One request at the zoo. `answer` once it has left; `over` once nothing will come of it any more."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.answer: bytes | None = None
        self.over = False
        self.steps: Steps | None = None


class Machine(RuleBasedStateMachine):
    """`skip_settles`: the seeded defect of the control."""

    loop: asyncio.AbstractEventLoop
    redis: Redis
    skip_settles = False

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(limit=st.integers(5, 30), planned=st.integers(5, 30))
    def start(self, limit: int, planned: int) -> None:
        self.run(self.redis.flushdb())
        self.run(self.redis.set(CLOCK, 10**15))
        self.run(self.redis.hset(KEYS.record, "status", "running"))
        self.run(self.redis.hset(KEYS.budget, mapping=budget_fields(limit, None)))
        scripts = Scripts(self.redis, clock_key=CLOCK)
        self.leases = Leases(scripts, attempts=10**6)
        self.ledger = Ledger(self.redis, scripts, KEYS)
        self.gate = Gate(self.redis, scripts)
        self.key = self.run(Keyring(self.redis, scripts).create(KeyRequest())).id
        self.limit, self.planned = limit, planned
        self.cancelled = False
        self.workers: list[Steps] = []
        self.requests: list[Request] = []
        self.stored: dict[str, bytes] = {}  # the artefact store

    def work(self) -> Steps:
        """A worker, as `worker.remote` does it."""
        lease = self.run(self.leases.take(KEYS.leases, API, "worker"))
        if lease is None:
            return
        try:
            yield
            position = number = 0
            for done in self.run(self.ledger.settled(API)):
                number = max(number, done.chunk.number + 1)
                if done.outcome is not Outcome.RELEASED:
                    position = max(position, done.chunk.stop)
            for hold in self.run(self.ledger.open_holds(API)):
                number, position = max(number, hold.chunk.number + 1), max(position, hold.chunk.stop)
                yield from self.send(lease, hold.chunk)
            size = CHUNK
            while position < self.planned:
                chunk = Chunk(API, number, position, min(position + size, self.planned), "0" * 64)
                yield
                try:
                    self.run(self.ledger.reserve(lease, chunk))
                except BudgetSpent as spent:
                    if spent.left < 1:
                        return
                    size = spent.left
                    continue
                number, position = number + 1, chunk.stop
                yield
                yield from self.send(lease, chunk)
            yield
            self.run(self.leases.release(lease))
        except (LeaseLost, JobClosed):
            return

    def send(self, lease: Any, chunk: Chunk) -> Steps:
        while True:
            request = Request(chunk)
            request.steps = self.answering(request)
            self.requests.append(request)
            while request.answer is None and not request.over:
                yield
            if request.answer is not None:
                break
        yield
        self.stored[chunk.id] = request.answer
        yield
        if self.skip_settles and chunk.number == 1:
            return
        try:
            self.run(self.ledger.settle(lease, chunk, Outcome.CONFIRMED, path=chunk.id))
        except AlreadySettled:
            return

    def answering(self, request: Request) -> Steps:
        """The zoo, as `api_zoo.answering` does it."""
        chunk = request.chunk
        name = chunk.key(JOB)
        yield
        try:
            admission = self.run(
                self.gate.admit(self.key, model="m", images=chunk.images, idempotency_key=name, digest=chunk.digest)
            )
            answer = admission.answer or f"answer to {chunk.id}".encode()
            yield
            self.run(self.gate.settle(admission, answer))
        except Refused:
            request.over = True
            return
        yield
        request.answer = answer

    def advance(self, steps: Steps) -> bool:
        return next(steps, "over") != "over"

    @precondition(lambda self: len(self.workers) < 2)
    @rule()
    def begin(self) -> None:
        self.workers.append(self.work())

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), times=st.integers(1, 6))
    def go_on(self, data: st.DataObject, times: int) -> None:
        worker = data.draw(st.sampled_from(range(len(self.workers))))
        for _ in range(times):
            if not self.advance(self.workers[worker]):
                del self.workers[worker]
                return

    @precondition(lambda self: self.open_requests())
    @rule(data=st.data(), times=st.integers(1, 4))
    def serve(self, data: st.DataObject, times: int) -> None:
        request = data.draw(st.sampled_from(self.open_requests()))
        for _ in range(times):
            if not self.advance(request.steps):
                return

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def kill_a_worker(self, data: st.DataObject) -> None:
        del self.workers[data.draw(st.sampled_from(range(len(self.workers))))]

    @precondition(lambda self: self.open_requests())
    @rule(data=st.data())
    def kill_the_zoo_or_lose_its_answer(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.open_requests())).over = True

    @rule(seconds=st.sampled_from([1.0, 20.0, 46.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.run(self.redis.incrby(CLOCK, round(seconds * 1e6)))

    @precondition(lambda self: not self.cancelled)
    @rule(really=st.integers(0, 9))
    def cancel(self, really: int) -> None:
        if really == 0:
            self.cancelled = True
            self.run(self.redis.hset(KEYS.record, "status", "cancelling"))

    def open_requests(self) -> list[Request]:
        return [request for request in self.requests if request.answer is None and not request.over]

    def charged(self) -> int:
        entries = self.run(self.gate.audit(self.key))
        return sum(entry.images if entry.kind == "charge" else -entry.images for entry in entries)

    async def marked(self, chunks: list[Chunk]) -> list[int]:
        """Whether the zoo remembers the request of each chunk."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for chunk in chunks:
                pipe.exists(keyring.mark(self.key, chunk.key(JOB)))
            return list(await pipe.execute())

    @invariant()
    def the_zoo_counts_no_more_than_is_held(self) -> None:
        if not hasattr(self, "ledger"):
            return
        told, charged = self.run(self.ledger.state()), self.charged()
        assert charged <= told.confirmed + told.unconfirmed + told.reserved <= self.limit
        done = [one.chunk for one in self.run(self.ledger.settled())]
        chunks = [*done, *(hold.chunk for hold in self.run(self.ledger.open_holds()))]
        marked = self.run(self.marked(chunks))
        assert charged == sum(chunk.images for chunk, there in zip(chunks, marked, strict=True) if there)  # each once
        images = [image for chunk in chunks for image in range(chunk.start, chunk.stop)]
        assert len(images) == len(set(images))

    def teardown(self) -> None:
        """Whatever happened: when nothing breaks any more, the books balance."""
        if not hasattr(self, "ledger"):
            return
        self.workers.clear()
        self.requests.clear()
        self.wait(70.0)
        if not self.cancelled:
            worker = self.work()
            while self.advance(worker):
                for request in self.open_requests():
                    self.advance(request.steps)
        else:
            assert self.run(self.ledger.abandon()) is not None
        told = self.run(self.ledger.state())
        assert told.reserved == 0
        if not self.cancelled:
            assert told.confirmed == self.charged() == min(self.limit, self.planned)
        settled = self.run(self.ledger.settled())
        answered = {one.chunk.id for one in settled if one.outcome is Outcome.CONFIRMED}
        assert all(self.stored[chunk] == f"answer to {chunk}".encode() for chunk in answered)
        assert self.charged() <= told.confirmed + told.unconfirmed


def explore(machine: type[Machine], redis_url: str, examples: int) -> None:
    """Run so many random stories."""
    loop = asyncio.new_event_loop()
    machine.loop, machine.redis = loop, connect(redis_url)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                phases=[Phase.generate],  # a story that failed is short enough as it is
            ),
        )
    finally:
        loop.run_until_complete(machine.redis.aclose())
        loop.close()


@pytest.mark.redis
def test_no_interleaving_of_crashes_loses_an_answer_or_pays_twice(redis_url: str) -> None:
    explore(Machine, redis_url, 40)


@pytest.mark.redis
def test_the_simulation_finds_a_settle_that_is_skipped(redis_url: str) -> None:
    class Defective(Machine):
        skip_settles = True

    with pytest.raises(AssertionError):
        explore(Defective, redis_url, 20)
