"""The zoo over a real Redis, called in process: what it answers, what it charges, what it refuses."""

import json
import math
from datetime import UTC, datetime, timedelta

import anyio
import httpx
import pytest
import torch

from api_zoo.inference import Model
from contracts import oip
from contracts.problems import MEDIA_TYPE, URN

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


def problem(response: httpx.Response, status: int, name: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.headers["x-request-id"]
    told = response.json()
    assert (told["type"], told["status"]) == (URN + name, status)
    assert isinstance(told["error"], str)
    return told


def answered(response: httpx.Response) -> torch.Tensor:
    assert response.status_code == 200, response.text
    (output,) = oip.decode_response(response.content, response.headers.get(oip.HEADER)).outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    return torch.frombuffer(bytearray(output.data), dtype=torch.float32).view(output.shape)


# What it says of itself


async def test_anyone_may_ask_how_the_server_is(zoo) -> None:
    assert "binary_tensor_data" in (await zoo.http.get("/v2")).json()["extensions"]
    assert (await zoo.http.get("/v2/health/live")).json() == {"live": True}
    assert (await zoo.http.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_model_describes_itself(zoo) -> None:
    key = await zoo.key()
    told = (await zoo.http.get("/v2/models/colours", headers=key)).json()
    assert told["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 2, 2]}]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert told["parameters"]["labels"] == ["red", "green", "blue"]
    assert (told["parameters"]["max_images"], told["parameters"]["idempotency"]) == (8, True)
    assert (await zoo.http.get("/v2/models/colours/ready", headers=key)).json() == {"name": "colours", "ready": True}


async def test_the_index_lists_what_the_key_may_use(zoo) -> None:
    every, one = await zoo.key(), await zoo.key(models=["others"])
    for key, names in ((every, ["colours", "others"]), (one, ["others"])):
        for body in ({}, {"ready": True}, None):
            listed = await zoo.http.post("/v2/repository/index", headers=key, json=body)
            assert [model["name"] for model in listed.json()] == names


async def test_no_route_tells_of_models_without_a_key(zoo) -> None:
    for method, path in [
        ("GET", "/v2/models/colours"),
        ("GET", "/v2/models/colours/ready"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/models/colours/infer"),
        ("GET", "/v1/usage"),
    ]:
        problem(await zoo.http.request(method, path), 401, "unauthorized")


# Answers


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
async def test_images_are_classified_and_counted(zoo, colours, binary: bool, dtype: torch.dtype) -> None:
    key = await zoo.key()
    images = colours(5) if dtype is torch.uint8 else colours(5).float() / 255
    response = await zoo.infer(key, images, binary=binary)
    rows = answered(response)
    assert rows.argmax(1).tolist() == [0, 1, 2, 0, 1]
    torch.testing.assert_close(rows[0], torch.tensor([10.0, 0.0, 0.0]).softmax(0))
    assert response.headers["content-type"] == (oip.BINARY if binary else "application/json")
    assert response.headers["x-query-cost"] == "5"
    assert (await zoo.http.get("/v1/usage", headers=key)).json()["per_model"] == {"colours": 5}


async def test_nested_json_the_id_and_a_named_output_are_understood(zoo) -> None:
    image = [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    body = {
        "id": "mine",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [image]}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    response = await zoo.http.post("/v2/models/colours/infer", json=body, headers=await zoo.key())
    assert oip.decode_response(response.content, response.headers[oip.HEADER]).id == "mine"
    assert answered(response).argmax().item() == 0


async def test_the_callers_request_id_comes_back(zoo, colours) -> None:
    key = await zoo.key()
    assert (await zoo.infer(key, colours(1), **{"X-Request-Id": "run-7"})).headers["x-request-id"] == "run-7"
    forged = await zoo.infer(key, colours(1), **{"X-Request-Id": "a b;c"})
    assert forged.headers["x-request-id"] != "a b;c"


# Bad input: a 4xx each, with every fault, and nothing charged


def request_of(**changed) -> dict:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 3, 2, 2], "data": [0] * 12}
    return {"inputs": [{**tensor, **changed}]}


@pytest.mark.parametrize(
    ("body", "status", "name", "field"),
    [
        (b"", 400, "malformed", "body"),
        (b"not json", 400, "malformed", "body"),
        (b"[1]", 400, "malformed", "body"),
        (b"[" * 2000, 400, "malformed", "body"),
        (b"\xff\xfe", 400, "malformed", "body"),
        ({}, 400, "malformed", "inputs"),
        ({"inputs": []}, 400, "malformed", "inputs"),
        ({"inputs": [7]}, 400, "malformed", "inputs.0"),
        (request_of(datatype="COMPLEX"), 400, "malformed", "inputs.0.datatype"),
        (request_of(shape=[-1, 3, 2, 2]), 400, "malformed", "inputs.0.shape"),
        (request_of(shape=[2**40, 3, 2, 2]), 400, "malformed", "inputs.0.shape"),
        (request_of(shape=[2**30, 2**30, 2**30, 2**30]), 400, "malformed", "inputs.0.data"),
        (request_of(data=[0] * 11), 400, "malformed", "inputs.0.data"),
        (request_of(data=[300] * 12), 400, "malformed", "inputs.0.data"),
        (request_of(data="zeros"), 400, "malformed", "inputs.0.data"),
        (request_of(parameters={"binary_data_size": 12}), 400, "malformed", "inputs.0.parameters.binary_data_size"),
        ({**request_of(), "outputs": [{"name": "logits"}]}, 400, "malformed", "outputs.0.name"),
        (request_of(name="pixels"), 422, "invalid-request", "inputs.0.name"),
        (request_of(datatype="INT64"), 422, "invalid-request", "inputs.0.datatype"),
        (request_of(datatype="FP64"), 422, "invalid-request", "inputs.0.datatype"),
        (request_of(shape=[1, 2, 2, 3]), 422, "invalid-request", "inputs.0.shape"),
        (request_of(shape=[12]), 422, "invalid-request", "inputs.0.shape"),
        (request_of(shape=[0, 3, 2, 2], data=[]), 422, "invalid-request", "inputs.0.shape"),
        (request_of(datatype="FP32", data=[1.5] * 12), 422, "invalid-request", "inputs.0.data"),
        ({"inputs": request_of()["inputs"] * 2}, 422, "invalid-request", "inputs"),
    ],
)
async def test_bad_requests_name_their_fault_and_cost_nothing(zoo, body, status: int, name: str, field: str) -> None:
    key = await zoo.key(budget=10)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {**key, "Content-Type": "application/json"}
    told = problem(await zoo.http.post("/v2/models/colours/infer", content=content, headers=headers), status, name)
    assert field in [fault["field"] for fault in told["errors"]]
    assert await zoo.spent(key) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5, 255.0])
async def test_pixels_that_are_none_cost_nothing(zoo, colours, value: float) -> None:
    key = await zoo.key(budget=10)
    images = colours(3).float() / 255
    images[2, 1, 0, 1] = value
    told = problem(await zoo.infer(key, images), 422, "invalid-request")
    assert "send FP32 in [0, 1], or UINT8" in told["error"]
    assert await zoo.spent(key) == 0


@pytest.mark.parametrize("length", ["9999", "-1", "x", "1e3", "9" * 30])
async def test_a_json_part_beyond_the_body_is_refused(zoo, colours, length: str) -> None:
    key = await zoo.key(budget=10)
    problem(await zoo.infer(key, colours(1), **{oip.HEADER: length}), 400, "malformed")
    assert await zoo.spent(key) == 0


async def test_too_many_images_are_refused_with_the_most_there_may_be(zoo, colours) -> None:
    key = await zoo.key(budget=100)
    assert problem(await zoo.infer(key, colours(9)), 413, "too-large")["max_images"] == 8
    slow = await zoo.key(images_per_second=1, burst=4)
    assert problem(await zoo.infer(slow, colours(5)), 413, "too-large")["max_images"] == 4
    assert (await zoo.spent(key), await zoo.spent(slow)) == (0, 0)


async def test_an_oversized_body_is_refused_by_what_it_says_and_by_what_comes(zoo) -> None:
    key = await zoo.key(budget=10)

    async def endless():
        for _ in range(100):
            yield b" " * 100

    for content in (b" " * 4097, endless()):
        told = problem(await zoo.http.post("/v2/models/colours/infer", content=content, headers=key), 413, "too-large")
        assert "4096 bytes" in told["error"]
    assert await zoo.spent(key) == 0


async def test_a_body_that_drips_is_refused(running, redis_url: str) -> None:
    async def dripping():
        while True:
            yield b" "
            await anyio.sleep(0.02)

    async with running(redis_url, body_seconds=0.1) as zoo:
        key = await zoo.key(budget=10)
        problem(await zoo.http.post("/v2/models/colours/infer", content=dripping(), headers=key), 408, "timeout")


@pytest.mark.parametrize(
    "headers",
    [{"Content-Encoding": "br"}, {"Content-Encoding": "gzip, gzip"}, {"Content-Type": "multipart/form-data"}],
)
async def test_bodies_of_another_kind_are_refused(zoo, colours, headers: dict[str, str]) -> None:
    key = await zoo.key(budget=10)
    problem(await zoo.infer(key, colours(1), **headers), 415, "unsupported-media-type")
    assert await zoo.spent(key) == 0


@pytest.mark.parametrize("name", ["nothing", "..%2F..%2Fetc%2Fpasswd", "colours%00", "x" * 300])
async def test_an_unknown_model_is_not_found(zoo, colours, name: str) -> None:
    response = await zoo.infer(await zoo.key(), colours(1), model=name)
    assert response.status_code in {404, 422}
    assert response.headers["content-type"] == MEDIA_TYPE


async def test_a_method_that_is_none_is_refused(zoo) -> None:
    problem(await zoo.http.put("/v2/models/colours/infer", headers=await zoo.key()), 405, "method-not-allowed")


# Keys


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer nonsense", "Basic bXo6", "Bearer mz_abc_def", "Bearer mz_" + "a" * 12 + "_" + "b" * 43],
)
async def test_keys_that_are_none_are_refused(zoo, colours, sent: str) -> None:
    told = problem(await zoo.infer({"Authorization": sent}, colours(1)), 401, "unauthorized")
    assert "mz_" in told["detail"]


async def test_a_revoked_key_is_refused(zoo, colours, admin) -> None:
    key = await zoo.key()
    key_id = (await zoo.http.get("/v1/usage", headers=key)).json()["key"]
    assert (await zoo.infer(key, colours(1))).status_code == 200
    revoked = await zoo.http.delete(f"/admin/keys/{key_id}", headers=admin)
    assert revoked.json()["revoked"] is True
    problem(await zoo.infer(key, colours(1)), 401, "unauthorized")
    used = await zoo.http.get(f"/admin/keys/{key_id}/usage", headers=admin)
    assert used.json()["spent"] == 1


async def test_a_key_opens_only_its_models(zoo, colours) -> None:
    key = await zoo.key(models=["others"])
    assert (await zoo.infer(key, colours(1), model="others")).status_code == 200
    problem(await zoo.infer(key, colours(1)), 403, "forbidden")
    problem(await zoo.http.get("/v2/models/colours", headers=key), 403, "forbidden")


async def test_the_admin_lists_and_shows_keys_but_no_secret(zoo, admin) -> None:
    made = (await zoo.http.post("/admin/keys", json={"name": "me", "budget": 5}, headers=admin)).json()
    assert made["secret"].startswith(f"mz_{made['id']}_")
    listed = (await zoo.http.get("/admin/keys", headers=admin)).json()
    shown = (await zoo.http.get(f"/admin/keys/{made['id']}", headers=admin)).json()
    assert listed == [shown]
    assert "secret" not in shown
    assert (shown["name"], shown["budget"], shown["spent"]) == ("me", 5, 0)


async def test_only_the_admin_key_opens_the_admin_routes(zoo) -> None:
    key = await zoo.key()
    for headers in ({}, key, {"Authorization": "Bearer "}, {"Authorization": "Bearer admin-key-of-the-test"}):
        for method, path in [("POST", ""), ("GET", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/usage")]:
            problem(await zoo.http.request(method, f"/admin/keys{path}", headers=headers), 401, "unauthorized")


async def test_keys_that_cannot_be_are_refused_with_every_fault(zoo, admin) -> None:
    wrong = {"budget": -1, "images_per_second": 0, "burst": 0, "colour": "red"}
    told = problem(await zoo.http.post("/admin/keys", json=wrong, headers=admin), 422, "invalid-request")
    assert {fault["field"] for fault in told["errors"]} == set(wrong)
    told = problem(await zoo.http.post("/admin/keys", json={"burst": 3}, headers=admin), 422, "invalid-request")
    assert [fault["field"] for fault in told["errors"]] == ["burst"]
    problem(await zoo.http.post("/admin/keys", json={"models": ["nothing"]}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.get("/admin/keys/none", headers=admin), 404, "not-found")
    problem(await zoo.http.delete("/admin/keys/none", headers=admin), 404, "not-found")


# Limits


async def test_a_spent_budget_refuses_whole_and_says_what_is_left(zoo, colours) -> None:
    key = await zoo.key(budget=7)
    first = await zoo.infer(key, colours(5))
    assert first.headers["ratelimit-policy"] == '"budget";q=7;qu="images"'
    assert first.headers["ratelimit"] == '"budget";r=2'
    refused = await zoo.infer(key, colours(3))
    assert problem(refused, 402, "budget-exhausted")["left"] == 2
    assert "retry-after" not in refused.headers
    assert refused.headers["ratelimit"] == '"budget";r=2'
    assert (await zoo.infer(key, colours(2))).status_code == 200
    assert await zoo.spent(key) == 7


async def test_a_budget_of_zero_answers_nothing(zoo, colours) -> None:
    key = await zoo.key(budget=0)
    assert problem(await zoo.infer(key, colours(1)), 402, "budget-exhausted")["left"] == 0


async def test_too_fast_says_when_to_come_back(zoo, colours) -> None:
    key = await zoo.key(images_per_second=0.5, burst=4, budget=100)
    first = await zoo.infer(key, colours(4))
    assert first.headers["ratelimit-policy"] == '"burst";q=4;w=8;qu="images", "budget";q=100;qu="images"'
    assert first.headers["ratelimit"] == '"burst";r=0;t=8, "budget";r=96'
    refused = await zoo.infer(key, colours(2))
    told = problem(refused, 429, "rate-limited")
    assert 0 < told["retry_after"] <= int(refused.headers["retry-after"]) == 4
    assert await zoo.spent(key) == 4


async def test_too_many_at_once_says_when_to_come_back_and_frees_its_slot(zoo, colours) -> None:
    key = await zoo.key(concurrency=1)
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model, seconds=0.3)
    found: list[httpx.Response] = []

    async def ask() -> None:
        found.append(await zoo.infer(key, colours(1)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    refused, granted = sorted(found, key=lambda response: -response.status_code)
    assert granted.headers["ratelimit-policy"] == '"concurrency";q=1;qu="concurrent-requests"'
    assert granted.headers["ratelimit"] == '"concurrency";r=0'
    problem(refused, 429, "rate-limited")
    assert refused.headers["retry-after"] == "1"
    assert (await zoo.infer(key, colours(1))).status_code == 200
    assert await zoo.spent(key) == 2


async def test_requests_a_second_are_limited_beside_images(zoo, colours) -> None:
    key = await zoo.key(requests_per_second=0.5)
    assert (await zoo.infer(key, colours(3))).headers["ratelimit"] == '"requests";r=0;t=2'
    refused = await zoo.infer(key, colours(1))
    problem(refused, 429, "rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert await zoo.spent(key) == 3


async def test_a_key_without_limits_states_none(zoo, colours) -> None:
    response = await zoo.infer(await zoo.key(), colours(1))
    assert "ratelimit" not in response.headers
    assert "ratelimit-policy" not in response.headers


# Replay


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


# What fails is given back


class Failing:
    """Stands in for a model's engine: fails, or takes its time."""

    def __init__(self, model, seconds: float | None = None) -> None:
        self.model, self.seconds = model, seconds

    def __call__(self, images: torch.Tensor) -> bytes:
        if self.seconds is None:
            raise RuntimeError("the engine broke")
        import time

        time.sleep(self.seconds)
        return type(self.model).answer(self.model, images)


async def test_an_engine_that_fails_charges_nothing(zoo, colours, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await zoo.key(budget=10)
    model = zoo.app.state.services.models["colours"]
    with monkeypatch.context() as patched:
        patched.setattr(model, "answer", Failing(model))
        told = problem(await zoo.infer(key, colours(4), **{"Idempotency-Key": "once"}), 500, "internal")
        assert "broke" not in told["error"]
        assert await zoo.spent(key) == 0
    assert (await zoo.infer(key, colours(4), **{"Idempotency-Key": "once"})).status_code == 200
    assert await zoo.spent(key) == 4


async def test_an_engine_that_is_too_slow_charges_nothing(running, redis_url: str, colours) -> None:
    async with running(redis_url, answer_seconds=0.05) as zoo:
        key = await zoo.key(budget=10)
        model = zoo.app.state.services.models["colours"]
        model.answer = Failing(model, seconds=0.3)
        refused = await zoo.infer(key, colours(4))
        problem(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert await zoo.spent(key) == 0


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


async def test_a_caller_that_goes_away_is_not_charged(zoo, colours) -> None:
    key = await zoo.key(budget=10)
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model, seconds=0.3)
    with anyio.move_on_after(0.1):
        await zoo.infer(key, colours(4))
    assert await zoo.spent(key) == 0


async def test_concurrent_callers_never_get_more_than_the_budget(zoo, colours) -> None:
    key = await zoo.key(budget=25)
    found: list[httpx.Response] = []

    async def ask(n: int) -> None:
        found.append(await zoo.infer(key, colours(n)))

    async with anyio.create_task_group() as tasks:
        for n in [1, 2, 3, 4] * 5:
            tasks.start_soon(ask, n)
    granted = sum(len(answered(response)) for response in found if response.status_code == 200)
    assert {response.status_code for response in found} == {200, 402}
    assert granted == await zoo.spent(key) <= 25


# Policies


async def test_metadata_states_the_policy_and_answers_follow_it(zoo, running, redis_url, colours) -> None:
    hosted = zoo.app.state.services.models["colours"]
    model = Model("terse", hosted._module(), hosted.labels, hosted.input_shape, policy="label", eight_bit_only=True)
    async with running(redis_url, {"terse": model}) as terse:
        key = await terse.key()
        told = (await terse.http.get("/v2/models/terse", headers=key)).json()["parameters"]
        assert (told["response_policy"], told["datatypes"]) == ("label", ["UINT8"])
        rows = answered(await terse.infer(key, colours(3), model="terse"))
        assert rows.tolist() == torch.eye(3).tolist()
        problem(await terse.infer(key, colours(3).float() / 255, model="terse"), 422, "invalid-request")
        assert await terse.spent(key) == 3


# Top-up, expiry, notes, audit


def id_of(key: dict[str, str]) -> str:
    return key["Authorization"].split("_")[1]


async def test_a_top_up_lets_a_spent_key_go_on(zoo, colours, admin) -> None:
    key = await zoo.key(budget=2)
    assert (await zoo.infer(key, colours(2))).status_code == 200
    problem(await zoo.infer(key, colours(1)), 402, "budget-exhausted")
    path = f"/admin/keys/{id_of(key)}/top-up"
    raised = await zoo.http.post(path, json={"images": 3}, headers=admin)
    assert (raised.json()["budget"], raised.json()["spent"]) == (5, 2)
    assert (await zoo.infer(key, colours(3))).headers["ratelimit"] == '"budget";r=0'
    problem(await zoo.http.post(path, json={"images": 0}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.post(path, json={"images": 10**12}, headers=admin), 409, "conflict")
    problem(await zoo.http.post(path, json={"images": 1}, headers=key), 401, "unauthorized")
    problem(await zoo.http.post("/admin/keys/none/top-up", json={"images": 1}, headers=admin), 404, "not-found")
    unlimited = f"/admin/keys/{id_of(await zoo.key())}/top-up"
    problem(await zoo.http.post(unlimited, json={"images": 1}, headers=admin), 409, "conflict")


async def test_a_key_ends_when_it_expires(zoo, colours, admin) -> None:
    later, past = (datetime.now(UTC) + timedelta(days=days) for days in (1, -1))
    lasting = await zoo.key(expires_at=later.isoformat(), notes="of the course")
    assert (await zoo.infer(lasting, colours(1))).status_code == 200
    told = (await zoo.http.get(f"/admin/keys/{id_of(lasting)}", headers=admin)).json()
    assert (datetime.fromisoformat(told["expires_at"]), told["notes"]) == (later, "of the course")
    ended = await zoo.key(expires_at=past.isoformat())
    problem(await zoo.infer(ended, colours(1)), 401, "unauthorized")
    problem(await zoo.http.get("/v1/usage", headers=ended), 401, "unauthorized")
    naive = await zoo.http.post("/admin/keys", json={"expires_at": "2030-01-01T00:00:00"}, headers=admin)
    problem(naive, 422, "invalid-request")


async def test_the_audit_tells_each_charge_and_refund(zoo, colours, admin) -> None:
    key = await zoo.key()
    path = f"/admin/keys/{id_of(key)}/audit"
    assert (await zoo.http.get(path, headers=admin)).json() == []
    await zoo.infer(key, colours(3))
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model)
    await zoo.infer(key, colours(2))
    told = (await zoo.http.get(path, headers=admin)).json()
    assert [(each["kind"], each["images"]) for each in told] == [("charge", 3), ("charge", 2), ("refund", 2)]
    assert told[1]["charge"] == told[2]["charge"]
    page = await zoo.http.get(path, params={"after": told[0]["id"], "limit": 1}, headers=admin)
    assert page.json() == told[1:2]
    problem(await zoo.http.get(path, params={"after": "x"}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.get("/admin/keys/none/audit", headers=admin), 404, "not-found")
