"""The API zoo as its user sees it: which models a key may ask, asking them, and what that has cost."""

import uuid
from collections.abc import Iterable
from urllib.parse import quote

import anyio
import httpx
from pydantic import TypeAdapter, ValidationError

from client import model as oip_model
from client._flow import AsyncDriver, Driver, Flow, Request, retried
from client._images import Image, to_tensor
from client.errors import InvalidAnswer
from contracts import oip
from contracts._base import Record
from contracts.adaptation import Prediction, PredictResponse
from contracts.zoo import Usage

LARGEST = 256  # images in one request to a model that does not state its most


class ZooModel(Record):
    """A model that the key may ask; `url` is what a job takes."""

    name: str
    url: str
    state: str = "READY"


class Zoo:
    """`Metazoo.zoo`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def models(self) -> list[ZooModel]:
        """The models that the key may ask.

        apis = [{"url": model.url, "api_key": key} for model in metazoo.zoo.models()]
        """
        return self._driver.run(_models(str(self._driver.http.base_url), self._driver.retries))

    def predict(self, model: str, images: Iterable[Image]) -> PredictResponse:
        """Ask one model about images, resized to its input; each image is charged to the key, once.

            answer = metazoo.zoo.predict("glyphs-00", ["x.png"])
            answer.predictions[0].label

        Images are paths, bytes of image files, PIL images or arrays; needs Pillow. Raises `BudgetExhausted`.
        """
        info = self._driver.run(describe(model, self._driver.retries))
        return self._driver.run(ask(info, model, to_tensor(images, info.input_shape), self._driver.retries))

    def usage(self) -> Usage:
        """What the key has been charged, in images.

        print(metazoo.zoo.usage().spent)
        """
        return self._driver.call(Request("GET", "/v1/usage"), Usage)


class AsyncZoo:
    """`AsyncMetazoo.zoo`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def models(self) -> list[ZooModel]:
        """The models that the key may ask."""
        return await self._driver.run(_models(str(self._driver.http.base_url), self._driver.retries))

    async def predict(self, model: str, images: Iterable[Image]) -> PredictResponse:
        """Ask one model about images; see `Zoo.predict`."""
        info = await self._driver.run(describe(model, self._driver.retries))
        tensor = await anyio.to_thread.run_sync(to_tensor, images, info.input_shape)
        return await self._driver.run(ask(info, model, tensor, self._driver.retries))

    async def usage(self) -> Usage:
        """What the key has been charged, in images."""
        return await self._driver.call(Request("GET", "/v1/usage"), Usage)


class _Listed(Record):
    name: str
    state: str = "READY"


_INDEX = TypeAdapter(list[_Listed])


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _models(base_url: str, retries: int) -> Flow[list[ZooModel]]:
    headers = {"Content-Type": "application/json"}
    response = yield from retried(
        Request("POST", "/v2/repository/index", headers=headers, content=b"{}"), retries=retries
    )
    try:
        listed = _INDEX.validate_json(response.content)
    except ValidationError:
        raise InvalidAnswer("the zoo answered no list of models: is the URL that of a zoo?") from None
    base = base_url.rstrip("/")
    return [ZooModel(name=model.name, url=base + _path(model.name), state=model.state) for model in listed]


def describe(model: str, retries: int) -> Flow[oip_model.ModelInfo]:
    """What the model says of itself."""
    return oip_model.describe(_path(model), lambda request: retried(request, retries=retries))


def ask(info: oip_model.ModelInfo, model: str, images: oip.Tensor, retries: int) -> Flow[PredictResponse]:
    """Ask in requests of at most `max_images`, each with an idempotency key that its repetitions keep."""
    labels = info.labels or [str(index) for index in range(info.classes)]
    most = min(info.max_images or LARGEST, LARGEST)
    size = images.elements // max(1, images.shape[0])
    predictions: list[Prediction] = []
    for start in range(0, images.shape[0], most):
        count = min(most, images.shape[0] - start)
        data = memoryview(images.data)[start * size : (start + count) * size]
        body, headers = oip_model.encode(oip.Tensor("images", "UINT8", (count, *images.shape[1:]), data), info)
        key = uuid.uuid4().hex if info.idempotency else None
        response: httpx.Response = yield from retried(
            oip_model.infer_request(_path(model), body, headers, key), retries=retries
        )
        scores = oip_model.read_answer(response, info).probabilities
        if scores.shape[0] != count:
            raise InvalidAnswer(f"{model} answered {scores.shape[0]} of {count} images")
        numbers = oip.numbers(scores)
        rows = (numbers[at : at + len(labels)] for at in range(0, len(numbers), len(labels)))
        predictions += [_prediction(labels, row) for row in rows]
    return PredictResponse(predictions=predictions)


def _prediction(labels: list[str], probabilities: list[float]) -> Prediction:
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return Prediction(label=labels[best], probabilities=dict(zip(labels, probabilities, strict=True)))
