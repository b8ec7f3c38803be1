from typing import Any

import pytest
from redis.asyncio import Redis

from contracts.meta_models import Evaluation
from meta_server.store import keys
from meta_server.store.learners import Announcement, Learners

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

HAS = Announcement(classes={"glyphs": {"val": 30}, "cifar-fs": {"val": 16}}, missing={})
HAS_NOT = Announcement(classes={"glyphs": {"val": 30}}, missing={"cifar-fs": "Looked in: /data"})
CIFAR = Evaluation(dataset="cifar-fs")


async def test_one_learner_that_can_is_enough(redis: Redis) -> None:
    learners = Learners(redis)
    assert await learners.fault(CIFAR) is None  # nobody is known: nobody says no
    await learners.announce("one", HAS_NOT)
    fault = await learners.fault(CIFAR)
    assert fault is not None
    assert (fault.code, fault.message) == ("dataset_missing", "Looked in: /data")
    await learners.announce("two", HAS)
    assert await learners.fault(CIFAR) is None
    fault = HAS.fault(Evaluation(dataset="cifar-fs", ways=17))
    assert fault is not None
    assert (fault.code, fault.param) == ("evaluation_unfit", "evaluation.ways")


async def test_a_learner_not_heard_of_is_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    learners = Learners(redis)
    monkeypatch.setattr("meta_server.store.learners.SECONDS", -10.0)
    await learners.announce("one", HAS_NOT)
    assert await learners.announcements() == []
    left: Any = redis
    assert await left.hlen(keys.LEARNERS) == 0
