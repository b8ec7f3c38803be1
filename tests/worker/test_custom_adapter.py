"""APIs of any make, as a template and pointers tell of them: servers in foreign style over TCP, and answers that are none."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from client.errors import InvalidAnswer
from contracts.adapters import CustomOptions
from contracts.jobs import ApiSpec, JobStatus
from contracts.oip import Tensor
from worker.adapters.custom import CustomModel
from worker.transport import Guard, GuardedTransport

pytestmark = [pytest.mark.anyio]
LABELS = ["ant", "bee", "cat", "dog", "emu"]
TF_SERVING = {
    "template": {"signature_name": "serving_default", "instances": "{{images}}"},
    "encoding": "float",
    "size": 16,
    "max_images": 8,
    "classes": 5,
    "scores": "/predictions/*",
}
HF_LIKE = {
    "template": {"inputs": "{{image}}", "parameters": {"top_k": 2}},
    "size": 16,
    "labels": LABELS,
    "scores": "/*/score",
    "labels_at": "/*/label",
    "top": 2,
    "headers": {"X-Wait-For-Model": "true"},
}
VERTEX_LIKE = {
    "template": {"instances": "{{images}}", "options": [{"deep": None}]},
    "item": {"image_bytes": {"b64": "{{image}}"}, "kind": "png"},
    "size": 16,
    "max_images": 4,
    "labels": LABELS,
    "scores": "/results/*/confidence",
    "key_header": "X-Api-Key",
}

Ask = Callable[[Any, dict[str, str]], tuple[np.ndarray, Callable[[np.ndarray], Any]]]
"""(JSON, headers) -> images uint8 (n, h, w, 3), and what makes the answer of their scores."""


def tf_serving(body: Any, headers: dict[str, str]) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    assert headers["authorization"] == "Bearer k0"
    assert set(body) == {"signature_name", "instances"}
    pixels = np.array(body["instances"], np.float32) * 255
    np.testing.assert_array_equal(pixels.round().astype(np.float32) / 255, np.array(body["instances"], np.float32))
    return pixels.round().astype(np.uint8), lambda scores: {"predictions": scores.tolist()}


def hf_like(body: Any, headers: dict[str, str]) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    assert (body["parameters"], headers["x-wait-for-model"]) == ({"top_k": 2}, "true")

    def ranked(scores: np.ndarray) -> Any:
        pairs = sorted(zip(LABELS, scores[0].tolist(), strict=True), key=lambda pair: -pair[1])[:2]
        return [{"score": score, "label": label} for label, score in pairs]

    return opened(body["inputs"])[None], ranked


def vertex_like(body: Any, headers: dict[str, str]) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    assert headers["x-api-key"] == "k0"
    assert "authorization" not in headers
    pictures = np.stack([opened(each["image_bytes"]["b64"]) for each in body["instances"]])
    return pictures, lambda scores: {
        "results": [{"confidence": dict(zip(LABELS, row.tolist(), strict=True))} for row in scores]
    }


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(text, validate=True))))


class Foreign:
    """A plain HTTP server on a port of its own; it counts the images it has answered."""

    def __init__(self, ask: Ask, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self.ask, self.answer = ask, answer
        self.charged, self.faults = 0, list[BaseException]()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readline():
                assert request == b"POST /v1/models/m:predict HTTP/1.1\r\n"
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                assert headers["content-type"] == "application/json"
                pictures, say = self.ask(json.loads(await reader.readexactly(int(headers["content-length"]))), headers)
                self.charged += len(pictures)
                content = json.dumps(say(self.answer(pictures.transpose(0, 3, 1, 2)))).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
                await writer.drain()
        except (AssertionError, ValueError, KeyError) as error:
            self.faults.append(error)
        finally:
            writer.close()


@asynccontextmanager
async def serving(ask: Ask, answer: Callable[[np.ndarray], np.ndarray]) -> AsyncIterator[tuple[Foreign, str]]:
    foreign = Foreign(ask, answer)
    server = await asyncio.start_server(foreign.handle, "127.0.0.1", 0)
    try:
        yield foreign, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.redis
@pytest.mark.parametrize(
    ("ask", "options"),
    [(tf_serving, TF_SERVING), (hf_like, HF_LIKE), (vertex_like, VERTEX_LIKE)],
    ids=["TF Serving", "hosted", "objects"],
)
async def test_a_job_learns_from_a_foreign_server(world: Any, api: Any, ask: Ask, options: dict[str, Any]) -> None:
    async with serving(ask, api().answer) as (foreign, host):
        guard = Guard(allow=[host])
        real = world.changed(guard=guard, transport=lambda: GuardedTransport(guard))
        spec = {"url": f"http://{host}/v1/models/m:predict", "adapter": "custom", "custom": options, "api_key": "k0"}
        told = await real.acquire_all(await real.submit(queries=24, apis=[spec]))
    assert foreign.faults == []
    assert [progress.reason for progress in told.progress.per_api.values()] == [None]
    assert (told.budget.confirmed, told.budget.unconfirmed, foreign.charged) == (24, 0, 24)
    assert (await real.learn(told.id)).status == JobStatus.SUCCEEDED


def model(options: dict[str, Any], answer: Any = b"") -> CustomModel:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    return CustomModel("http://a.test/x", None, CustomOptions(**options), transport=transport, timeout=5)


def pictures(count: int) -> Tensor:
    pixels = np.random.RandomState(0).randint(0, 256, (count, 3, 16, 16)).astype(np.uint8)
    return Tensor("images", "UINT8", pixels.shape, pixels.tobytes())


async def scores(options: dict[str, Any], images: int, answer: Any) -> list[list[float]]:
    one = model(options, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    told = (await one.infer(*one.encode(pictures(images)))).probabilities
    found: list[list[float]] = np.frombuffer(told.data, "<f4").reshape(told.shape).tolist()
    return found


@pytest.mark.parametrize("encoding", ["png", "jpeg", "png_url", "jpeg_url", "float", "uint8"])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_the_image_arrives_as_it_is_and_the_same_each_time(encoding: str, layout: str) -> None:
    options = HF_LIKE | {"encoding": encoding, "layout": layout}
    body, _ = model(options).encode(pictures(1))
    assert body == model(options).encode(pictures(1))[0]
    image, sent = json.loads(body)["inputs"], np.frombuffer(pictures(1).data, np.uint8).reshape(3, 16, 16)
    if isinstance(image, list):
        got = np.array(image) if layout == "chw" else np.array(image).transpose(2, 0, 1)
        np.testing.assert_allclose(got, sent / 255 if encoding == "float" else sent, atol=1e-7)
        return
    head, _, text = image.rpartition(",")
    assert head == (f"data:image/{encoding[:-4]};base64" if encoding.endswith("_url") else "")
    got = opened(text).transpose(2, 0, 1).astype(int)
    assert np.abs(got - sent).mean() <= (0 if encoding.startswith("png") else 5)


async def test_scores_are_found_where_the_pointers_lead() -> None:
    numbers = HF_LIKE | {"labels": None, "classes": 3, "scores": "/a~1b/0/p/*", "labels_at": "/a~1b/0/c", "top": 2}
    assert await scores(numbers, 1, {"a/b": [{"p": [0.75, 0.25], "c": [2, 0]}]}) == [[0.25, 0, 0.75]]
    batch = TF_SERVING | {"classes": 2}
    assert await scores(batch, 2, {"predictions": [[0.5, 0.5], [0, 1]]}) == [[0.5, 0.5], [0, 1]]
    nested = batch | {"labels": ["a", "b"], "classes": None, "scores": "/*/*/s", "labels_at": "/*/*/l"}
    answer = [[{"l": "b", "s": 1}], [{"l": "b", "s": 0.25}, {"l": "a", "s": 0.75}]]
    assert await scores(nested, 2, answer) == [[0, 1], [0.75, 0.25]]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (TF_SERVING, b"hello"),
        (TF_SERVING, b"[" * 100_000),
        (TF_SERVING, {}),
        (TF_SERVING, {"predictions": {}}),
        (TF_SERVING, {"predictions": []}),
        (TF_SERVING, {"predictions": [[0.2] * 5] * 2}),
        (TF_SERVING, {"predictions": [[0.25] * 4]}),
        (TF_SERVING, {"predictions": [[[[0.2] * 5]]]}),
        (TF_SERVING, {"predictions": [[True, 0, 0, 0, 0]]}),
        (TF_SERVING, {"predictions": [[10**400, 0, 0, 0, 0]]}),
        (TF_SERVING, b'{"predictions": [[NaN, 0, 0, 0, 0]]}'),
        (TF_SERVING, {"predictions": [{"ant": 1.0}]}),
        (VERTEX_LIKE, {"results": [{"confidence": {"yak": 1.0}}]}),
        (VERTEX_LIKE, {"results": [{"confidence": {}}]}),
        (HF_LIKE, [{"label": "yak", "score": 1.0}]),
        (HF_LIKE, [{"label": "ant", "score": 0.5}, {"label": "ant", "score": 0.5}]),
        (HF_LIKE, [{"label": "ant", "score": 0.5}, {"label": "bee"}]),
        (HF_LIKE, [{"label": 5, "score": 0.5}]),
        (HF_LIKE, [{"label": -1, "score": 0.5}]),
        (HF_LIKE, []),
    ],
)
async def test_what_is_no_answer_is_refused(options: dict[str, Any], answer: Any) -> None:
    with pytest.raises(InvalidAnswer):
        await scores(options, 1, answer)


def deep(levels: int) -> Any:
    return "{{image}}" if levels == 0 else [deep(levels - 1)]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (HF_LIKE | {"template": {"inputs": "an {{image}}"}}, "template"),
        (HF_LIKE | {"template": ["{{image}}", "{{image}}"]}, "template"),
        (HF_LIKE | {"template": deep(40)}, "template"),
        (HF_LIKE | {"template": ["{{image}}", "x" * 70_000]}, "template"),
        (HF_LIKE | {"max_images": 2}, "max_images"),
        (HF_LIKE | {"item": ["{{image}}"]}, "item"),
        (HF_LIKE | {"scores": "score"}, "scores"),
        (HF_LIKE | {"labels_at": "/a~2"}, "labels_at"),
        (HF_LIKE | {"classes": 5}, "classes"),
        (HF_LIKE | {"labels": None}, "classes"),
        (HF_LIKE | {"labels": ["a", "b", "a"]}, "labels.2"),
        (HF_LIKE | {"top": 6}, "top"),
        (HF_LIKE | {"headers": {"Host": "elsewhere"}}, "headers.Host"),
        (HF_LIKE | {"headers": {"X-Forwarded-Host": "elsewhere"}}, "headers.X-Forwarded-Host"),
        (HF_LIKE | {"headers": {"Authorization": "Basic x"}}, "headers.Authorization"),
        (HF_LIKE | {"headers": {"X-Api-Key": "x"}}, "headers.X-Api-Key"),
        (HF_LIKE | {"headers": {"X-A": "b\r\nHost: c"}}, "headers.X-A"),
        (HF_LIKE | {"headers": {"X A": "b"}}, "headers.X A"),
        (HF_LIKE | {"key_header": "Host"}, "key_header"),
        (HF_LIKE | {"colour": "red"}, "colour"),
        (TF_SERVING | {"item": "{{images}}"}, "item"),
        (TF_SERVING | {"scores": "/predictions"}, "scores"),
        (None, ""),
    ],
)
def test_bad_options_are_refused_with_their_place(options: dict[str, Any] | None, place: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ApiSpec.model_validate_json(json.dumps({"url": "http://a.test/x", "adapter": "custom", "custom": options}))
    assert [".".join(map(str, error["loc"])) for error in raised.value.errors()] == [f"custom.{place}".rstrip(".")]
