"""Meta-models over REST: records, whole files, and predictions from a handful of images."""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contracts.meta_models import MetaModel

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Publish = Callable[..., Awaitable[MetaModel]]


def picture(red: int, green: int, *, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> str:
    file = BytesIO()
    Image.new("RGB", size, (red, green, 60)).save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()


TASK: dict[str, Any] = {
    "support": {
        "images": [picture(250, 20), picture(230, 10, kind="JPEG"), picture(10, 240), picture(20, 220, kind="WEBP")],
        "labels": ["red", "red", "green", "green"],
    },
    "query": [picture(240, 15, size=(32, 32)), picture(15, 230, size=(100, 7))],
}


async def test_records(http: httpx.AsyncClient, publish: Publish) -> None:
    assert (await http.get("/v1/meta-models")).json() == {"items": [], "next": None}
    older, newer = await publish(1), await publish(2)
    page = (await http.get("/v1/meta-models", params={"limit": 1})).json()
    assert [model["id"] for model in page["items"]] == [newer.id]
    page = (await http.get("/v1/meta-models", params={"after": page["next"]})).json()
    assert ([model["id"] for model in page["items"]], page["next"]) == ([older.id], None)
    told = (await http.get(f"/v1/meta-models/{older.id}")).json()
    assert MetaModel.model_validate(told) == older
    assert (await http.get(f"/v1/jobs/{older.job}")).json()["meta_model"] == older.id


async def test_files_are_whole_and_named_by_what_they_hold(http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish()
    assert {"config.json", "model.safetensors", "README.md", "metrics.json", "SHA256SUMS"} == set(model.files)
    for name, digest in model.files.items():
        response = await http.get(f"/v1/meta-models/{model.id}/files/{name}")
        assert hashlib.sha256(response.content).hexdigest() == digest
        assert response.headers["etag"] == f'"{digest}"'
        assert int(response.headers["content-length"]) == len(response.content)
    tags = {f'"{digest}"': 304, f'W/"{digest}", "x"': 304, "*": 304, '"x"': 200}
    for tag, status in tags.items():
        response = await http.get(f"/v1/meta-models/{model.id}/files/{name}", headers={"If-None-Match": tag})
        assert response.status_code == status
        assert response.headers["etag"] == f'"{digest}"'


@pytest.mark.parametrize("name", ["none.txt", "..%2Fmodel.safetensors", "%2Fetc%2Fpasswd", "%2E%2E"])
async def test_other_files_are_out_of_reach(name: str, http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish()
    assert (await http.get(f"/v1/meta-models/{model.id}/files/{name}")).status_code in {404, 405}


@pytest.mark.parametrize("method", ["logistic", "prototypes", "fine-tune"])
async def test_a_task_is_learned_from_four_images(method: str, http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish()
    response = await http.post(f"/v1/meta-models/{model.id}/predict", json=TASK | {"method": method})
    predictions = response.json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == ["red", "green"]
    for prediction in predictions:
        assert set(prediction["probabilities"]) == {"red", "green"}
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert max(prediction["probabilities"], key=prediction["probabilities"].get) == prediction["label"]


async def test_an_answer_does_not_depend_on_its_neighbours(http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish()
    path = f"/v1/meta-models/{model.id}/predict"
    together = (await http.post(path, json=TASK)).json()["predictions"]
    alone = [
        (await http.post(path, json=TASK | {"query": [image]})).json()["predictions"][0] for image in TASK["query"]
    ]
    for one, other in zip(together, alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


async def test_every_bad_image_is_named(http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish()
    bomb = BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).resize((20_000, 20_000)).save(bomb, format="PNG")
    gif = BytesIO()
    Image.new("RGB", (4, 4)).save(gif, format="GIF")
    bad = [
        base64.b64encode(each).decode() for each in (b"hello", bomb.getvalue(), gif.getvalue(), b"\x89PNG\r\n\x1a\n")
    ]
    truncated = TASK["query"][0][:60]
    body = {
        "support": {"images": [TASK["support"]["images"][0], "%%%"], "labels": ["a", "b"]},
        "query": [TASK["query"][0], *bad, truncated],
    }
    response = await http.post(f"/v1/meta-models/{model.id}/predict", json=body)
    assert response.status_code == 422
    assert {fault["field"] for fault in response.json()["errors"]} == {
        "support.images.1", "query.1", "query.2", "query.3", "query.4", "query.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"support": {"images": TASK["query"], "labels": ["a"]}}, "support.labels"),
        ({"support": {"images": TASK["query"], "labels": ["a", "a"]}}, "support.labels"),
        ({"query": []}, "query"),
        ({"method": "fancy"}, "method"),
    ],
)
async def test_tasks_that_are_none(
    change: dict[str, Any], field: str, http: httpx.AsyncClient, publish: Publish
) -> None:
    model = await publish()
    response = await http.post(f"/v1/meta-models/{model.id}/predict", json=TASK | change)
    assert [fault["field"] for fault in response.json()["errors"]] == [field]


async def test_an_unknown_meta_model(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/meta-models/mm_none/predict", json=TASK)).status_code == 404
