"""Whose turn it is: tenants first, then the jobs of each, by the names of the lanes that their messages wait in."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from meta_server.queue import ACQUIRE_QUEUE, ACQUIRE_QUEUES, GPU_QUEUES, LEARN_QUEUES, lane_of, learner_lane
from worker.broker import Turns


def served(waiting: Counter[str], queues: tuple[str, ...]) -> Iterator[str]:
    """The queues from which a worker takes messages, one after the other, as BRPOP does: from the first that has one."""
    turns, left = Turns(), Counter(waiting)
    shuffled = list(queues)
    random.Random(0).shuffle(shuffled)
    turns.update(shuffled)
    while left := +left:
        taken = next(queue for queue in turns.consume(len(queues)) if left[queue])
        assert turns.rotate(taken) == taken
        left[taken] -= 1
        yield taken


def test_a_tenant_of_one_job_has_as_many_turns_as_one_of_thirty() -> None:
    tenants = ("many", "one")
    assert len({lane_of("j", tenant) for tenant in tenants}) == 2  # no chance in it
    lanes = Counter({lane_of(f"job{number}", "many"): 100 for number in range(30)})
    lanes[lane_of("job", "one")] = 100
    turns = Counter(queue == lane_of("job", "one") for queue in islice(served(lanes, ACQUIRE_QUEUES), 100))
    assert turns[True] == 50


def test_within_a_tenant_jobs_take_turns_whatever_their_size() -> None:
    large, small = lane_of("a", "t"), lane_of("b", "t")
    assert large != small
    order = list(served(Counter({large: 100, small: 2}), ACQUIRE_QUEUES))
    assert max(at for at, queue in enumerate(order) if queue == small) <= 4


def test_what_concerns_no_api_waits_for_a_turn_at_most() -> None:
    lanes = Counter({lane_of(str(number), str(number % 5)): 10 for number in range(50)})
    tenants = len({lane.rpartition(".")[0] for lane in lanes})
    order = list(served(lanes + Counter({ACQUIRE_QUEUE: 1}), ACQUIRE_QUEUES))
    assert order.index(ACQUIRE_QUEUE) <= tenants


def test_learners_serve_tenants_by_turns_and_jobs_for_gpus_as_often_as_the_others() -> None:
    many, one = (learner_lane(tenant, "learn.cpu") for tenant in ("many", "one"))
    assert many != one
    order = list(served(Counter({many: 30, one: 1}), LEARN_QUEUES))
    assert order.index(one) <= 1
    mixed = Counter({many: 30, one: 30, learner_lane("gpu", "learn.gpu"): 30})
    turns = Counter(queue.rpartition(".")[0] for queue in islice(served(mixed, GPU_QUEUES + LEARN_QUEUES), 40))
    assert turns == {"learn.cpu": 20, "learn.gpu": 20}
