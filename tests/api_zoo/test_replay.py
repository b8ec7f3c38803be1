"""Requests with an idempotency key: the same answer, charged once."""

import anyio
import httpx
import pytest

from tests.api_zoo.responses import Failing, problem

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_the_same_request_under_its_key_is_answered_again_and_charged_once(zoo, colours) -> None:
    key = await zoo.key(budget=4)
    mark = {"Idempotency-Key": "once"}
    first = await zoo.infer(key, colours(4), **mark)
    assert "idempotency-replayed" not in first.headers
    again = await zoo.infer(key, colours(4), **mark)
    assert (again.headers["idempotency-replayed"], again.headers["x-query-cost"]) == ("true", "4")
    assert again.content == first.content
    assert await zoo.spent(key) == 4


async def test_another_request_under_a_used_key_is_refused(zoo, colours) -> None:
    key = await zoo.key()
    mark = {"Idempotency-Key": "once"}
    await zoo.infer(key, colours(4), **mark)
    problem(await zoo.infer(key, colours(3), **mark), 422, "key-reused")
    problem(await zoo.infer(key, colours(4), model="others", **mark), 422, "key-reused")
    assert (await zoo.infer(await zoo.key(), colours(3), **mark)).status_code == 200  # keys of callers do not mix
    assert await zoo.spent(key) == 4


async def test_a_refused_request_leaves_its_idempotency_key_free(zoo, colours) -> None:
    key = await zoo.key(budget=4)
    mark = {"Idempotency-Key": "once"}
    problem(await zoo.infer(key, colours(5), **mark), 402, "budget-exhausted")
    assert (await zoo.infer(key, colours(4), **mark)).status_code == 200


async def test_the_same_request_twice_at_once_is_computed_once(zoo, colours) -> None:
    key = await zoo.key()
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model, seconds=0.3)
    found: list[httpx.Response] = []

    async def ask() -> None:
        found.append(await zoo.infer(key, colours(4), **{"Idempotency-Key": "once"}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    refused, granted = sorted(found, key=lambda response: -response.status_code)
    assert granted.status_code == 200
    problem(refused, 409, "in-progress")
    assert int(refused.headers["retry-after"]) >= 1
    assert await zoo.spent(key) == 4
