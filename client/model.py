"""One model behind the Open Inference Protocol v2, on any server that speaks it.

`AsyncModel` and `Model` make single attempts and raise typed errors: whoever pays for the answers decides about
repetition. The server is not trusted: its words never enter an error's message (they stay in `error.problem`), and what
it answers is checked against what it said of itself.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

import httpx

from client._flow import AsyncDriver, Driver, Flow, Request, once
from client._limits import RateLimits
from client.errors import InvalidAnswer, InvalidRequest, NotFound
from contracts import oip
from contracts._base import Record
from contracts.problems import Fault

TIMEOUT = 30.0  # seconds

_URL = re.compile(r"(?P<base>https?://.+?)(?P<path>/v2/models/[^/?#]+(?:/versions/[^/?#]+)?)/*")
# Each level of a byte as a little-endian float32 in [0, 1].
_LEVELS = [struct.pack("<f", level / 255) for level in range(256)]


class ModelInfo(Record):
    """What a model says of itself."""

    name: str
    input_name: str
    datatype: str  # of the input: UINT8, or FP32 in [0, 1]
    input_shape: tuple[int, int, int]  # (channels, height, width)
    output_name: str
    classes: int
    labels: list[str] = []  # one per class, or empty
    max_images: int | None = None  # most images in one request; None: not said
    response_policy: str = ""  # of a zoo: probabilities, topk:k, round:d or label; empty: not said
    idempotency: bool = False  # `Idempotency-Key` on infer is honoured
    binary: bool = False  # the server takes and gives raw tensors


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request bought."""

    probabilities: oip.Tensor  # (n, classes), FP32 or FP64, as received
    cost: int | None  # images charged; None: not said
    replayed: bool  # the answer to an earlier request with this idempotency key: nothing new was charged
    limits: RateLimits


class AsyncModel:
    """A model by its URL, `https://host/v2/models/NAME`.

        async with AsyncModel(url, api_key) as model:
            info = await model.metadata()
            answer = await model.infer(*model.encode(images))

    `info` spares the call of `metadata()` when it is known already. Raises `InvalidRequest` when the URL is no model's.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        info: ModelInfo | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        base, self._path = split_url(url)
        self.info = info
        self._driver = AsyncDriver(base, api_key, transport=transport, timeout=timeout)

    async def metadata(self) -> ModelInfo:
        """Ask the model and its server what they are; costs no query. Kept as `self.info`."""
        self.info = await self._driver.run(describe(self._path, _attempt))
        return self.info

    def encode(self, images: oip.Tensor) -> tuple[bytes, dict[str, str]]:
        """Body and headers that ask about `images`, (n, c, h, w): the same bytes each time. See `encode`."""
        return encode(images, _known(self.info))

    async def infer(self, body: bytes, headers: Mapping[str, str], *, idempotency_key: str | None = None) -> Answer:
        """Send what `encode` made, once. Charged by the server; with a key it may be repeated at no further cost."""
        response = await self._driver.run(_attempt(infer_request(self._path, body, headers, idempotency_key)))
        return read_answer(response, _known(self.info))

    async def close(self) -> None:
        """Close the connections."""
        await self._driver.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Model:
    """`AsyncModel`, blocking."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        info: ModelInfo | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        base, self._path = split_url(url)
        self.info = info
        self._driver = Driver(base, api_key, transport=transport, timeout=timeout)

    def metadata(self) -> ModelInfo:
        """Ask the model and its server what they are; costs no query. Kept as `self.info`.

        with Model(url, api_key) as model:
            print(model.metadata().classes)
        """
        self.info = self._driver.run(describe(self._path, _attempt))
        return self.info

    def encode(self, images: oip.Tensor) -> tuple[bytes, dict[str, str]]:
        """Body and headers that ask about `images`, (n, c, h, w): the same bytes each time. See `encode`.

        body, headers = model.encode(images)
        """
        return encode(images, _known(self.info))

    def infer(self, body: bytes, headers: Mapping[str, str], *, idempotency_key: str | None = None) -> Answer:
        """Send what `encode` made, once. Charged by the server; with a key it may be repeated at no further cost.

        answer = model.infer(*model.encode(images), idempotency_key="chunk-7")
        """
        response = self._driver.run(_attempt(infer_request(self._path, body, headers, idempotency_key)))
        return read_answer(response, _known(self.info))

    def close(self) -> None:
        """Close the connections."""
        self._driver.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_url(url: str) -> tuple[str, str]:
    """The server's base URL and the model's path below it. Raises `InvalidRequest` when it is no model's URL."""
    match = _URL.fullmatch(url)
    if match is None:
        message = "must look like https://host/v2/models/NAME"
        raise InvalidRequest(f"url: {message}", fields=[Fault(field="url", message=message)])
    return match["base"], match["path"]


def describe(path: str, send: Callable[[Request], Flow[httpx.Response]]) -> Flow[ModelInfo]:
    """What the model at `path` says of itself, and whether its server takes raw tensors.

    Raises `InvalidAnswer` when that is not enough to ask it about images.
    """
    model = _json_object((yield from send(Request("GET", path))))
    try:
        server = _json_object((yield from send(Request("GET", "/v2"))))
    except (NotFound, InvalidAnswer):
        server = {}  # optional in practice: then it is spoken to in JSON
    extensions = server.get("extensions")
    return read_info(model, binary=isinstance(extensions, list) and "binary_tensor_data" in extensions)


def read_info(metadata: Mapping[str, Any], *, binary: bool) -> ModelInfo:
    """Model metadata of any server as `ModelInfo`. Raises `InvalidAnswer` naming what is missing."""
    inputs = [tensor for tensor in _tensors(metadata, "inputs") if len(tensor["shape"]) == 4]
    images = next((tensor for tensor in inputs if tensor["datatype"] in {"UINT8", "FP32"}), None)
    if images is None:
        _refuse("states no UINT8 or FP32 input of shape (n, channels, height, width)")
    channels, height, width = images["shape"][1:]
    if channels not in {1, 3} or height < 1 or width < 1:
        _refuse(f"takes images of shape {images['shape'][1:]}, not (1 or 3 channels, height, width)")
    outputs = [tensor for tensor in _tensors(metadata, "outputs") if len(tensor["shape"]) == 2]
    scores = next((tensor for tensor in outputs if tensor["name"] == "probabilities"), next(iter(outputs), None))
    if scores is None or scores["shape"][1] < 2:
        _refuse("states no output of shape (n, classes) with two classes or more")
    parameters = metadata.get("parameters")
    told = parameters if isinstance(parameters, dict) else {}
    policy = told.get("response_policy")
    labels, most, classes = told.get("labels"), told.get("max_images"), scores["shape"][1]
    listed = isinstance(labels, list) and len(labels) == classes and all(isinstance(label, str) for label in labels)
    return ModelInfo(
        name=str(metadata.get("name", "")),
        input_name=images["name"],
        datatype=images["datatype"],
        input_shape=(channels, height, width),
        output_name=scores["name"],
        classes=classes,
        labels=labels if listed and labels else [],
        max_images=most if type(most) is int and most > 0 else None,
        response_policy=policy if isinstance(policy, str) and len(policy) <= 100 else "",
        idempotency=told.get("idempotency") is True,
        binary=binary,
    )


def encode(images: oip.Tensor, info: ModelInfo) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask the model about `images`: (n, c, h, w), UINT8, or FP32 in [0, 1] if it takes that.

    Bytes become floats for a model that takes FP32. Raises `InvalidRequest` when shape or datatype do not fit it.
    """
    if images.shape[1:] != info.input_shape or images.elements == 0:
        channels, height, width = info.input_shape
        message = f"shape {images.shape} does not fit {info.name}: it takes (n, {channels}, {height}, {width}), n > 0"
        raise InvalidRequest(message, fields=[Fault(field="images", message=message)])
    if images.datatype == "UINT8" and info.datatype == "FP32":
        data = b"".join(map(_LEVELS.__getitem__, memoryview(images.data).cast("B")))
        images = replace(images, datatype="FP32", data=data)
    if images.datatype != info.datatype:
        message = f"{info.name} takes {info.datatype}, not {images.datatype}"
        raise InvalidRequest(message, fields=[Fault(field="images", message=message)])
    return oip.encode_request([replace(images, name=info.input_name)], binary=info.binary)


def infer_request(path: str, body: bytes, headers: Mapping[str, str], idempotency_key: str | None) -> Request:
    """The charged request; it may be repeated when it carries a key that the server honours."""
    keyed = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
    return Request(
        "POST", f"{path}/infer", headers={**headers, **keyed}, content=body, repeatable=idempotency_key is not None
    )


def read_answer(response: httpx.Response, info: ModelInfo) -> Answer:
    """The probabilities and what they cost. Raises `InvalidAnswer` when they are not what `info` promises."""
    if response.status_code != 200:
        _refuse(f"answered {response.status_code} where success is exactly 200")
    try:
        outputs = oip.decode_response(response.content, response.headers.get(oip.HEADER)).outputs
    except oip.InvalidPayload as error:
        raise InvalidAnswer(f"{info.name} answered no inference response ({len(error.faults)} faults)") from error
    scores = next((tensor for tensor in outputs if tensor.name == info.output_name), None)
    if scores is None or scores.datatype not in {"FP32", "FP64"}:
        _refuse(f"answered no FP32 or FP64 tensor named {info.output_name}")
    if len(scores.shape) != 2 or scores.shape[1] != info.classes:
        _refuse(f"answered shape {scores.shape} where it promised (n, {info.classes})")
    cost = response.headers.get("x-query-cost", "")
    return Answer(
        probabilities=scores,
        cost=int(cost) if cost.isascii() and cost.isdigit() and len(cost) < 16 else None,
        replayed=response.headers.get("idempotency-replayed", "").lower() == "true",
        limits=RateLimits.parse(response.headers),
    )


def _attempt(request: Request) -> Flow[httpx.Response]:
    return once(request, echo=False)


def _known(info: ModelInfo | None) -> ModelInfo:
    if info is None:
        raise RuntimeError("call metadata() first, or pass info=: the model's input is not known yet")
    return info


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        _refuse("answered no JSON object: it is no Open Inference Protocol server")
    return body


def _tensors(metadata: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The well-formed tensor descriptions under `key`; -1 stands for any size."""
    listed = metadata.get(key)
    return [
        tensor
        for tensor in (listed if isinstance(listed, list) else [])
        if isinstance(tensor, dict)
        and isinstance(tensor.get("name"), str)
        and isinstance(tensor.get("datatype"), str)
        and isinstance(tensor.get("shape"), list)
        and all(type(size) is int for size in tensor["shape"])
    ]


def _refuse(what: str) -> NoReturn:
    raise InvalidAnswer(f"the API {what}: check that the URL is that of an image classifier")
