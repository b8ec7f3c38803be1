"""Jobs through both clients: one idempotency key per call, typed failures, streams that outlive their connections."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import (
    ApiUnavailable,
    AsyncMetazoo,
    InvalidAnswer,
    InvalidRequest,
    Job,
    JobFailed,
    JobRequest,
    Metazoo,
    RateLimited,
    TimedOut,
)
from client._following import RECONNECTS
from client._job_requests import PAGE
from contracts.jobs import BudgetRaise
from contracts.problems import ProblemError

MakeJob = Callable[..., dict[str, Any]]
REQUEST = {"apis": [{"url": "http://a/v2/models/x", "api_key": "teacher-key"}], "budget": {"queries": 10}}


class Script:
    """A server that gives prepared answers in order and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def metazoo(script: Script, **options: Any) -> Metazoo:
    return Metazoo("http://server.test", "key", transport=httpx.MockTransport(script), **options)


def event(number: int, kind: str = "progress", **data: Any) -> dict[str, Any]:
    return {"id": f"{number}-0", "time": "2026-01-01T00:00:00Z", "type": kind, "data": data}


class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An event stream that ends, or breaks off in the middle of an event."""

    def __init__(self, events: list[dict[str, Any]], *, breaks: bool = False) -> None:
        self.text = ": heartbeat\n\n" + "".join(f"id: {e['id']}\ndata: {json.dumps(e)}\n\n" for e in events)
        self.breaks = breaks

    def __iter__(self) -> Any:
        yield self.text.encode()
        if self.breaks:
            yield b'id: 99-0\ndata: {"id'
            raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> Any:
        for chunk in self:
            yield chunk


def stream(*events: dict[str, Any], breaks: bool = False) -> httpx.Response:
    return httpx.Response(
        200, headers={"Content-Type": "text/event-stream"}, stream=Stream(list(events), breaks=breaks)
    )


@pytest.mark.parametrize("request_", [REQUEST, JobRequest.model_validate(REQUEST)])
def test_create_sends_what_was_given_with_keys_and_a_key_of_its_own(request_: Any, job: MakeJob) -> None:
    script = Script(httpx.Response(202, json=job()))
    assert metazoo(script).jobs.create(request_).id == "j1"
    assert json.loads(script.requests[0].content) == REQUEST
    assert len(script.requests[0].headers["idempotency-key"]) >= 16


def test_one_idempotency_key_over_the_repetitions_of_a_call(job: MakeJob, pauses: list[float]) -> None:
    script = Script(
        httpx.ReadError("reset"),
        httpx.Response(503, headers={"Retry-After": "2"}),
        httpx.Response(429, headers={"Retry-After": "1"}),
        httpx.Response(202, json=job()),
        httpx.Response(202, json=job()),
    )
    client = metazoo(script)
    client.jobs.create(REQUEST)
    client.jobs.create(REQUEST)
    keys = [request.headers["idempotency-key"] for request in script.requests]
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]
    assert 0 < pauses[0] <= 0.5
    assert 2 <= pauses[1] < 3
    assert 1 <= pauses[2] < 2


def test_retries_are_as_many_as_allowed(pauses: list[float]) -> None:
    script = Script(*[httpx.Response(503) for _ in range(3)])
    with pytest.raises(ApiUnavailable):
        metazoo(script, max_retries=2).jobs.retrieve("j1")
    assert len(script.requests) == 3


def test_a_long_hint_is_not_slept_through(pauses: list[float]) -> None:
    script = Script(httpx.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimited) as caught:
        metazoo(script).jobs.retrieve("j1")
    assert caught.value.retry_after == 3600
    assert pauses == []


def test_every_fault_of_a_job_reaches_the_caller() -> None:
    faults = [{"field": "apis.0.url", "message": "bad"}, {"field": "budget.queries", "message": "too small"}]
    problem = ProblemError("invalid-request", "2 faults").problem.model_dump(mode="json") | {"errors": faults}
    script = Script(httpx.Response(422, json=problem, headers={"X-Request-Id": "r7"}))
    with pytest.raises(InvalidRequest, match=r"apis\.0\.url: bad; budget\.queries: too small") as caught:
        metazoo(script).jobs.create(REQUEST)
    assert [fault.field for fault in caught.value.fields] == ["apis.0.url", "budget.queries"]
    assert caught.value.request_id == "r7"


def test_another_kind_of_server_is_no_job() -> None:
    with pytest.raises(InvalidAnswer, match="Metazoo"):
        metazoo(Script(httpx.Response(200, json={"hello": "world"}))).jobs.retrieve("j1")


def test_ids_cannot_leave_their_place_in_the_path(job: MakeJob) -> None:
    script = Script(httpx.Response(200, json=job()))
    metazoo(script).jobs.retrieve("../admin?x=1")
    assert script.requests[0].url.raw_path == b"/v1/jobs/..%2Fadmin%3Fx%3D1"


def test_list_passes_cursor_and_filter(job: MakeJob) -> None:
    script = Script(httpx.Response(200, json={"items": [job()], "next": "c"}))
    page = metazoo(script).jobs.list(after="b", limit=5, status="running")
    assert (page.next, len(page.items)) == ("c", 1)
    assert dict(script.requests[0].url.params) == {"after": "b", "limit": "5", "status": "running"}


def held(job: MakeJob, *answers: httpx.Response | Exception, **options: Any) -> tuple[Job, Script]:
    """A job in hand, and the server that answers what is asked of it from here on."""
    script = Script(httpx.Response(200, json=job()), *answers)
    made = metazoo(script, **options).jobs.retrieve("j1")
    script.requests.clear()
    return made, script


def states(job: MakeJob, *statuses: str) -> list[httpx.Response]:
    return [httpx.Response(200, json=job(status)) for status in statuses]


def test_every_way_to_a_job_gives_one_that_can_be_asked(job: MakeJob) -> None:
    page = {"items": [job(), job()], "next": None}
    script = Script(httpx.Response(202, json=job()), httpx.Response(200, json=page), *states(job, *3 * ["running"]))
    jobs = metazoo(script).jobs
    for each in (jobs.create(REQUEST), *jobs.list().items):
        assert each.status == "queued"
        assert each.refresh() is each
        assert each.status == "running"


def test_what_was_told_can_not_be_set(job: MakeJob) -> None:
    each, _ = held(job)
    with pytest.raises(ValueError, match="frozen"):
        each.notes = "mine"
    assert json.loads(each.model_dump_json()) == job()


def test_wait_ends_when_the_job_has_succeeded(job: MakeJob, pauses: list[float]) -> None:
    each, _ = held(job, *states(job, "queued", "running", "succeeded"))
    assert each.wait().status == each.status == "succeeded"
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("status", "fields", "code"),
    [
        ("failed", {"error": {"code": "too_few_apis", "message": "all are down"}}, "too_few_apis"),
        ("cancelled", {}, "cancelled"),
    ],
)
def test_wait_raises_for_other_ends(status: str, fields: dict[str, Any], code: str, job: MakeJob) -> None:
    each, _ = held(job, httpx.Response(200, json=job(status, **fields)))
    with pytest.raises(JobFailed) as caught:
        each.wait()
    assert (caught.value.code, caught.value.job.id, each.status) == (code, "j1", status)


def test_wait_gives_up(job: MakeJob, pauses: list[float]) -> None:
    each, _ = held(job, *states(job, "running"))
    with pytest.raises(TimedOut) as caught:
        each.wait(timeout=0)
    assert isinstance(caught.value, TimeoutError)
    assert each.status == "running"


def test_events_so_far_turns_pages(job: MakeJob) -> None:
    first = [event(number) for number in range(PAGE)]
    each, script = held(
        job,
        httpx.Response(200, json={"items": first, "last": first[-1]["id"]}),
        httpx.Response(200, json={"items": [event(PAGE)], "last": f"{PAGE}-0"}),
    )
    assert [seen.id for seen in each.events()] == [f"{number}-0" for number in range(PAGE + 1)]
    assert script.requests[1].url.params["after"] == f"{PAGE - 1}-0"


def hardships(job: MakeJob) -> list[httpx.Response | Exception]:
    """A stream that breaks, a server that restarts, a stream ended early, and the end of the job."""
    return [
        stream(event(1), event(2), breaks=True),
        httpx.ConnectError("refused"),
        httpx.Response(503),
        stream(event(3)),
        httpx.Response(200, json=job("running")),
        stream(event(4), event(5, "status", status="succeeded")),
        httpx.Response(200, json=job("succeeded")),
    ]


def test_a_stream_survives_what_happens_to_connections(job: MakeJob, pauses: list[float]) -> None:
    each, script = held(job, *hardships(job))
    assert [seen.id for seen in each.stream()] == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    resumed = [request.headers.get("last-event-id") for request in script.requests if "events" in request.url.path]
    assert resumed == [None, "2-0", "2-0", "2-0", "3-0"]
    assert each.status == "succeeded"


@pytest.mark.anyio
async def test_a_stream_on_the_event_loop(job: MakeJob, pauses: list[float]) -> None:
    script = Script(httpx.Response(200, json=job()), *hardships(job))
    async with AsyncMetazoo("http://server.test", transport=httpx.MockTransport(script)) as client:
        each = await client.jobs.retrieve("j1")
        assert [seen.id async for seen in each.stream()] == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    assert each.status == "succeeded"


def test_the_stream_of_a_job_that_had_ended_ends(job: MakeJob, pauses: list[float]) -> None:
    each, _ = held(job, stream(), *states(job, "failed"), stream(), *states(job, "failed"))
    assert list(each.stream(after="9-0")) == []


def test_last_events_are_not_lost_when_the_job_ends_between_connections(job: MakeJob, pauses: list[float]) -> None:
    told = event(2, "status", status="failed")
    each, _ = held(job, stream(event(1)), *states(job, "failed"), stream(told), *states(job, "failed"))
    assert [seen.id for seen in each.stream()] == ["1-0", "2-0"]


def test_a_stream_gives_up_in_the_end(job: MakeJob, pauses: list[float]) -> None:
    each, _ = held(job, *[httpx.ConnectError("refused") for _ in range(RECONNECTS + 1)])
    with pytest.raises(ApiUnavailable):
        list(each.stream())
    assert len(pauses) == RECONNECTS


def test_what_is_no_stream(job: MakeJob) -> None:
    each, _ = held(job, httpx.Response(200, json={}))
    with pytest.raises(InvalidAnswer):
        list(each.stream())


def test_moves_leave_the_job_as_it_was_told_then(job: MakeJob) -> None:
    moves = {"pause": "pausing", "resume": "running", "cancel": "cancelling", "retry": "queued"}
    each, script = held(job, *states(job, *moves.values()))
    for move, status in moves.items():
        assert getattr(each, move)() is each
        assert each.status == status
    assert [request.url.path for request in script.requests] == [f"/v1/jobs/j1/{move}" for move in moves]


def test_a_change_names_what_changes_alone(job: MakeJob) -> None:
    each, script = held(job, httpx.Response(200, json=job(tags=["t"])), httpx.Response(200, json=job()))
    assert each.change(tags=["t"]).tags == each.tags == ["t"]
    each.change(name=None, budget=BudgetRaise(queries=20))
    sent = [(request.method, json.loads(request.content)) for request in script.requests]
    assert sent == [("PATCH", {"tags": ["t"]}), ("PATCH", {"name": None, "budget": {"queries": 20}})]


def test_what_a_job_came_to(job: MakeJob, tmp_path: Path) -> None:
    point = {"id": "1-0", "time": "2026-01-01T00:00:00Z", "step": 1, "steps": 2, "values": {"loss": 0.5}}
    each, script = held(
        job,
        httpx.Response(200, json={"items": [point], "last": "1-0"}),
        httpx.Response(200, json={"items": [], "last": None}),
        httpx.Response(200, json={"items": [{"name": "a0.0", "api": "a0", "images": 3}], "next": None}),
        httpx.Response(200, content=b"safetensors"),
        httpx.Response(200, content=b"png"),
        httpx.Response(204),
    )
    assert [one.values["loss"] for one in each.history()] == [0.5]
    assert [one.name for one in each.answers()] == ["a0.0"]
    assert each.download_answer("a0.0", tmp_path / "a").read_bytes() == b"safetensors"
    assert each.download_images(tmp_path / "b", count=3).read_bytes() == b"png"
    each.delete()
    assert [request.method for request in script.requests] == ["GET"] * 5 + ["DELETE"]
    assert script.requests[4].url.params["count"] == "3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.anyio
async def test_async_jobs_are_the_same(job: MakeJob, pauses: list[float], tmp_path: Path) -> None:
    point = {"id": "1-0", "time": "2026-01-01T00:00:00Z", "step": 1, "steps": 2, "values": {"loss": 0.5}}
    script = Script(
        httpx.Response(503),
        httpx.Response(202, json=job()),
        httpx.Response(200, json={"items": [job()], "next": None}),
        *states(job, "pausing", "running", "cancelling", "queued"),
        httpx.Response(200, json=job("queued", notes="n")),
        httpx.Response(200, json={"items": [event(1)], "last": "1-0"}),
        *states(job, "running", "succeeded"),
        httpx.Response(200, json={"items": [point], "last": None}),
        httpx.Response(200, json={"items": [{"name": "a0.0", "api": "a0", "images": 3}], "next": None}),
        httpx.Response(200, content=b"safetensors"),
        httpx.Response(200, content=b"png"),
        httpx.Response(204),
    )
    async with AsyncMetazoo("http://server.test", transport=httpx.MockTransport(script)) as client:
        each = await client.jobs.create(REQUEST)
        assert len((await client.jobs.list()).items) == 1
        moved = [(await move()).status for move in (each.pause, each.resume, each.cancel, each.retry)]
        assert moved == ["pausing", "running", "cancelling", "queued"]
        assert (await each.change(notes="n")).notes == "n"
        assert [seen.id async for seen in each.events()] == ["1-0"]
        assert (await each.wait()).status == each.status == "succeeded"
        assert [one.step async for one in each.history()] == [1]
        assert [one.name async for one in each.answers()] == ["a0.0"]
        assert (await each.download_answer("a0.0", tmp_path / "a")).read_bytes() == b"safetensors"
        assert (await each.download_images(tmp_path / "b")).read_bytes() == b"png"
        await each.delete()
    assert script.answers == []
