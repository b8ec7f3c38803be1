"""What a job has come to, over REST: budget, metrics, answers with ranges, images; and its end by deletion."""

import io
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

from contracts.jobs import JobRequest
from contracts.problems import URN
from dfml.plans import Limits, plan
from meta_server.files import _part
from meta_server.planning import pinned
from meta_server.services import Services
from metering.ledger import Chunk, Outcome

ANSWER = {"indices": np.arange(10), "probabilities": np.eye(10, 3, dtype="float32")}


@pytest.fixture
async def job(http: httpx.AsyncClient, services: Services, request_body: Any) -> str:
    """Path of a job that was answered twelve chunks by its first API, and has trained for two steps."""
    job_id: str = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    lease = await services.jobs.take(job_id, "acquire:a0", "test")
    assert lease is not None
    await services.jobs.work.begin(job_id, lease)
    await services.jobs.work.agree_on_shape(job_id, lease, (3, 16, 16))
    ledger = services.jobs.ledger(job_id)
    for number in range(12):
        chunk = Chunk(api="a0", number=number, start=number, stop=number + 1, digest="d" * 64)
        await ledger.reserve(lease, chunk)
        path = f"jobs/{job_id}/answers/{chunk.id}-1.safetensors"
        services.artifacts.write(path, save(ANSWER))
        await ledger.settle(lease, chunk, Outcome.CONFIRMED, path=path)
    for step in (1, 2):
        await services.jobs.work.metrics(job_id, lease, step, 2, {"loss": 1 / step})
    await services.jobs.leases.release(lease)
    return f"/v1/jobs/{job_id}"


@pytest.mark.anyio
@pytest.mark.redis
async def test_what_a_job_has_come_to(http: httpx.AsyncClient, job: str) -> None:
    assert (await http.get(f"{job}/budget")).json() == (await http.get(job)).json()["budget"]
    first = (await http.get(f"{job}/metrics", params={"limit": 1})).json()
    rest = (await http.get(f"{job}/metrics", params={"after": first["last"]})).json()
    assert [(one["step"], one["values"]) for one in first["items"] + rest["items"]] == [
        (1, {"loss": 1.0}),
        (2, {"loss": 0.5}),
    ]
    assert rest["last"] is None
    page = (await http.get(f"{job}/answers", params={"limit": 11})).json()
    assert [one["name"] for one in page["items"]] == [f"a0.{number}" for number in range(11)]
    rest = (await http.get(f"{job}/answers", params={"after": page["next"]})).json()
    assert rest == {"items": [{"name": "a0.11", "api": "a0", "images": 1}], "next": None}
    sheet = await http.get(f"{job}/images", params={"count": 9})
    assert Image.open(io.BytesIO(sheet.content)).size == (8 * 16 + 7 * 2, 2 * 16 + 2)


@pytest.mark.anyio
@pytest.mark.redis
async def test_answers_are_downloaded_whole_or_in_parts(http: httpx.AsyncClient, job: str) -> None:
    whole = await http.get(f"{job}/answers/a0.3")
    assert (load(whole.content)["probabilities"] == ANSWER["probabilities"]).all()
    part = await http.get(f"{job}/answers/a0.3", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    beyond = await http.get(f"{job}/answers/a0.3", headers={"Range": "bytes=99999-"})
    assert (beyond.status_code, beyond.json()["type"]) == (416, f"{URN}range-not-satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert (await http.get(f"{job}/answers/a0.99")).status_code == 404


@pytest.mark.anyio
@pytest.mark.redis
async def test_a_job_is_changed_and_deleted_with_its_answers(
    http: httpx.AsyncClient, job: str, services: Services
) -> None:
    changed = (await http.patch(job, json={"tags": ["t"], "budget": {"queries": 1000}})).json()
    assert (changed["tags"], changed["budget"]["limit"], changed["request"]["budget"]["queries"]) == (["t"], 1000, 1000)
    assert (await http.patch(job, json={"status": "failed"})).status_code == 422
    assert [one["id"] for one in (await http.get("/v1/jobs?tag=t")).json()["items"]] == [changed["id"]]
    assert (await http.delete(job)).status_code == 409
    await http.post(f"{job}/cancel")
    assert (await http.delete(job)).status_code == 204
    assert services.artifacts.list(f"jobs/{changed['id']}") == []
    assert (await http.get(job)).status_code == (await http.delete(job)).status_code == 404


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60) | st.none())
def test_parts_are_those_of_the_content(size: int, first: int, last: int | None) -> None:
    content = bytes(range(size))
    found = _part(f"bytes={first}-{'' if last is None else last}", size)
    if last is not None and last < first:
        assert found is None
    else:
        assert found is not None
        assert content[slice(*found)] == content[first : size if last is None else last + 1]
    suffix = _part(f"bytes=-{first}", size)
    assert suffix is not None
    assert content[slice(*suffix)] == (content[-first:] if first else b"")


@pytest.mark.parametrize("said", [None, "", "bytes=", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=--1"])
def test_what_is_no_range_is_ignored(said: str | None) -> None:
    assert _part(said, 10) is None


@given(
    st.integers(1, 12),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.none() | st.integers(1, 8),
    st.none() | st.just(64),
    st.none() | st.integers(1, 300),
)
@settings(deadline=None)
def test_a_raised_budget_goes_on_where_the_smaller_stood(
    apis: int, queries: int, more: int, each: int | None, pool: int | None, most: int | None
) -> None:
    listed = [{"url": f"http://a.test/{at}"} for at in range(apis)]
    method = {"apis_per_image": each, "images": pool}
    budget = {"queries": apis + queries, "queries_per_api": most}
    body = {"apis": listed, "budget": budget, "method": method}
    request = pinned(JobRequest.model_validate(body))

    def assigned(queries: int, most: int | None) -> Any:
        return plan(request.method, Limits(queries, apis, most), seed=0).assigned

    small, large = assigned(apis + queries, most), assigned(apis + queries + more, most and most + more)
    assert [list(one) for one in small] == [list(two[: len(one)]) for one, two in zip(small, large, strict=True)]
    first = plan(JobRequest.model_validate(body).method, Limits(apis + queries, apis, most), seed=0)
    assert [list(one) for one in small] == [list(two) for two in first.assigned]
