"""Pacing and the window against a plain model of an API: a bucket that refuses, and time that is moved by hand."""

import asyncio
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client._limits import Limit, RateLimits
from worker.pace import Pacer, Turn
from worker.todo import Todo
from worker.window import MOST, Window

pytestmark = pytest.mark.anyio


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Bucket:
    """What an API with a burst and a rate in images does; `w` is rounded up, as the zoo's is."""

    burst: int
    rate: float
    clock: Clock
    level: float = field(init=False)
    at: float = field(init=False)
    refused: int = 0

    def __post_init__(self) -> None:
        self.level, self.at = self.burst, self.clock.now

    def take(self, images: int, at: float) -> RateLimits | None:
        self.level, self.at = min(self.burst, self.level + self.rate * (at - self.at)), at
        if images > self.level + 1e-6:
            self.refused += 1
            return None
        self.level -= images
        window = max(1, math.ceil(self.burst / self.rate))
        return RateLimits((Limit("burst", self.burst, window, "images", int(self.level), 1),))


async def use(pacer: Pacer, api: Bucket, clock: Clock, *, latency: float, seconds: float, others: float = 0.0) -> int:
    """Images answered in so many seconds, one request after the other, each counted half its latency after it was sent."""
    began, answered, stolen = clock.now, 0, 0.0
    learning: list[tuple[float, Turn, RateLimits]] = []
    while clock.now < began + seconds:
        for due, turn, limits in [one for one in learning if one[0] <= clock.now]:
            pacer.learn(turn, limits)
            learning.remove((due, turn, limits))
        images = min(32, pacer.most_images or 32)
        turn = await pacer.turn(images)
        if others and clock.now - began - stolen > 1:
            stolen = clock.now - began
            refused = api.refused
            api.take(int(others), clock.now + latency / 2)
            api.refused = refused
        limits = api.take(images, clock.now + latency / 2)
        if limits is None:
            pacer.hold_off(1.0)
            continue
        answered += images
        learning.append((clock.now + latency, turn, limits))
        if not pacer.knows_a_rate:  # the probe is waited for
            clock.now += latency
    return answered


@settings(max_examples=40, deadline=None)
@given(burst=st.integers(40, 2000), rate=st.floats(5, 2000), latency=st.floats(0.001, 2.0))
def test_a_stated_rate_is_used_and_not_passed(burst: int, rate: float, latency: float) -> None:
    clock = Clock()
    api = Bucket(burst, rate, clock)
    seconds = 60 + 10 * burst / rate
    answered = asyncio.run(use(Pacer(clock.sleep, clock), api, clock, latency=latency, seconds=seconds))
    advertised = burst / max(1, math.ceil(burst / rate))
    assert answered >= 0.85 * advertised * seconds - 64
    assert api.refused <= 1


def test_a_rate_shared_with_others_is_found_out() -> None:
    clock = Clock()
    api = Bucket(200, 100, clock)
    answered = asyncio.run(use(Pacer(clock.sleep, clock), api, clock, latency=0.1, seconds=60, others=50))
    assert api.refused <= 12  # no storm
    assert answered >= 0.7 * 50 * 60


async def test_what_is_said_of_no_time_paces_nothing() -> None:
    clock = Clock()
    pacer = Pacer(clock.sleep, clock)
    pacer.learn(await pacer.turn(5), RateLimits((Limit("budget", 100, None, "images", 3), Limit("x", None, 1))))
    assert not pacer.knows_a_rate
    for _ in range(100):
        await pacer.turn(50)
    assert clock.now == 1000.0


async def test_a_word_to_hold_off_holds_for_all() -> None:
    clock = Clock()
    pacer = Pacer(clock.sleep, clock)
    pacer.hold_off(7)
    assert (await pacer.turn(1)).waited
    assert 1007 <= clock.now <= 1009
    assert not (await pacer.turn(1)).waited


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 12), seconds=st.floats(0.01, 1.0))
def test_a_window_keeps_an_api_busy_and_makes_no_long_queue(capacity: int, seconds: float) -> None:
    """An API that works on `capacity` requests at once, each for `seconds`; the others wait in line."""
    window = Window()
    for _ in range(300):
        window.answered(64, seconds * max(1.0, int(window.size) / capacity), paced=False, waited=False)
    assert min(MOST, capacity) <= window.size <= capacity + 5


def test_refusals_of_one_moment_halve_the_window_once() -> None:
    window = Window(size=16.0)
    for _ in range(16):
        window.refused(1.0, 2.0)
    assert window.size == 8
    window.refused(3.0, 4.0)
    assert window.size == 4


@given(st.data())
def test_what_is_left_is_a_set_of_places(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    todo, model, taken = Todo(count), set(range(count)), []
    for _ in range(data.draw(st.integers(0, 30))):
        match data.draw(st.sampled_from(["take", "give", "remove"])):
            case "take" if model:
                start, stop = todo.take(data.draw(st.integers(1, 9)))
                assert start == min(model)
                assert set(range(start, stop)) <= model
                model -= set(range(start, stop))
                taken.append((start, stop))
            case "give" if taken:
                start, stop = taken.pop(data.draw(st.integers(0, len(taken) - 1)))
                todo.give_back(start, stop)
                model |= set(range(start, stop))
            case "remove" if model:
                start = data.draw(st.sampled_from(sorted(model)))
                stop = data.draw(st.integers(start + 1, count))
                if not any(left < stop and start < right for left, right in taken):
                    todo.remove(start, stop)
                    model -= set(range(start, stop))
        assert len(todo) == len(model)
