"""What the learners can evaluate on, as they say themselves: so that a job whose data set nobody has spends nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis

from contracts.jobs import JobError
from contracts.meta_models import Evaluation
from meta_server.store import keys
from metering.scripts import store_errors

SECONDS = 45.0  # for which an announcement stands
ANNOUNCE_EVERY = 15.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one learner has. `classes`: data set -> split -> how many; `missing`: data set -> where it was looked for.

    `gpus`: how many it may use.
    """

    classes: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, str]
    gpus: int = 0

    def fault(self, evaluation: Evaluation) -> JobError | None:
        """Why this learner cannot do the evaluation; None when it can."""
        name, split = evaluation.dataset, evaluation.split
        if name not in self.classes:
            known = ", ".join(sorted([*self.classes, *self.missing]))
            message = self.missing.get(name, f"data set {name} is unknown: there are {known}")
            return JobError(code="dataset_missing", message=message, param="evaluation.dataset")
        there = self.classes[name].get(split, 0)
        if there < evaluation.ways:
            message = f"{evaluation.ways} ways were asked for, and {split} of {name} has {there} classes"
            return JobError(code="evaluation_unfit", message=message, param="evaluation.ways")
        return None


class Learners:
    """Announcements in Redis. They only inform; the learner that takes a job looks again."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # answers bytes; redis-py types it as bytes or text

    async def announce(self, learner: str, announcement: Announcement) -> None:
        """Say, for the next while, what a learner has. Raises `StoreUnavailable`."""
        with store_errors():
            until = (await self._redis.time())[0] + SECONDS
            await self._redis.hset(keys.LEARNERS, learner, json.dumps({"until": until, **asdict(announcement)}))

    async def withdraw(self, learner: str) -> None:
        """The learner is gone. Raises `StoreUnavailable`."""
        with store_errors():
            await self._redis.hdel(keys.LEARNERS, learner)

    async def announcements(self) -> Sequence[Announcement]:
        """What every learner heard of lately has; the others are forgotten. Raises `StoreUnavailable`."""
        with store_errors():
            now = (await self._redis.time())[0]
            told = {name: json.loads(value) for name, value in (await self._redis.hgetall(keys.LEARNERS)).items()}
            gone = [name for name, value in told.items() if value["until"] < now]
            if gone:
                await self._redis.hdel(keys.LEARNERS, *gone)
        return [
            Announcement(classes=value["classes"], missing=value["missing"], gpus=value.get("gpus", 0))
            for name, value in told.items()
            if name not in gone
        ]

    async def fault(self, evaluation: Evaluation) -> JobError | None:
        """Why no learner can do the evaluation; None when one can, or when none is known. Raises `StoreUnavailable`."""
        faults = [announcement.fault(evaluation) for announcement in await self.announcements()]
        return faults[0] if faults and None not in faults else None
