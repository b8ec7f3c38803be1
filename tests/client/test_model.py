"""One model of any Open Inference Protocol server: what is sent, what is read, what each failure becomes."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from client import errors
from client.model import AsyncModel, Model, ModelInfo, encode, split_url
from contracts import oip

URL = "http://zoo.test/v2/models/toy"
METADATA: dict[str, Any] = {
    "name": "toy",
    "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 2, 2]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    "parameters": {"labels": ["cat", "dog"], "max_images": 8, "idempotency": True},
}
SERVER = {"name": "test", "version": "1", "extensions": ["binary_tensor_data"]}
INFO = ModelInfo(
    name="toy",
    input_name="images",
    datatype="UINT8",
    input_shape=(3, 2, 2),
    output_name="probabilities",
    classes=2,
    labels=["cat", "dog"],
    max_images=8,
    idempotency=True,
    binary=True,
)
IMAGES = oip.Tensor("any", "UINT8", (2, 3, 2, 2), bytes(range(24)))

Handler = Callable[[httpx.Request], httpx.Response]


def zoo(request: httpx.Request) -> httpx.Response:
    """A tiny server: class 0 gets the mean of the image."""
    if request.url.path == "/v2":
        return httpx.Response(200, json=SERVER)
    if request.url.path == "/v2/models/toy":
        return httpx.Response(200, json=METADATA)
    assert request.url.path == "/v2/models/toy/infer"
    images = oip.decode_request(request.content, request.headers.get(oip.HEADER)).inputs[0]
    mean = np.frombuffer(images.data, np.uint8).reshape(images.shape).mean((1, 2, 3)) / 255
    scores = np.stack([mean, 1 - mean], 1).astype("<f4")
    answer = oip.Tensor("probabilities", "FP32", scores.shape, scores.tobytes())
    body, headers = oip.encode_response(oip.InferResponse("toy", [answer], None), binary=None)
    limits = {"X-Query-Cost": "2", "RateLimit": '"burst";r=6;t=1', "Idempotency-Replayed": "true"}
    return httpx.Response(200, content=body, headers={**headers, **limits})


def model(handler: Handler, **options: Any) -> Model:
    return Model(URL, "secret", transport=httpx.MockTransport(handler), **options)


def replying(status: int, **options: Any) -> Handler:
    return lambda request: httpx.Response(status, **options)


def test_asks_and_reads() -> None:
    with model(zoo) as toy:
        assert toy.metadata() == INFO
        answer = toy.infer(*toy.encode(IMAGES), idempotency_key="k")
    assert np.frombuffer(answer.probabilities.data, "<f4").reshape(2, 2)[:, 0] == pytest.approx([5.5 / 255, 17.5 / 255])
    assert (answer.cost, answer.replayed) == (2, True)
    assert answer.limits.get("burst") is not None


@pytest.mark.anyio
async def test_async_is_the_same() -> None:
    async with AsyncModel(URL, transport=httpx.MockTransport(zoo)) as toy:
        assert await toy.metadata() == INFO
        answer = await toy.infer(*toy.encode(IMAGES))
    assert answer.probabilities.shape == (2, 2)


def test_key_and_idempotency_key_are_sent() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return zoo(request)

    toy = model(handler, info=INFO)
    toy.infer(*toy.encode(IMAGES), idempotency_key="k")
    toy.infer(*toy.encode(IMAGES))
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].headers["idempotency-key"] == "k"
    assert "idempotency-key" not in seen[1].headers
    assert seen[0].content == seen[1].content


def test_encoding_needs_to_know_the_model() -> None:
    with pytest.raises(RuntimeError, match="metadata"):
        model(zoo).encode(IMAGES)


def test_bytes_become_floats_for_a_float_model() -> None:
    levels = oip.Tensor("x", "UINT8", (1, 1, 16, 16), bytes(range(256)))
    info = INFO.model_copy(update={"datatype": "FP32", "input_shape": (1, 16, 16), "binary": False})
    body, headers = encode(levels, info)
    sent = oip.decode_request(body, headers.get(oip.HEADER)).inputs[0]
    assert np.array_equal(np.frombuffer(sent.data, "<f4"), np.arange(256, dtype=np.float32) / np.float32(255))


@pytest.mark.parametrize(
    "images",
    [
        oip.Tensor("x", "UINT8", (1, 3, 4, 4), bytes(48)),
        oip.Tensor("x", "UINT8", (0, 3, 2, 2), b""),
        oip.Tensor("x", "FP32", (1, 3, 2, 2), bytes(48)),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(images: oip.Tensor) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        encode(images, INFO)
    assert [fault.field for fault in caught.value.fields] == ["images"]


@pytest.mark.parametrize("url", ["http://host/models/x", "ftp://host/v2/models/x", "http://host/v2/models/x?y", "x"])
def test_a_url_that_is_no_model(url: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="/v2/models/NAME"):
        Model(url)


def test_urls_with_a_prefix_and_a_version() -> None:
    assert split_url("https://h:1/a/v2/models/x/versions/3/") == ("https://h:1/a", "/v2/models/x/versions/3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": []}, "no UINT8 or FP32 input"),
        ({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 12]}]}, "no UINT8 or FP32 input"),
        ({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, -1, -1]}]}, "takes images of shape"),
        ({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]}, "takes images of shape"),
        ({"outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, -1]}]}, "no output"),
        ({"outputs": "none"}, "no output"),
    ],
)
def test_metadata_that_is_not_enough(change: dict[str, Any], says: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=SERVER if request.url.path == "/v2" else METADATA | change)

    with pytest.raises(errors.InvalidAnswer, match=says):
        model(handler).metadata()


def test_a_server_that_says_little_is_spoken_to_in_json() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v2":
            return httpx.Response(404)
        return httpx.Response(200, json={name: METADATA[name] for name in ("name", "inputs", "outputs")})

    info = model(handler).metadata()
    assert (info.binary, info.idempotency, info.max_images, info.labels) == (False, False, None, [])
    body, headers = encode(IMAGES, info)
    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body)["inputs"][0]["data"] == list(range(24))


@pytest.mark.parametrize(
    "answer",
    [
        oip.Tensor("probabilities", "FP32", (2, 3), bytes(24)),
        oip.Tensor("probabilities", "INT64", (2, 2), bytes(32)),
        oip.Tensor("other", "FP32", (2, 2), bytes(16)),
    ],
)
def test_an_answer_other_than_promised(answer: oip.Tensor) -> None:
    body, headers = oip.encode_response(oip.InferResponse("toy", [answer], None), binary=None)
    toy = model(replying(200, content=body, headers=headers), info=INFO)
    with pytest.raises(errors.InvalidAnswer):
        toy.infer(*toy.encode(IMAGES))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, errors.InvalidAnswer),  # no inference response
        (204, errors.InvalidAnswer),
        (302, errors.InvalidAnswer),
        (400, errors.InvalidRequest),
        (401, errors.Unauthorized),
        (402, errors.BudgetExhausted),
        (403, errors.Unauthorized),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (410, errors.NotFound),
        (413, errors.TooLarge),
        (415, errors.InvalidRequest),
        (422, errors.InvalidRequest),
        (429, errors.RateLimited),
        (500, errors.ApiUnavailable),
        (503, errors.ApiUnavailable),
    ],
)
def test_every_status_has_its_class_and_foreign_words_stay_out(status: int, kind: type[Exception]) -> None:
    toy = model(replying(status, json={"error": "INTERNAL SECRET"}, headers={"Retry-After": "4"}), info=INFO)
    with pytest.raises(kind) as caught:
        toy.infer(*toy.encode(IMAGES))
    assert type(caught.value) is kind
    assert "SECRET" not in str(caught.value)
    if isinstance(caught.value, errors.RateLimited | errors.ApiUnavailable):
        assert caught.value.retry_after == 4


def test_a_spent_budget_says_how_much() -> None:
    problem = {"type": "urn:metazoo:problem:budget-exhausted", "title": "t", "status": 402, "detail": "d", "left": 3}
    headers = {"RateLimit-Policy": '"budget";q=100;qu="images"', "X-Request-Id": "r1"}
    toy = model(replying(402, json=problem, headers=headers), info=INFO)
    with pytest.raises(errors.BudgetExhausted) as caught:
        toy.infer(*toy.encode(IMAGES))
    assert (caught.value.limit, caught.value.left, caught.value.spent) == (100, 3, 97)
    assert (caught.value.status, caught.value.request_id) == (402, "r1")


def test_running_twins_are_told_from_other_conflicts() -> None:
    problem = {"type": "urn:metazoo:problem:in-progress", "title": "t", "status": 409, "detail": "d"}
    toy = model(replying(409, json=problem, headers={"Retry-After": "1"}), info=INFO)
    with pytest.raises(errors.InProgress) as caught:
        toy.infer(*toy.encode(IMAGES))
    assert caught.value.retry_after == 1


@pytest.mark.parametrize(
    ("raised", "sent"),
    [(httpx.ConnectError("refused"), False), (httpx.ReadTimeout(""), True), (httpx.ReadError(""), True)],
)
def test_no_answer_at_all(raised: httpx.TransportError, sent: bool) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    with pytest.raises(errors.ApiUnavailable, match="is it running") as caught:
        model(handler).metadata()
    assert caught.value.sent is sent


def test_a_body_that_cannot_be_decoded() -> None:
    with pytest.raises(errors.InvalidAnswer, match="decoded"):
        model(replying(200, stream=httpx.ByteStream(b"not gzip"), headers={"Content-Encoding": "gzip"})).metadata()
