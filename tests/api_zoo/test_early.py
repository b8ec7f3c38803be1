"""A few images are computed while they are charged; nothing of the answer leaves before the charge stands."""

import asyncio

import anyio
import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_zoo.answering import limit_headers
from api_zoo.inference import Pixels
from metering.refusals import Limits, Rate


class Counted:
    """Stands in for a model's `answer` and counts its calls."""

    def __init__(self, model) -> None:
        self.answer, self.calls = type(model).answer.__get__(model), 0
        model.answer = self

    def __call__(self, images: Pixels) -> bytes:
        self.calls += 1
        return self.answer(images)


@pytest.mark.redis
@pytest.mark.anyio
async def test_an_answer_that_is_ready_waits_for_its_charge(zoo, colours, monkeypatch: pytest.MonkeyPatch) -> None:
    key, gate = await zoo.key(), zoo.app.state.services.gate
    assert (await zoo.infer(key, colours(1))).status_code == 200
    counted = Counted(zoo.app.state.services.models["colours"])
    admit, durable = gate.admit, asyncio.Event()

    async def slowly(*told, **more):
        admission = await admit(*told, **more)
        await durable.wait()
        return admission

    monkeypatch.setattr(gate, "admit", slowly)
    asked = asyncio.create_task(zoo.infer(key, colours(1)))
    with anyio.fail_after(30):
        while not counted.calls:  # noqa: ASYNC110 - it runs on a thread
            await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not asked.done()
        durable.set()
        assert (await asked).status_code == 200
    assert counted.calls == 1
    assert await zoo.spent(key) == 2


@pytest.mark.redis
@pytest.mark.anyio
async def test_only_a_key_in_good_standing_is_computed_for_before_it_is_charged(zoo, colours) -> None:
    key = await zoo.key(budget=2)
    counted = Counted(zoo.app.state.services.models["colours"])
    assert [(await zoo.infer(key, colours(1))).status_code for _ in range(2)] == [200, 200]
    done = counted.calls
    for _ in range(3):
        assert (await zoo.infer(key, colours(1))).status_code == 402
    assert done == 2
    assert counted.calls <= done + 1  # the first of them, at most
    assert await zoo.spent(key) == 2


@pytest.mark.redis
@pytest.mark.anyio
async def test_with_a_key_of_its_own_a_few_images_take_one_write(zoo, colours, monkeypatch: pytest.MonkeyPatch) -> None:
    key, gate = await zoo.key(budget=6), zoo.app.state.services.gate
    counted = Counted(zoo.app.state.services.models["colours"])
    ran = []
    run = gate._scripts.run

    async def noted(name: str, **more):
        ran.append(name)
        return await run(name, **more)

    monkeypatch.setattr(gate._scripts, "run", noted)
    assert (await zoo.infer(key, colours(1), **{"Idempotency-Key": "first"})).status_code == 200
    assert ran == ["gate_admit", "gate_settle"]  # of a key of which nothing is known
    ran.clear()
    answers = await asyncio.gather(*(zoo.infer(key, colours(2), **{"Idempotency-Key": "twice"}) for _ in range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.headers["x-query-cost"] for answer in answers} == {"2"}
    assert sorted("idempotency-replayed" in answer.headers for answer in answers) == [False, True]
    assert answers[0].content == answers[1].content
    assert set(ran) == {"gate_admit"}
    assert await zoo.spent(key) == 3
    again = await zoo.infer(key, colours(2), **{"Idempotency-Key": "twice"})
    assert (again.content, again.headers["idempotency-replayed"]) == (answers[0].content, "true")
    assert (await zoo.infer(key, colours(3), **{"Idempotency-Key": "twice"})).status_code == 422
    assert (await zoo.infer(key, colours(3), **{"Idempotency-Key": "last"})).status_code == 200
    calls = counted.calls
    for number in range(3):
        assert (await zoo.infer(key, colours(1), **{"Idempotency-Key": f"over{number}"})).status_code == 402
    assert counted.calls <= calls + 1
    assert await zoo.spent(key) == 6


@pytest.mark.redis
@pytest.mark.anyio
async def test_what_may_be_a_replay_is_not_computed_early(zoo, colours) -> None:
    key = await zoo.key()
    counted = Counted(zoo.app.state.services.models["colours"])
    for _ in range(4):
        assert (await zoo.infer(key, colours(1), **{"Idempotency-Key": "once"})).status_code == 200
        assert (await zoo.infer(key, colours(2))).status_code == 200  # keeps the key in good standing
    assert counted.calls == 1 + 4
    assert await zoo.spent(key) == 1 + 4 * 2


COUNTS = st.integers(0, 10**9)
RATES = st.none() | st.builds(Rate, st.integers(1, 10**9), COUNTS, st.floats(0, 1e6), st.floats(1e-3, 1e6))


@given(RATES, RATES, st.none() | st.tuples(COUNTS, COUNTS), st.none() | st.tuples(COUNTS, COUNTS))
def test_what_is_left_is_told_in_structured_fields(images, requests, concurrency, budget) -> None:
    headers = limit_headers(Limits(images, requests, *(concurrency or (None, None)), *(budget or (None, None))))
    given = {"burst": images, "requests": requests, "concurrency": concurrency, "budget": budget}
    given = {name: limit for name, limit in given.items() if limit is not None}
    if not given:
        assert headers == {}
        return
    states, policies = (
        dict(http_sf.parse(headers[name].encode(), tltype="list")) for name in ("RateLimit", "RateLimit-Policy")
    )
    left = {name: limit.left if isinstance(limit, Rate) else limit[1] for name, limit in given.items()}
    assert {name: state["r"] for name, state in states.items()} == left
    quota = {name: limit.burst if isinstance(limit, Rate) else limit[0] for name, limit in given.items()}
    assert {name: policy["q"] for name, policy in policies.items()} == quota
    assert all(state["t"] >= given[name].reset for name, state in states.items() if "t" in state)
