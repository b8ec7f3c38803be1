"""What the server and its models say of themselves, and to whom."""

import pytest
import torch

from api_zoo.inference import Model
from tests.api_zoo.responses import answered, problem

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


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


async def test_a_method_that_is_none_is_refused(zoo) -> None:
    problem(await zoo.http.put("/v2/models/colours/infer", headers=await zoo.key()), 405, "method-not-allowed")
