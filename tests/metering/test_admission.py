"""What the gate grants, refuses, replays and refunds, one case after the other, at times that the test sets."""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from contracts.zoo import KeyRequest
from metering.gate import LARGEST_ANSWER, Gate
from metering.keyring import Keyring
from metering.refusals import (
    BudgetSpent,
    BurstExceeded,
    InProgress,
    KeyExpired,
    KeyReused,
    KeyRevoked,
    RateExceeded,
    TakenOver,
)
from metering.scripts import MICROSECONDS, Scripts, StoreUnavailable, connect

CLOCK = "test:clock"
START = 10**15  # microseconds
TOO_LARGE = b"x" * (LARGEST_ANSWER + 1)


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
