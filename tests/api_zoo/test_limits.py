"""Budgets, rates and requests at once, as callers meet them; and requests that fail, which cost nothing."""

import anyio
import httpx
import pytest

from tests.api_zoo.responses import Failing, answered, problem

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_a_spent_budget_refuses_whole_and_says_what_is_left(zoo, colours) -> None:
    key = await zoo.key(budget=7)
    first = await zoo.infer(key, colours(5))
    assert first.headers["ratelimit-policy"] == '"budget";q=7;qu="images"'
    assert first.headers["ratelimit"] == '"budget";r=2'
    refused = await zoo.infer(key, colours(3))
    assert problem(refused, 402, "budget-exhausted")["left"] == 2
    assert "retry-after" not in refused.headers
    assert refused.headers["ratelimit"] == '"budget";r=2'
    assert (await zoo.infer(key, colours(2))).status_code == 200
    assert await zoo.spent(key) == 7


async def test_a_budget_of_zero_answers_nothing(zoo, colours) -> None:
    key = await zoo.key(budget=0)
    assert problem(await zoo.infer(key, colours(1)), 402, "budget-exhausted")["left"] == 0


async def test_too_fast_says_when_to_come_back(zoo, colours) -> None:
    key = await zoo.key(images_per_second=0.5, burst=4, budget=100)
    first = await zoo.infer(key, colours(4))
    assert first.headers["ratelimit-policy"] == '"burst";q=4;w=8;qu="images", "budget";q=100;qu="images"'
    assert first.headers["ratelimit"] == '"burst";r=0;t=8, "budget";r=96'
    refused = await zoo.infer(key, colours(2))
    told = problem(refused, 429, "rate-limited")
    assert 0 < told["retry_after"] <= int(refused.headers["retry-after"]) == 4
    assert await zoo.spent(key) == 4


async def test_too_many_at_once_says_when_to_come_back_and_frees_its_slot(zoo, colours) -> None:
    key = await zoo.key(concurrency=1)
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model, seconds=0.3)
    found: list[httpx.Response] = []

    async def ask() -> None:
        found.append(await zoo.infer(key, colours(1)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    refused, granted = sorted(found, key=lambda response: -response.status_code)
    assert granted.headers["ratelimit-policy"] == '"concurrency";q=1;qu="concurrent-requests"'
    assert granted.headers["ratelimit"] == '"concurrency";r=0'
    problem(refused, 429, "rate-limited")
    assert refused.headers["retry-after"] == "1"
    assert (await zoo.infer(key, colours(1))).status_code == 200
    assert await zoo.spent(key) == 2


async def test_requests_a_second_are_limited_beside_images(zoo, colours) -> None:
    key = await zoo.key(requests_per_second=0.5)
    assert (await zoo.infer(key, colours(3))).headers["ratelimit"] == '"requests";r=0;t=2'
    refused = await zoo.infer(key, colours(1))
    problem(refused, 429, "rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert await zoo.spent(key) == 3


async def test_a_key_without_limits_states_none(zoo, colours) -> None:
    response = await zoo.infer(await zoo.key(), colours(1))
    assert "ratelimit" not in response.headers
    assert "ratelimit-policy" not in response.headers


async def test_an_engine_that_fails_charges_nothing(zoo, colours, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await zoo.key(budget=10)
    model = zoo.app.state.services.models["colours"]
    with monkeypatch.context() as patched:
        patched.setattr(model, "answer", Failing(model))
        told = problem(await zoo.infer(key, colours(4), **{"Idempotency-Key": "once"}), 500, "internal")
        assert "broke" not in told["error"]
        assert await zoo.spent(key) == 0
    assert (await zoo.infer(key, colours(4), **{"Idempotency-Key": "once"})).status_code == 200
    assert await zoo.spent(key) == 4


async def test_an_engine_that_is_too_slow_charges_nothing(running, redis_url: str, colours) -> None:
    async with running(redis_url, answer_seconds=0.05) as zoo:
        key = await zoo.key(budget=10)
        model = zoo.app.state.services.models["colours"]
        model.answer = Failing(model, seconds=0.3)
        refused = await zoo.infer(key, colours(4))
        problem(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert await zoo.spent(key) == 0


async def test_a_caller_that_goes_away_is_not_charged(zoo, colours) -> None:
    key = await zoo.key(budget=10)
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model, seconds=0.3)
    with anyio.move_on_after(0.1):
        await zoo.infer(key, colours(4))
    assert await zoo.spent(key) == 0


async def test_concurrent_callers_never_get_more_than_the_budget(zoo, colours) -> None:
    key = await zoo.key(budget=25)
    found: list[httpx.Response] = []

    async def ask(n: int) -> None:
        found.append(await zoo.infer(key, colours(n)))

    async with anyio.create_task_group() as tasks:
        for n in [1, 2, 3, 4] * 5:
            tasks.start_soon(ask, n)
    granted = sum(len(answered(response)) for response in found if response.status_code == 200)
    assert {response.status_code for response in found} == {200, 402}
    assert granted == await zoo.spent(key) <= 25
