"""Keys, roles, tenants, quotas: who may do what, and that nobody sees or spends what is another's."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog

from contracts.jobs import JobError
from contracts.problems import URN
from edge.failures import Failures
from meta_server.services import Services
from metering.ledger import Chunk, Outcome, QuotaReached

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def key(http: httpx.AsyncClient, **fields: Any) -> tuple[dict[str, str], str]:
    """Headers that send a new key, and its id."""
    made = (await http.post("/admin/keys", json={"name": "k", **fields})).json()
    return {"Authorization": f"Bearer {made['secret']}"}, made["id"]


async def test_what_another_tenant_has_is_not_there(http: httpx.AsyncClient, publish: Any, request_body: Any) -> None:
    model = await publish()
    job = (await http.get("/v1/jobs")).json()["items"][0]["id"]
    other, _ = await key(http, tenant="other")
    for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/jobs/{job}/answers", f"/jobs/{job}"):
        assert (await http.get(path, headers=other)).status_code == 404, path
    for path in (f"/v1/meta-models/{model.id}", f"/v1/meta-models/{model.id}/files/config.json"):
        assert (await http.get(path, headers=other)).status_code == 404, path
    for method, path in (("POST", "/pause"), ("POST", "/cancel"), ("DELETE", ""), ("PATCH", "")):
        refused = await http.request(method, f"/v1/jobs/{job}{path}", headers=other, json={})
        assert refused.status_code == 404, path
    unknown = (await http.get("/v1/jobs/job_none", headers=other)).json()
    foreign = (await http.get(f"/v1/jobs/{job}", headers=other)).json()
    assert foreign == {**unknown, "detail": f"there is no job {job}", "error": foreign["error"]}
    mine = (await http.post("/v1/jobs", json=request_body, headers=other)).json()["id"]
    for status in ("", "?status=queued"):
        listed = (await http.get(f"/v1/jobs{status}", headers=other)).json()["items"]
        assert [one["id"] for one in listed] == [mine]
    assert (await http.get("/v1/meta-models", headers=other)).json()["items"] == []
    assert mine not in (await http.get("/v1/jobs")).text
    assert (await http.get(f"/v1/jobs/{mine}")).status_code == 404
    assert [one["id"] for one in (await http.get("/v1/meta-models")).json()["items"]] == [model.id]


async def test_an_idempotency_key_is_its_tenants(http: httpx.AsyncClient, request_body: Any) -> None:
    other, _ = await key(http, tenant="other")
    same = {"Idempotency-Key": "k"}
    ids = {
        (await http.post("/v1/jobs", json=request_body, headers=headers)).json()["id"]
        for headers in (same, same, same | other, same | other)
    }
    assert len(ids) == 2


async def test_roles(http: httpx.AsyncClient, request_body: Any) -> None:
    viewer, _ = await key(http, role="viewer")
    user, user_id = await key(http, role="user")
    admin, _ = await key(http, role="admin")
    assert (await http.get("/v1/jobs", headers=viewer)).status_code == 200
    refused = await http.post("/v1/jobs", json=request_body, headers=viewer)
    assert (refused.status_code, refused.json()["type"]) == (403, f"{URN}forbidden")
    assert (await http.post("/v1/jobs", json=request_body, headers=user)).status_code == 202
    for headers in (viewer, user):
        assert (await http.get("/admin/keys", headers=headers)).status_code == 403
    listed = await http.get("/admin/keys", headers=admin)
    assert [one["role"] for one in listed.json()["items"]] == ["viewer", "user", "admin"]
    assert "secret" not in listed.text
    assert (await http.delete(f"/admin/keys/{user_id}", headers=admin)).json()["revoked"]
    assert (await http.get("/v1/jobs", headers=user)).status_code == 401
    past, _ = await key(http, expires_at="2020-01-01T00:00:00Z")
    assert (await http.get("/v1/jobs", headers=past)).status_code == 401


async def test_what_was_asked_is_written_down(http: httpx.AsyncClient, request_body: Any) -> None:
    user, user_id = await key(http, tenant="vision")
    await http.get("/v1/jobs", headers=user)
    await http.post("/v1/jobs", json=request_body, headers=user)
    await http.post("/v1/jobs", json={}, headers=user)
    entries = (await http.get("/admin/audit", params={"limit": 2})).json()
    told = [(one["tenant"], one["key"], one["action"], one["status"]) for one in entries["items"]]
    assert told == [("vision", user_id, "POST /v1/jobs", 422), ("vision", user_id, "POST /v1/jobs", 202)]
    rest = (await http.get("/admin/audit", params={"after": entries["next"]})).json()["items"]
    assert [(one["key"], one["action"]) for one in rest] == [("settings", "POST /admin/keys")]
    for first in ("0", "0-0"):
        assert (await http.get("/admin/audit", params={"after": first})).json() == {"items": [], "next": None}
    assert (await http.get("/admin/audit", params={"after": "9" * 20})).status_code == 422


async def test_a_tenant_has_no_more_jobs_than_its_quota(http: httpx.AsyncClient, request_body: Any) -> None:
    other, _ = await key(http, tenant="other")
    await http.put("/admin/tenants/other/quota", json={"running_jobs": 2})
    made = [await http.post("/v1/jobs", json=request_body, headers=other) for _ in range(3)]
    assert [one.status_code for one in made] == [202, 202, 409]
    assert (await http.post("/v1/jobs", json=request_body)).status_code == 202
    await http.post(f"/v1/jobs/{made[0].json()['id']}/cancel", headers=other)
    again = {"Idempotency-Key": "k"}
    assert (await http.post("/v1/jobs", json=request_body, headers=other | again)).status_code == 202
    assert (await http.post("/v1/jobs", json=request_body, headers=other | again)).status_code == 202


async def test_retrying_counts_against_the_quota_and_resuming_does_not(
    http: httpx.AsyncClient, services: Services, request_body: Any
) -> None:
    other, _ = await key(http, tenant="other")
    await http.put("/admin/tenants/other/quota", json={"running_jobs": 2})
    failed, resting = [(await http.post("/v1/jobs", json=request_body, headers=other)).json()["id"] for _ in range(2)]
    await services.jobs.moves.fail(failed, JobError(code="internal", message="told by the test"))
    assert (await http.post(f"/v1/jobs/{resting}/pause", headers=other)).json()["status"] == "paused"
    third = (await http.post("/v1/jobs", json=request_body, headers=other)).json()["id"]

    refused = await http.post(f"/v1/jobs/{failed}/retry", headers=other)
    assert refused.status_code == 409
    assert "2 jobs of the tenant other have not ended" in refused.json()["detail"]
    told = (await http.get(f"/v1/jobs/{failed}", headers=other)).json()
    assert (told["status"], told["error"]["code"]) == ("failed", "internal")  # nothing was done
    resumed = await http.post(f"/v1/jobs/{resting}/resume", headers=other)  # it never ended: it is one of the two
    assert (resumed.status_code, resumed.json()["status"]) == (200, "queued")

    await http.post(f"/v1/jobs/{third}/cancel", headers=other)
    retried = await http.post(f"/v1/jobs/{failed}/retry", headers=other)
    assert (retried.status_code, retried.json()["status"]) == (200, "queued")
    assert (await http.post("/v1/jobs", json=request_body, headers=other)).status_code == 409


async def test_a_tenant_sends_no_more_images_a_day_than_its_quota(
    http: httpx.AsyncClient, services: Services, request_body: Any
) -> None:
    other, _ = await key(http, tenant="other")
    await http.put("/admin/tenants/other/quota", json={"queries_a_day": 25})
    job = (await http.post("/v1/jobs", json=request_body, headers=other)).json()["id"]
    lease = await services.jobs.take(job, "acquire:a0", "test")
    assert lease is not None
    await services.jobs.work.begin(job, lease)
    ledger = services.jobs.ledger(job)

    def chunk(number: int, images: int) -> Chunk:
        return Chunk(api="a0", number=number, start=0, stop=images, digest="d" * 64)

    await ledger.reserve(lease, chunk(0, 10))
    await ledger.reserve(lease, chunk(1, 10))
    await ledger.settle(lease, chunk(0, 10), Outcome.RELEASED)
    await ledger.reserve(lease, chunk(2, 15))
    with pytest.raises(QuotaReached) as reached:
        await ledger.reserve(lease, chunk(3, 1))
    assert 0 < reached.value.seconds <= 86400
    assert (await http.get("/admin/tenants/other")).json()["queries_today"] == 25
    await http.put("/admin/tenants/other/quota", json={})
    await ledger.reserve(lease, chunk(3, 1))


async def test_no_body_is_read_before_the_key_is_known(http: httpx.AsyncClient) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1000

    paths = ("/v1/jobs", "/v1/meta-models/x/predict", "/v1/models/x/classify", "/v2/models/x/infer", "/admin/keys")
    for path in paths:
        refused = await http.post(path, content=body(), headers={"Authorization": "Bearer wrong"})
        assert (refused.status_code, read) == (401, 0), path
        assert refused.headers["x-request-id"]


async def test_many_wrong_keys_are_slowed_down_and_right_ones_are_not(http: httpx.AsyncClient) -> None:
    http.app.state.failures = Failures(most=3)  # type: ignore[attr-defined]
    wrong = {"Authorization": "Bearer mzs_0123456789abcdef_" + "x" * 43}
    seen = [await http.get("/v1/jobs", headers=wrong) for _ in range(5)]
    assert [one.status_code for one in seen] == [401, 401, 401, 429, 429]
    assert 0 < int(seen[-1].headers["retry-after"]) <= 60
    assert (await http.get("/v1/jobs")).status_code == 200


async def test_lines_of_the_log_name_tenant_and_job(
    http: httpx.AsyncClient, services: Services, request_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, _ = await key(http, tenant="vision")
    job_id = (await http.post("/v1/jobs", json=request_body, headers=headers)).json()["id"]

    async def broken(*_: str) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(type(services.jobs), "get", broken)
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
        assert (await http.get(f"/v1/jobs/{job_id}", headers=headers)).status_code == 500
    (line,) = [line for line in logged if line["event"] == "request_failed"]
    assert (line["tenant"], line["job_id"]) == ("vision", job_id)
