"""The zoo through the client: listing, asking in requests of the right size, each charged once."""

from typing import Any

import httpx
import numpy as np
import pytest

from client import AsyncMetazoo, BudgetExhausted, InvalidAnswer, InvalidRequest, Metazoo
from contracts import oip

METADATA: dict[str, Any] = {
    "name": "toy",
    "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 4]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    "parameters": {"labels": ["dark", "bright"], "max_images": 2, "idempotency": True},
}


class Zoo:
    """Says how bright each image is, charges by key, loses its first answer."""

    def __init__(self) -> None:
        self.charged: dict[str, int] = {}
        self.lost = False
        self.budget = 100

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.url.path:
            case "/v2":
                return httpx.Response(200, json={"extensions": ["binary_tensor_data"]})
            case "/v2/models/toy":
                return httpx.Response(200, json=METADATA)
            case "/v2/repository/index":
                return httpx.Response(200, json=[{"name": "toy", "version": "1", "state": "READY", "reason": ""}])
            case "/v1/usage":
                spent = sum(self.charged.values())
                usage = {"key": "k", "budget": None, "spent": spent, "left": None, "per_model": {"toy": spent}}
                return httpx.Response(200, json=usage)
        images = oip.decode_request(request.content, request.headers.get(oip.HEADER)).inputs[0]
        if sum(self.charged.values()) + images.shape[0] > self.budget:
            return httpx.Response(402, json={"error": "spent", "detail": "spent"})
        self.charged[request.headers["idempotency-key"]] = images.shape[0]
        if not self.lost:
            self.lost = True
            raise httpx.ReadError("reset")
        bright = np.frombuffer(images.data, "<f4").reshape(images.shape).mean((1, 2, 3))
        scores = np.stack([1 - bright, bright], 1).astype("<f4")
        tensor = oip.Tensor("probabilities", "FP32", scores.shape, scores.tobytes())
        body, headers = oip.encode_response(oip.InferResponse("toy", [tensor], None), binary=None)
        return httpx.Response(200, content=body, headers=headers)


IMAGES = [np.full((8, 8, 3), level, np.uint8) for level in (0, 255, 51, 204, 255)]


def metazoo(zoo: Any) -> Metazoo:
    return Metazoo(zoo_url="http://zoo.test/base", transport=httpx.MockTransport(under_base(zoo)))


def under_base(zoo: Any) -> Any:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path.startswith("/base/")
        request.url = request.url.copy_with(path=request.url.path.removeprefix("/base"))
        answer: httpx.Response = zoo(request)
        return answer

    return handler


def test_models_come_with_the_url_that_a_job_takes() -> None:
    assert [(model.name, model.url) for model in metazoo(Zoo()).zoo.models()] == [
        ("toy", "http://zoo.test/base/v2/models/toy")
    ]


def test_predict_asks_in_parts_and_is_charged_once(pauses: list[float]) -> None:
    zoo = Zoo()
    answer = metazoo(zoo).zoo.predict("toy", IMAGES)
    assert [prediction.label for prediction in answer.predictions] == ["dark", "bright", "dark", "bright", "bright"]
    assert answer.predictions[2].probabilities["bright"] == pytest.approx(0.2)
    assert sorted(zoo.charged.values()) == [1, 2, 2]
    assert len(pauses) == 1
    assert metazoo(zoo).zoo.usage().spent == 5


@pytest.mark.anyio
async def test_async_zoo_is_the_same(pauses: list[float]) -> None:
    zoo = Zoo()
    async with AsyncMetazoo(zoo_url="http://zoo.test/base", transport=httpx.MockTransport(under_base(zoo))) as client:
        assert [model.name for model in await client.zoo.models()] == ["toy"]
        assert (await client.zoo.predict("toy", IMAGES[:2])).predictions[1].label == "bright"
        assert (await client.zoo.usage()).spent == 2


def test_a_spent_budget_stops_it(pauses: list[float]) -> None:
    zoo = Zoo()
    zoo.budget = 3
    with pytest.raises(BudgetExhausted):
        metazoo(zoo).zoo.predict("toy", IMAGES)
    assert pauses == [pytest.approx(pauses[0])]


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"images\.1: is no image"):
        metazoo(Zoo()).zoo.predict("toy", [IMAGES[0], b"hello"])


def test_another_kind_of_server_is_no_zoo() -> None:
    with pytest.raises(InvalidAnswer, match="that of a zoo"):
        metazoo(lambda request: httpx.Response(200, json={"models": []})).zoo.models()
