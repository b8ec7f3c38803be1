"""Image files over a real Redis: decoded safely, answered by label, metered as tensors are."""

from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from api_zoo.inference import Model
from contracts.adapters import ClassifyOptions
from contracts.oip import Tensor
from contracts.problems import URN
from dfml.picture_files import MOST_PIXELS
from worker.adapters.classify import ClassifyModel

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def picture(
    colour: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (5, 4), kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    file = BytesIO()
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(file, kind)
    return file.getvalue()


async def ask(zoo: Any, key: dict[str, str], *files: bytes, model: str = "colours", **headers: str) -> httpx.Response:
    parts = [("files", (f"{number}.png", file)) for number, file in enumerate(files)]
    return await zoo.http.post(f"/v1/models/{model}/classify", files=parts, headers={**key, **headers})


def refused(response: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert (response.status_code, response.json()["type"]) == (status, URN + name), response.text
    return response.json()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_files_of_each_kind_and_any_size_are_labelled_and_counted(zoo, kind: str) -> None:
    key = await zoo.key(budget=10)
    response = await ask(zoo, key, *(picture(colour, kind=kind) for colour in COLOURS))
    assert response.status_code == 200, response.text
    rows = response.json()
    assert [row[0]["label"] for row in rows] == ["red", "green", "blue"]
    for row in rows:
        scores = [each["score"] for each in row]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-6)
    assert response.headers["x-query-cost"] == "3"
    assert response.headers["ratelimit"] == '"budget";r=7'
    assert await zoo.spent(key) == 3


async def test_answers_are_those_to_the_same_pixels_as_tensors(zoo, colours) -> None:
    key = await zoo.key()
    (row,) = (await ask(zoo, key, picture(size=(2, 2)))).json()
    tensors = (await zoo.infer(key, colours(1), binary=False)).json()["outputs"][0]["data"]
    assert {each["label"]: each["score"] for each in row} == dict(zip(["red", "green", "blue"], tensors, strict=True))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
async def test_other_colour_modes_become_what_the_model_takes(zoo, mode: str) -> None:
    file = picture((0,), mode=mode) if mode in {"L", "P"} else picture((9,) * len(mode), mode=mode)
    assert (await ask(zoo, await zoo.key(), file)).status_code == 200


async def test_a_repeated_request_is_free_whatever_its_boundary(zoo) -> None:
    key = await zoo.key()
    first = await ask(zoo, key, picture(), **{"Idempotency-Key": "a"})
    again = await ask(zoo, key, picture(), **{"Idempotency-Key": "a"})
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert again.json() == first.json()
    assert (again.headers["idempotency-replayed"], again.headers["x-query-cost"]) == ("true", "1")
    refused(await ask(zoo, key, picture((0, 0, 255)), **{"Idempotency-Key": "a"}), 422, "key-reused")
    assert await zoo.spent(key) == 1


@pytest.mark.parametrize(("policy", "told"), [("topk:2", 2), ("label", 1), ("round:1", 3)])
async def test_the_policy_holds_here_too(zoo, running, redis_url, policy: str, told: int) -> None:
    hosted = zoo.app.state.services.models["colours"]
    model = Model("terse", hosted._module, hosted.labels, hosted.input_shape, policy=policy)
    async with running(redis_url, {"terse": model}) as terse:
        (row,) = (await ask(terse, await terse.key(), picture(), model="terse")).json()
    assert len(row) == told
    assert row[0] == {"label": "red", "score": pytest.approx(1.0, abs=1e-3)}


async def test_every_bad_file_is_named_and_nothing_charged(zoo) -> None:
    key = await zoo.key()
    whole = picture(size=(40, 40))
    gif = picture(kind="GIF")
    told = refused(await ask(zoo, key, whole, b"hello", gif, b"", whole[:20]), 422, "invalid-request")
    assert [fault["field"] for fault in told["errors"]] == ["files.1", "files.2", "files.3", "files.4"]
    told = refused(await ask(zoo, key, whole, whole[:-30]), 422, "invalid-request")
    assert [fault["field"] for fault in told["errors"]] == ["files.1"]
    assert await zoo.spent(key) == 0


async def test_bombs_are_refused_by_their_head(running, redis_url) -> None:
    async with running(redis_url, max_body=2**20) as zoo:
        key = await zoo.key()
        for size in [(MOST_PIXELS // 1000 + 1, 1000), (20_000, 5_000), (50_000, 5_000)]:
            told = refused(await ask(zoo, key, picture((0,), size=size, mode="1")), 422, "invalid-request")
            assert "pixels" in told["errors"][0]["message"]
        half = picture((0,), size=(6_000, 4_000), mode="1")
        told = refused(await ask(zoo, key, half, half), 422, "invalid-request")
        assert told["errors"][0]["field"] == "files"
        assert await zoo.spent(key) == 0


async def test_too_much_is_refused(zoo) -> None:
    key = await zoo.key()
    for count in (9, 15):
        assert refused(await ask(zoo, key, *[picture()] * count), 413, "too-large")["max_images"] == 8
    refused(await ask(zoo, key, bytes(5000)), 413, "too-large")
    assert await zoo.spent(key) == 0


async def test_bodies_that_are_no_files_are_refused(zoo) -> None:
    key = await zoo.key()
    path = "/v1/models/colours/classify"
    refused(await zoo.http.post(path, content=picture(), headers=key), 415, "unsupported-media-type")
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(await zoo.http.post(path, content=b"nothing of the kind", headers={**key, **boundary}), 400, "malformed")
    refused(await zoo.http.post(path, content=b"--b--\r\n", headers={**key, **boundary}), 422, "invalid-request")
    field = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--b--\r\n'
    refused(await zoo.http.post(path, content=field, headers={**key, **boundary}), 400, "malformed")
    refused(await zoo.http.post(path, headers={**key, "Content-Type": "multipart/form-data"}), 400, "malformed")
    refused(await ask(zoo, {}, picture()), 401, "unauthorized")
    refused(await ask(zoo, key, picture(), model="nothing"), 404, "not-found")
    assert await zoo.spent(key) == 0


async def test_a_budget_that_is_spent_ends_files_too(zoo) -> None:
    key = await zoo.key(budget=1)
    assert refused(await ask(zoo, key, picture(), picture()), 402, "budget-exhausted")["left"] == 1
    assert (await ask(zoo, key, picture())).status_code == 200
    refused(await ask(zoo, key, picture()), 402, "budget-exhausted")
    assert await zoo.spent(key) == 1


async def test_the_workers_adapter_reads_what_it_answers(zoo) -> None:
    key = await zoo.key(budget=10)
    options = ClassifyOptions(labels=["blue", "green", "red"], size=4, max_images=8, idempotency=True)
    secret = key["Authorization"].removeprefix("Bearer ")
    url = "http://zoo.test/v1/models/colours/classify"
    model = ClassifyModel(url, secret, options, transport=zoo.http._transport, timeout=10)
    pixels = np.stack([np.full((4, 4, 3), colour, np.uint8).transpose(2, 0, 1) for colour in COLOURS])
    body, headers = model.encode(Tensor("images", "UINT8", pixels.shape, pixels.tobytes()))
    answer = await model.infer(body, headers, idempotency_key="k")
    scores = np.frombuffer(answer.probabilities.data, "<f4").reshape(3, 3)
    assert [options.labels[best] for best in scores.argmax(1)] == ["red", "green", "blue"]
    again = await model.infer(
        *model.encode(Tensor("images", "UINT8", pixels.shape, pixels.tobytes())), idempotency_key="k"
    )
    assert (again.replayed, again.probabilities) == (True, answer.probabilities)
    assert await zoo.spent(key) == 3
