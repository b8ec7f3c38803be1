"""Requests that are asked together are decided as if each had come alone."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.zoo import KeyRequest
from metering import turnstile
from metering.gate import Admission, Gate
from metering.keyring import Keyring
from metering.refusals import Refused
from metering.scripts import Scripts, StoreUnavailable, connect

pytestmark = [pytest.mark.redis, pytest.mark.anyio]

CLOCK = "test:clock"


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Redis]:
    redis = connect(redis_url)
    await redis.set(CLOCK, 10**15)
    yield redis
    await redis.aclose()


def requests(chance: random.Random) -> list[dict[str, Any]]:
    """Some share an idempotency key, some of those differ."""
    return [
        {
            "model": chance.choice(["a", "a", "b", "c"]),
            "images": chance.choice([1, 1, 2, 5, 40]),
            "idempotency_key": chance.choice([None, None, "k0", "k1", "k2"]),
            "digest": chance.choice(["d0", "d0", "d1"]),
            "at_hand": chance.choice([b"", b"answer"]),
        }
        for _ in range(chance.choice([2, 7, 150]))
    ]


def plain(outcome: object) -> tuple[object, ...]:
    """An outcome, without what names its key and its charge."""
    if isinstance(outcome, Admission):
        return (replace(outcome, charge="", key_id="", mark=""),)
    assert isinstance(outcome, Refused), outcome
    return type(outcome), *vars(outcome).values()


@pytest.mark.parametrize("seed", range(12))
async def test_together_as_one_after_the_other(redis: Redis, seed: int) -> None:
    chance = random.Random(seed)
    scripts = Scripts(redis, clock_key=CLOCK)
    keyring = Keyring(redis, scripts)
    limits = chance.choice(
        [
            {},
            {"budget": 30},
            {"images_per_second": 10.0, "burst": 20},
            {"requests_per_second": 5.0},
            {"concurrency": 3, "budget": 60},
            {"budget": 50, "images_per_second": 100.0, "burst": 45, "requests_per_second": 20.0, "concurrency": 9},
        ]
    )
    keys = [(await keyring.create(KeyRequest(models=["a", "b"], **limits))).id for _ in range(2)]
    gate = Gate(redis, scripts, lease_seconds=65, replay_seconds=200)
    ran: dict[str, int] = {"scripts": 0}
    run = scripts.run

    async def counted(name: str, **more: Any) -> Any:
        ran["scripts"] += name == "gate_admit"
        return await run(name, **more)

    scripts.run = counted  # type: ignore[method-assign]
    for _ in range(3):
        asked = requests(chance)
        before = ran["scripts"]
        together = await asyncio.gather(*(gate.admit(keys[0], **each) for each in asked), return_exceptions=True)
        assert ran["scripts"] - before == -(-len(asked) // turnstile.MOST)
        alone = []
        for each in asked:
            alone += await asyncio.gather(gate.admit(keys[1], **each), return_exceptions=True)
        assert list(map(plain, together)) == list(map(plain, alone))
        for outcome in (*together[::2], *alone[::2]):
            if isinstance(outcome, Admission):
                await gate.settle(outcome, b"answer")
        await redis.incrby(CLOCK, chance.choice([100_000, 3_000_000, 250_000_000]))
    one, other = [await keyring.usage(key) for key in keys]
    assert (one.spent, one.per_model, one.per_day) == (other.spent, other.per_model, other.per_day)
    one, other = [
        [(entry.kind, entry.images, entry.model) for entry in await gate.audit(key, limit=10**6)] for key in keys
    ]
    assert one == other


async def test_requests_of_several_keys_find_their_own(redis: Redis) -> None:
    scripts = Scripts(redis)
    keyring, gate = Keyring(redis, scripts), Gate(redis, scripts)
    keys = [(await keyring.create(KeyRequest(budget=number))).id for number in range(4)]
    asked = list(itertools.product(keys, range(5)))
    told = await asyncio.gather(
        *(gate.admit(key, model="m", images=1, idempotency_key=None, digest="") for key, _ in asked),
        return_exceptions=True,
    )
    granted = [key for (key, _), outcome in zip(asked, told, strict=True) if isinstance(outcome, Admission)]
    assert [granted.count(key) for key in keys] == [0, 1, 2, 3]
    charges = [outcome.charge for outcome in told if isinstance(outcome, Admission)]
    assert len(set(charges)) == len(charges)


async def test_a_caller_who_leaves_takes_nobody_along(redis: Redis) -> None:
    scripts = Scripts(redis)
    keyring, gate = Keyring(redis, scripts), Gate(redis, scripts)
    key = (await keyring.create(KeyRequest())).id
    tasks = [
        asyncio.create_task(gate.admit(key, model="m", images=1, idempotency_key=None, digest="")) for _ in range(9)
    ]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(outcome, Admission) for outcome in told] == [number % 3 > 0 for number in range(9)]
    assert (await keyring.usage(key)).spent == 6  # what they were charged was given back
    kinds = [entry.kind for entry in await gate.audit(key)]
    assert (kinds.count("charge"), kinds.count("refund")) == (9, 3)
    assert (await gate.admit(key, model="m", images=1, idempotency_key=None, digest="")).cost == 1


async def test_nobody_waits_for_a_redis_that_is_gone(unused_redis: Redis) -> None:
    gate = Gate(unused_redis, Scripts(unused_redis))
    for _ in range(2):
        told = await asyncio.gather(
            *(gate.admit(key, model="m", images=1, idempotency_key=None, digest="") for key in ("a", "a", "b")),
            return_exceptions=True,
        )
        assert all(isinstance(outcome, StoreUnavailable) for outcome in told)
