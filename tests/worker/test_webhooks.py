"""Webhooks: signed, told in order, tried again under the same id, and given up in the end."""

import json
from base64 import b64encode
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook as Signer

from contracts.jobs import Job, JobRequest
from contracts.problems import ProblemError, faults
from meta_server.store import keys
from worker.webhooks import WAITS, notify

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
WEBHOOK = {"url": "https://hook.test/in", "secret": SECRET}


class Receiver:
    """Answers with the statuses given, then 204; keeps what it was sent."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses = list(statuses)
        self.requests: list[httpx.Request] = []

    async def handle(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        status = self.statuses.pop(0) if self.statuses else 204
        if isinstance(status, Exception):
            raise status
        return httpx.Response(status, headers={"Location": "http://127.0.0.1/"}, text="x" * 100)

    @property
    def told(self) -> list[str]:
        return [json.loads(request.content)["type"] for request in self.requests]

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


async def cancelled(world: Any, api: Any, receiver: Receiver) -> Job:
    """A job that was paused, resumed and cancelled: of these a webhook is told twice."""
    world.apis["hook.test"] = receiver
    job = await world.submit(api(), webhook=WEBHOOK)
    await world.store.moves.pause(job.id, reason="night")
    await world.store.moves.resume(job.id)
    await world.store.moves.cancel(job.id)
    return job  # type: ignore[no-any-return]


async def test_what_is_told_is_signed_and_in_order(world: Any, api: Any) -> None:
    receiver = Receiver()
    job = await cancelled(world, api, receiver)
    webhooks = world.context.webhooks
    assert await webhooks.due() == [job.id]
    assert await webhooks.due() == []  # its message may be under way
    await notify(world.context, job.id)
    assert receiver.told == ["job.paused", "job.cancelled"]
    for request in receiver.requests:
        Signer(SECRET).verify(request.content, dict(request.headers))
    first = json.loads(receiver.requests[0].content)["data"]
    assert (first["job"], first["status"], first["reason"]) == (job.id, "paused", "night")
    await notify(world.context, job.id)
    assert len(receiver.requests) == 2
    assert await webhooks.due() == []
    assert await world.redis.smembers(keys.WEBHOOKS) == set()
    assert SECRET not in job.model_dump_json()


@pytest.mark.parametrize("failure", [500, 302, 404, httpx.ConnectError("refused")])
async def test_a_failure_is_tried_again_under_the_same_id(world: Any, api: Any, failure: Any) -> None:
    receiver = Receiver(failure)
    job = await cancelled(world, api, receiver)
    await notify(world.context, job.id)
    assert receiver.told == ["job.paused"]  # what comes later waits
    assert await world.context.webhooks.due() == []  # not yet
    await notify(world.context, job.id)
    assert receiver.told == ["job.paused", "job.paused", "job.cancelled"]
    assert receiver.ids[0] == receiver.ids[1] != receiver.ids[2]


async def test_one_that_never_answers_is_given_up_and_one_that_is_gone_is_left_alone(world: Any, api: Any) -> None:
    never = Receiver(*[503] * (len(WAITS) + 1))
    job = await cancelled(world, api, never)
    for _ in range(len(WAITS) + 1):
        await notify(world.context, job.id)
    assert set(never.told[: len(WAITS) + 1]) == {"job.paused"}
    assert never.told[len(WAITS) + 1 :] == ["job.cancelled"]
    gone = Receiver(410)
    job = await cancelled(world, api, gone)
    await notify(world.context, job.id)
    assert len(gone.requests) == 1
    assert job.id.encode() not in await world.redis.smembers(keys.WEBHOOKS)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"secret": "hush"}, "webhook.secret"),
        ({"secret": "whsec_c2hvcnQ="}, "webhook.secret"),
        ({"url": "ftp://hook.test"}, "webhook.url"),
        ({"url": "https://u:p@hook.test"}, "webhook.url"),
    ],
)
async def test_what_is_no_webhook_is_named(change: dict[str, str], field: str) -> None:
    body = {"apis": [{"url": "http://a.test/x"}], "budget": {"queries": 1}, "webhook": WEBHOOK | change}
    with pytest.raises(ValidationError) as raised:
        JobRequest.model_validate(body)
    assert [fault.field for fault in faults(list(raised.value.errors()))] == [field]


async def test_a_request_that_was_read_back_cannot_sign(world: Any, api: Any) -> None:
    job = await world.submit(api(), webhook=WEBHOOK)
    with pytest.raises(ProblemError) as raised:
        await world.store.create(job.request)
    assert [fault.field for fault in raised.value.problem.errors] == ["webhook.secret"]
