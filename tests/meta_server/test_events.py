"""A job's events: pages, and a stream that resumes."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from contracts.job_records import Event
from contracts.jobs import Phase
from meta_server.events import stream
from meta_server.services import Services
from metering.scripts import StoreUnavailable

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
async def ended(http: httpx.AsyncClient, services: Services, request_body: Any) -> str:
    """Path of the events of a job that ran for a moment and was cancelled."""
    job = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    lease = await services.jobs.take(job, "acquire:a0", "test")
    assert lease is not None
    await services.jobs.work.begin(job, lease)
    await services.jobs.work.phase(job, lease, Phase.PROBE)
    await services.jobs.work.warn(job, lease, "two lines\nin one message")
    await http.post(f"/v1/jobs/{job}/cancel")
    await services.jobs.leases.release(lease)
    assert await services.jobs.moves.close(job)
    return f"/v1/jobs/{job}/events"


def messages(response: httpx.Response) -> list[dict[str, str]]:
    """The messages of a whole stream; comments are left out."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.splitlines() for block in response.text.replace("\r\n", "\n").split("\n\n")]
    parsed = [dict(line.split(": ", 1) for line in block if not line.startswith(":")) for block in blocks]
    return [message for message in parsed if "data" in message]


async def test_the_stream_tells_what_the_pages_tell(http: httpx.AsyncClient, ended: str) -> None:
    page = (await http.get(ended)).json()
    assert [event["type"] for event in page["items"]] == ["status", "status", "phase", "warning", "status", "status"]
    stream = messages(await http.get(ended, headers=SSE))
    assert [json.loads(message["data"]) for message in stream] == page["items"]
    assert [message["id"] for message in stream] == [event["id"] for event in page["items"]]
    assert [message["event"] for message in stream] == [event["type"] for event in page["items"]]


async def test_both_resume_after_an_event(http: httpx.AsyncClient, ended: str) -> None:
    ids = [event["id"] for event in (await http.get(ended)).json()["items"]]
    first = (await http.get(ended, params={"limit": 2})).json()
    rest = (await http.get(ended, params={"after": first["last"]})).json()
    assert [event["id"] for event in first["items"] + rest["items"]] == ids
    assert (await http.get(ended, params={"after": ids[-1]})).json() == {"items": [], "last": ids[-1]}
    for resume in ({"headers": SSE | {"Last-Event-ID": ids[2]}}, {"headers": SSE, "params": {"after": ids[2]}}):
        assert [message["id"] for message in messages(await http.get(ended, **resume))] == ids[3:]
    assert messages(await http.get(ended, headers=SSE | {"Last-Event-ID": ids[-1]})) == []


@pytest.mark.parametrize("malformed", ["newest", "1-2-3", "-1", "1" * 30, "$"])
async def test_a_malformed_id_is_refused(malformed: str, http: httpx.AsyncClient, ended: str) -> None:
    response = await http.get(ended, headers=SSE | {"Last-Event-ID": malformed})
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == ["Last-Event-ID"]


async def test_silence_is_broken_and_a_lost_store_ends_the_stream() -> None:
    event = Event(id="1-0", time="2026-01-01T00:00:00Z", type="phase", data={"phase": "probe"})

    class Quiet:
        """A store that is silent, tells something, and is gone."""

        async def follow(self, job_id: str, *, after: str | None) -> AsyncIterator[Event | None]:
            assert (job_id, after) == ("job_1", "0-1")
            yield None
            yield event
            raise StoreUnavailable("gone")

    response = stream(Quiet(), "job_1", "0-1")  # type: ignore[arg-type]
    sent = [message.encode().decode() async for message in response.body_iterator]  # type: ignore[union-attr]
    assert sent[0].startswith(": following")
    assert sent[1].startswith(": heartbeat")
    assert f"data: {event.model_dump_json()}" in sent[2]
    assert len(sent) == 3
