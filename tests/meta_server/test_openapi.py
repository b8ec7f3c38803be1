"""What the meta server's OpenAPI document says, against what it answers."""

import base64
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from contracts.estimates import Probe
from contracts.jobs import JobError
from contracts.meta_models import MetaModel
from meta_server.routes import jobs
from meta_server.services import Services

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

EVENTS = "/v1/jobs/{job_id}/events"


def picture(colour: str) -> str:
    file = BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


async def probed(*_: Any, **__: Any) -> Probe:
    """What a probe shows; no worker is there to make one."""
    return Probe(charged=0, unconfirmed=0, per_api={})


async def test_the_server_answers_as_it_says(
    http: httpx.AsyncClient,
    services: Services,
    publish: Callable[..., Awaitable[MetaModel]],
    request_body: dict[str, Any],
    contradictions: Callable[..., Awaitable[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "probed", probed)
    document = (await http.get("/openapi.json")).json()
    model = await publish()
    task = {"support": {"images": [picture("red"), picture("green")], "labels": ["red", "green"]}}
    adapted = (await http.post(f"/v1/meta-models/{model.id}/adapt", json=task)).json()["id"]
    queued, running, failed, cancelled = [
        (await http.post("/v1/jobs", json=request_body)).json()["id"] for _ in range(4)
    ]
    lease = await services.jobs.take(running, "learn", "test")
    assert lease is not None
    await services.jobs.work.begin(running, lease)
    await services.jobs.moves.fail(failed, JobError(code="internal", message="told by the test"))
    await http.post(f"/v1/jobs/{cancelled}/cancel")
    key = (await http.post("/admin/keys", json={"name": "k", "tenant": "t", "role": "user"})).json()["id"]
    others = {
        "meta_model_id": model.id,
        "adapted_id": adapted,
        "model": adapted,
        "key_id": key,
        "tenant": "t",
        "name": "config.json",
    }
    there = [{"job_id": job_id, **others} for job_id in (queued, running, failed, cancelled, model.job)]
    sound = {
        "/v1/jobs": request_body,
        "/v1/jobs/estimate": request_body,
        "/v1/meta-models/compare": {"first": model.id, "second": model.id},
        "/v1/meta-models/{meta_model_id}/adapt": task,
        "/v1/meta-models/{meta_model_id}/predict": {**task, "query": task["support"]["images"]},
    }
    key_of_server = {"Authorization": http.headers["authorization"]}
    ended = [{"job_id": job_id} for job_id in (cancelled, model.job)]  # their streams end
    stream = {**key_of_server, "Accept": "text/event-stream"}
    probe = await http.post("/v1/jobs/estimate", json={**request_body, "probe": True})
    assert probe.status_code == 200, probe.text
    assert await contradictions(http, document, stream, {EVENTS}, ended, sound={}) == []
    paths = set(document["paths"])
    assert await contradictions(http, document, key_of_server, paths, there, sound=sound, examples=6) == []
