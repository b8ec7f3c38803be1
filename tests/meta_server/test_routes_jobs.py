"""Jobs over REST: refused whole with every fault named, or stored, queued and told again."""

import base64
import json
from typing import Any

import anyio
import httpx
import pytest
import redis

from contracts.problems import MEDIA_TYPE, URN
from meta_server.queue import ACQUIRE_QUEUE

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def named(response: httpx.Response) -> set[str]:
    assert response.status_code == 422
    assert response.headers["content-type"] == MEDIA_TYPE
    return {fault["field"] for fault in response.json()["errors"]}


async def begun(url: str, most: int) -> list[str]:
    """Ids of the jobs that workers are told to begin, in their order, once they are `most`."""
    with redis.Redis.from_url(url) as connection, anyio.fail_after(60):
        while True:
            messages: list[bytes] = connection.lrange(ACQUIRE_QUEUE, 0, -1)  # type: ignore[assignment]
            sent = [json.loads(base64.b64decode(json.loads(each)["body"]))[0][0] for each in reversed(messages)]
            ids = [job_id for message in sent for job_id in message]
            if len(ids) >= most:
                return ids
            await anyio.sleep(0.01)


async def test_a_job_is_stored_and_its_apis_queued(http: httpx.AsyncClient, request_body: Any, redis_url: str) -> None:
    response = await http.post("/v1/jobs", json=request_body)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["budget"]["left"], len(job["progress"]["per_api"])) == ("queued", 100, 2)
    assert await begun(redis_url, 1) == [job["id"]]
    assert (await http.get(response.headers["location"])).json() == job


async def test_no_answer_and_no_message_holds_a_teachers_key(
    http: httpx.AsyncClient, request_body: Any, redis_url: str
) -> None:
    created = await http.post("/v1/jobs", json=request_body)
    await begun(redis_url, 1)
    pages = [await http.get(path) for path in ("/v1/jobs", f"{created.headers['location']}/events")]
    assert all("teacher-secret" not in response.text for response in [created, *pages])
    with redis.Redis.from_url(redis_url) as connection:
        assert b"teacher-secret" not in b"".join(connection.lrange(ACQUIRE_QUEUE, 0, -1))  # type: ignore[arg-type]
    bad = request_body | {"apis": [{"url": "x", "api_key": "teacher-secret", "surprise": "teacher-secret"}]}
    assert "teacher-secret" not in (await http.post("/v1/jobs", json=bad)).text


async def test_the_same_key_makes_one_job(http: httpx.AsyncClient, request_body: Any, redis_url: str) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await http.post("/v1/jobs", json=request_body, headers=headers)
    again = await http.post("/v1/jobs", json=request_body, headers=headers)
    other = await http.post("/v1/jobs", json=request_body | {"seed": 1}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    last = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    assert await begun(redis_url, 2) == [first.json()["id"], last]
    assert (other.status_code, other.json()["type"]) == (422, f"{URN}key-reused")


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"apis": [], "budget": {}, "seed": -1, "surprise": 1}, {"apis", "budget.queries", "seed", "surprise"}),
        (
            {"apis": [{"url": "ftp://x/y"}, {"url": "http://u:p@host/x"}, {}]},
            {"apis.0.url", "apis.1.url", "apis.2.url"},
        ),
        ({"method": {"name": "magic"}}, {"method.name"}),
        ({"method": {"name": "pqd", "stepz": 5, "batch": 1}}, {"method.stepz", "method.batch"}),
        ({"budget": {"queries": 0}}, {"budget.queries"}),
        ({"budget": {"queries": 1}, "min_apis": 3}, {"budget.queries", "min_apis"}),
        ({"apis": [{"url": "http://a/v2/models/x"}, {"url": "http://a/v2/models/x/"}]}, {"apis.1.url"}),
        ({"evaluation": {"ways": 1, "shots": [0]}}, {"evaluation.ways", "evaluation.shots.0"}),
    ],
)
async def test_every_fault_is_named_and_nothing_is_done(
    change: dict[str, Any], fields: set[str], http: httpx.AsyncClient, request_body: Any, redis_url: str
) -> None:
    response = await http.post("/v1/jobs", json=request_body | change)
    assert named(response) == fields
    assert response.json()["type"] == f"{URN}invalid-request"
    assert all(fault["message"] in response.json()["error"] for fault in response.json()["errors"])
    assert (await http.get("/v1/jobs")).json() == {"items": [], "next": None}
    sound = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    assert await begun(redis_url, 1) == [sound]


async def test_faults_can_be_read(http: httpx.AsyncClient, request_body: Any) -> None:
    response = await http.post("/v1/jobs", json=request_body | {"method": {"stepz": 1}, "budget": {}})
    assert {fault["field"]: fault["message"] for fault in response.json()["errors"]} == {
        "method.stepz": "is no field that is known here: check its spelling",
        "budget.queries": "is required",
    }


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"\xff\xfe{}", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"seed": ' + b"1" * 5000 + b"}", "application/json", 400),
        (b'{"seed": 1e999, "budget": {"queries": NaN}}', "application/json", 422),
        (b"apis=1", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_bodies_that_are_no_job(content: bytes, kind: str, status: int, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/jobs", content=content, headers={"Content-Type": kind})
    assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)


async def test_pages_are_newest_first_and_filtered(http: httpx.AsyncClient, request_body: Any) -> None:
    made = [(await http.post("/v1/jobs", json=request_body | {"name": f"n{at}"})).json()["id"] for at in range(5)]
    await http.post(f"/v1/jobs/{made[1]}/cancel")
    seen, after = [], None
    while True:
        page = (await http.get("/v1/jobs", params={"limit": 2} | ({"after": after} if after else {}))).json()
        seen += [job["id"] for job in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == sorted(made, reverse=True)
    cancelled = (await http.get("/v1/jobs", params={"status": "cancelled"})).json()["items"]
    assert [job["id"] for job in cancelled] == [made[1]]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/jobs?limit=0", "limit"),
        ("/v1/jobs?status=asleep", "status"),
        ("/v1/jobs/x/events?after=newest", "after"),
        ("/v1/jobs/x/events?limit=1001", "limit"),
    ],
)
async def test_bad_parameters_are_named(path: str, field: str, http: httpx.AsyncClient) -> None:
    assert named(await http.get(path)) == {field}


async def test_cancelling(http: httpx.AsyncClient, request_body: Any) -> None:
    where = (await http.post("/v1/jobs", json=request_body)).headers["location"]
    assert (await http.post(f"{where}/cancel")).json()["status"] == "cancelled"
    again = await http.post(f"{where}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, f"{URN}conflict")


async def test_pausing_and_resuming_a_queued_job(http: httpx.AsyncClient, request_body: Any, redis_url: str) -> None:
    where = (await http.post("/v1/jobs", json=request_body)).headers["location"]
    paused = (await http.post(f"{where}/pause")).json()
    assert (paused["status"], paused["reason"]) == ("paused", "paused on request")
    assert (await http.post(f"{where}/pause")).json() == paused
    retried = await http.post(f"{where}/retry")
    assert (retried.status_code, retried.json()["type"]) == (409, f"{URN}conflict")
    resumed = (await http.post(f"{where}/resume")).json()
    assert (resumed["status"], resumed["reason"]) == ("queued", None)
    assert await begun(redis_url, 2) == [resumed["id"]] * 2  # once more: the first message found nothing to do


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/job_none"),
        *(("POST", f"/v1/jobs/job_none/{move}") for move in ("cancel", "pause", "resume", "retry")),
        ("GET", "/v1/jobs/job_none/events"),
        ("GET", "/v1/meta-models/mm_none"),
        ("GET", "/v1/meta-models/mm_none/files/config.json"),
        ("GET", "/v1/nothing"),
    ],
)
async def test_what_is_not_there(method: str, path: str, http: httpx.AsyncClient) -> None:
    for accept in ("application/json", "text/event-stream"):
        response = await http.request(method, path, headers={"Accept": accept})
        assert (response.status_code, response.json()["type"]) == (404, f"{URN}not-found")


async def test_methods_that_are_not_taken(http: httpx.AsyncClient) -> None:
    response = await http.put("/v1/jobs")
    assert (response.status_code, response.json()["type"]) == (405, f"{URN}method-not-allowed")
    assert response.headers["allow"]


async def test_answers_of_jobs_that_have_ended_alone_are_used_again(
    http: httpx.AsyncClient, request_body: dict[str, Any]
) -> None:
    first = (await http.post("/v1/jobs", json=request_body)).json()["id"]
    theirs = (await http.post("/admin/keys", json={"name": "b", "tenant": "other"})).json()["secret"]
    asked = request_body | {"reuse": [first, "job_none"]}
    for path in ("/v1/jobs", "/v1/jobs/estimate"):
        refused = await http.post(path, json=asked)
        faults = [(fault["field"], fault["message"]) for fault in refused.json()["errors"]]
        assert faults == [
            ("reuse.0", "has not ended: wait for it, or cancel it"),
            ("reuse.1", "there is no such job"),
        ]
    await http.post(f"/v1/jobs/{first}/cancel")
    made = await http.post("/v1/jobs", json=request_body | {"reuse": [first]})
    assert (made.status_code, made.json()["request"]["reuse"]) == (202, [first])
    key = {"Authorization": f"Bearer {theirs}"}
    foreign = await http.post("/v1/jobs", json=request_body | {"reuse": [first]}, headers=key)
    assert [fault["message"] for fault in foreign.json()["errors"]] == ["there is no such job"]
    adaptive = request_body | {"reuse": [first, first], "method": {"name": "bidf_mkd"}}
    faults = (await http.post("/v1/jobs", json=adaptive)).json()["errors"]
    assert [fault["field"].removeprefix("body.") for fault in faults] == ["reuse", "reuse.1"]
