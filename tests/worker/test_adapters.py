"""APIs that do not speak the Open Inference Protocol: a plain server of another make, whole jobs, and answers that are none."""

import json
import re
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from client.errors import InvalidAnswer
from contracts.adapters import ClassifyOptions
from contracts.jobs import ApiSpec, JobStatus
from contracts.oip import Tensor
from worker.adapters.classify import ClassifyModel

pytestmark = [pytest.mark.anyio]
LABELS = ["ant", "bee", "cat", "dog", "emu"]
OPTIONS = {"labels": LABELS, "size": 16, "field": "image", "max_images": 8}


class Hosted:
    """A vision API as many are: a form with files in, labels in the order of their scores out, the two likeliest if `top`."""

    def __init__(self, proper: Any, *, top: int | None = None, flat: bool = False) -> None:
        self.proper, self.top, self.flat = proper, top, flat
        self.charged = 0

    async def handle(self, request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/vision/v3/classify")
        assert request.headers["authorization"] == "Bearer k0"
        boundary = re.fullmatch(r"multipart/form-data; boundary=(\w+)", request.headers["content-type"])[1]
        parts = (await request.aread()).split(f"--{boundary}".encode())[1:-1]
        files = [part.partition(b"\r\n\r\n") for part in parts]
        assert all(b'name="image"' in head and b"image/png" in head for head, _, _ in files)
        pictures = [np.asarray(Image.open(BytesIO(file.removesuffix(b"\r\n")))) for _, _, file in files]
        self.charged += len(pictures)
        rows = []
        for scores in self.proper.answer(np.stack(pictures).transpose(0, 3, 1, 2)):
            ranked = sorted(zip(LABELS, scores.tolist(), strict=True), key=lambda pair: -pair[1])[: self.top]
            rows.append([{"label": label, "score": score} for label, score in ranked])
        return httpx.Response(200, json=rows[0] if self.flat else rows)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("hosted", "changes"),
    [({}, {}), ({"top": 2}, {"top": 2}), ({"flat": True}, {"max_images": 1})],
    ids=["all labels", "top 2", "one file, one list"],
)
async def test_a_job_learns_from_an_api_that_takes_files(
    world: Any, api: Any, hosted: dict[str, Any], changes: dict[str, Any]
) -> None:
    one = Hosted(api(), **hosted)
    spec = {"url": "http://api0.test/vision/v3/classify", "adapter": "classify", "classify": OPTIONS | changes}
    job = await world.submit(one, queries=40, apis=[spec | {"api_key": "k0"}])
    told = await world.acquire_all(job)
    assert [progress.reason for progress in told.progress.per_api.values()] == [None]
    assert told.budget.confirmed == one.charged == 40
    assert (await world.learn(job.id)).status == JobStatus.SUCCEEDED


def model(answer: Any) -> ClassifyModel:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    return ClassifyModel("http://a.test/x", None, ClassifyOptions(**OPTIONS), transport=transport, timeout=5)


@pytest.mark.parametrize(
    "answer",
    [
        b"hello",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"[[]]",
        b"[[null]]",
        b'[[{"label": "ant"}]]',
        b'[[{"label": "ant", "score": true}]]',
        b'[[{"label": "ant", "score": 1%s}]]' % (b"0" * 400),
        b'[[{"label": "yak", "score": 1.0}]]',
        b'[[{"label": "ant", "score": 0.5}, {"label": "ant", "score": 0.5}]]',
        b'[[{"label": "ant", "score": 1.0}], [{"label": "ant", "score": 1.0}]]',
    ],
)
async def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    pixels = np.zeros((1, 3, 16, 16), np.uint8)
    one = model(answer)
    with pytest.raises(InvalidAnswer):
        await one.infer(*one.encode(Tensor("images", "UINT8", pixels.shape, pixels.tobytes())))


async def test_the_same_images_make_the_same_bytes() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (2, 3, 16, 16)).astype(np.uint8)
    images = Tensor("images", "UINT8", pixels.shape, pixels.tobytes())
    assert model(b"").encode(images) == model(b"").encode(images)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"classify": None}, "classify"),
        ({"adapter": "oip"}, "classify"),
        ({"classify": OPTIONS | {"labels": ["a", "a"]}}, "classify.labels.1"),
        ({"classify": OPTIONS | {"top": 6}}, "classify.top"),
        ({"classify": OPTIONS | {"colour": "red"}}, "classify.colour"),
    ],
)
def test_bad_options_are_refused_with_their_place(change: dict[str, Any], place: str) -> None:
    spec = {"url": "http://a.test/x", "adapter": "classify", "classify": OPTIONS, **change}
    with pytest.raises(ValidationError) as raised:
        ApiSpec.model_validate_json(json.dumps(spec))
    assert [".".join(map(str, error["loc"])) for error in raised.value.errors()] == [place]
