"""One trace from the request that made a job to the tasks that work on it, and no secret in it."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edge.tracing import Traced
from meta_server.app import create_app
from meta_server.queue import ACQUIRE_QUEUE, ACQUIRE_QUEUES, ACQUIRE_TASK, BEGIN_TASK, Queue
from meta_server.settings import Settings as ServerSettings
from meta_server.store.secrets import Secrets
from worker import tasks
from worker.settings import Settings
from worker.stopping import Stopping
from worker.tracing import TracedTransport

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SCRIPT = {"db.system.name", "db.operation.name", "db.stored_procedure.name", "error.type"}
API_KEY = "server-key-of-the-tests"
CALLERS = "0af7651916cd43dd8448eb211c80319c"  # the caller's trace
JOB = {
    "apis": [{"url": "http://zoo.test/v2/models/hush-path", "api_key": "hush-teacher"}],
    "budget": {"queries": 10},
    "webhook": {"url": "http://hook.test/hush-hook", "secret": "whsec_" + base64.b64encode(b"hush" * 8).decode()},
}


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """What the process tells while these tests run. Other tests find it untraced: an application that is traced is another."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)  # set_tracer_provider cannot be undone
        yield kept
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], list[ReadableSpan]]:
    exporter.clear()
    return lambda: list(exporter.get_finished_spans())


def message(url: str, task: str, *queues: str) -> dict[str, Any]:
    """The one of a task that waits in these queues, or any: a server that stops may send one twice."""
    with redis.Redis.from_url(url) as connection:
        waiting = [json.loads(each) for queue in queues for each in connection.lrange(queue, 0, -1)]
    found, *_ = [each for each in waiting if each["headers"]["task"] == task]
    return found


def work(app: Celery, sent: dict[str, Any]) -> None:
    """Do what a message asks for, as a worker that took it."""
    task, (args, _, _) = app.tasks[sent["headers"]["task"]], json.loads(base64.b64decode(sent["body"]))
    task.push_request(**sent["headers"])
    try:
        task.run(*args)
    finally:
        task.pop_request()


async def test_a_trace_leads_from_the_request_to_the_tasks_and_holds_no_secret(
    redis_url: str, tmp_path: Path, spans: Callable[[], list[ReadableSpan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"redis_url": redis_url, "artifacts": str(tmp_path), "secret_key": Secrets.generate()}
    server = create_app(ServerSettings(**told, api_key=API_KEY))
    headers = {"Authorization": f"Bearer {API_KEY}", "traceparent": f"00-{CALLERS}-b7ad6b7169203331-01"}
    async with server.router.lifespan_context(server):
        transport = httpx.ASGITransport(server)
        async with httpx.AsyncClient(transport=transport, base_url="http://server.test", headers=headers) as http:
            made = await http.post("/v1/jobs?hush=hush-query", json=JOB)
            assert made.status_code == 202
    job_id = made.json()["id"]

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("hush-words of an API")

    monkeypatch.setattr(tasks, "acquire", broken)
    app = Celery("test", set_as_current=False)
    close = tasks.register(app, Settings(**told), Queue(redis_url), Stopping())
    try:
        work(app, message(redis_url, BEGIN_TASK, ACQUIRE_QUEUE))
        work(app, message(redis_url, ACQUIRE_TASK, *ACQUIRE_QUEUES[1:]))
    finally:
        close()
    told_spans = spans()
    ours = {span.context.span_id: span for span in told_spans if span.context.trace_id == int(CALLERS, 16)}
    scripts = [span for span in ours.values() if span.name.startswith("EVALSHA ")]
    above = {ours[span.parent.span_id].name for span in scripts if span.parent is not None}
    assert {"POST /v1/jobs", "begin", "acquire"} <= above
    assert all(set(span.attributes or {}) <= SCRIPT for span in scripts)
    assert all(span.parent is not None for span in told_spans if span.name.startswith("EVALSHA "))  # no poll makes one
    names = {span.name: dict(span.attributes or {}) for span in ours.values() if span not in scripts}
    assert names.keys() == {"POST /v1/jobs", "begin", "acquire"}
    assert all(attributes["metazoo.job_id"] == job_id for attributes in names.values())
    assert names["POST /v1/jobs"]["metazoo.tenant"] == names["acquire"]["metazoo.tenant"] == "default"
    assert names["POST /v1/jobs"]["http.response.status_code"] == 202
    everything = "".join(span.to_json() for span in told_spans)
    assert "hush" not in everything
    assert API_KEY not in everything


async def test_a_call_tells_its_host_and_status_and_the_api_learns_of_no_trace(
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    asked: list[httpx.Request] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(429)

    transport = TracedTransport(httpx.MockTransport(answer))
    with trace.get_tracer("test").start_as_current_span("outer"):
        async with httpx.AsyncClient(transport=transport) as http:
            await http.post("http://zoo.test/v2/hush?key=hush", content=b"hush", headers={"Authorization": "hush"})
    (call, outer) = spans()
    assert call.parent is not None
    assert call.parent.span_id == outer.context.span_id
    assert dict(call.attributes or {}) == {
        "http.request.method": "POST", "server.address": "zoo.test", "http.response.status_code": 429,
    }  # fmt: skip
    assert "traceparent" not in asked[0].headers
    assert "hush" not in call.to_json()


async def test_a_fault_is_told_without_its_words(spans: Callable[[], list[ReadableSpan]]) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("hush")

    transport = httpx.ASGITransport(Traced(broken), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server.test") as http:
        assert (await http.get("/hush")).status_code == 500
    (span,) = spans()
    assert (span.name, span.status.is_ok) == ("GET", False)
    assert "hush" not in span.to_json()
