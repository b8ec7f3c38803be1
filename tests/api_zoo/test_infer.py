"""Infer requests over a real Redis: what is answered, what is refused, and that only answers are charged."""

import json
import math

import anyio
import pytest
import torch

from contracts import oip
from contracts.problems import MEDIA_TYPE
from tests.api_zoo.responses import answered, problem

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


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
