"""Meta-models through the client: whole downloads, and images in every dress."""

import base64
import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from client import AsyncMetazoo, InvalidAnswer, InvalidRequest, Metazoo
from contracts.meta_models import BackboneConfig, MetaModel

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 1000}


def record(**fields: Any) -> dict[str, Any]:
    model = MetaModel(
        id="m1",
        name="toy",
        created_at="2026-01-01T00:00:00Z",
        job="j1",
        method="pqd",
        backbone=BackboneConfig(),
        input_shape=(3, 32, 32),
        seed=0,
        version="0.1.0",
        queries=10,
        apis=[],
        evaluation=None,
        score=None,
        random_score=None,
        files={name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
    )
    return model.model_dump(mode="json") | fields


class Server:
    """Serves one meta-model; `damaged` names a file of which a byte is wrong."""

    def __init__(self, **fields: Any) -> None:
        self.record = record(**fields)
        self.damaged = ""
        self.paths: list[str] = []
        self.sent: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        if request.url.path == "/v1/meta-models/m1":
            return httpx.Response(200, json=self.record)
        if request.url.path == "/v1/meta-models/m1/predict":
            self.sent = json.loads(request.content)
            predictions = [{"label": "a", "probabilities": {"a": 0.9, "b": 0.1}} for _ in self.sent["query"]]
            return httpx.Response(200, json={"predictions": predictions})
        name = request.url.path.rsplit("/", 1)[1]
        data = FILES[name]
        return httpx.Response(200, content=data[:-1] + b"?" if name == self.damaged else data)


def metazoo(server: Server) -> Metazoo:
    return Metazoo("http://server.test", transport=httpx.MockTransport(server))


def test_download_is_whole_and_keeps_what_is_there(tmp_path: Path) -> None:
    server = Server()
    folder = metazoo(server).meta_models.download("m1", tmp_path / "new" / "model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    (folder / "config.json").write_bytes(b"changed")
    server.paths.clear()
    metazoo(server).meta_models.download("m1", folder)
    assert [path.rsplit("/", 1)[1] for path in server.paths] == ["m1", "config.json"]


@pytest.mark.anyio
async def test_async_download_is_the_same(tmp_path: Path) -> None:
    async with AsyncMetazoo("http://server.test", transport=httpx.MockTransport(Server())) as client:
        folder = await client.meta_models.download("m1", tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    server = Server()
    server.damaged = "model.safetensors"
    with pytest.raises(InvalidAnswer, match=r"model\.safetensors arrived damaged"):
        metazoo(server).meta_models.download("m1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "..", "a/b", ""])
def test_file_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    server = Server(files={name: "0" * 64})
    with pytest.raises(InvalidAnswer, match="no plain file name"):
        metazoo(server).meta_models.download("m1", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (shade, 0, 255 - shade))


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def test_images_in_every_dress(tmp_path: Path) -> None:
    picture(10).save(tmp_path / "ten.png")
    chw = np.asarray(picture(20)).transpose(2, 0, 1)
    floats = np.asarray(picture(30)) / 255
    file = BytesIO()
    picture(40).save(file, format="PNG")
    server = Server()
    answer = metazoo(server).meta_models.predict(
        "m1",
        support=[(tmp_path / "ten.png", "a"), (str(tmp_path / "ten.png"), "a"), (chw, "b"), (floats, "b")],
        query=[file.getvalue(), picture(50)],
        method="prototypes",
    )
    assert [prediction.label for prediction in answer.predictions] == ["a", "a"]
    assert server.sent["support"]["labels"] == ["a", "a", "b", "b"]
    assert server.sent["method"] == "prototypes"
    for text, shade in zip(
        server.sent["support"]["images"] + server.sent["query"], [10, 10, 20, 30, 40, 50], strict=True
    ):
        assert np.array_equal(pixels(text), np.asarray(picture(shade)))


@pytest.mark.anyio
async def test_async_predict_is_the_same() -> None:
    async with AsyncMetazoo("http://server.test", transport=httpx.MockTransport(Server())) as client:
        answer = await client.meta_models.predict(
            "m1", support=[(picture(1), "a"), (picture(2), "b")], query=[picture(3)]
        )
    assert answer.predictions[0].probabilities == {"a": 0.9, "b": 0.1}


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Path("/nowhere/x.png"), "cannot be read"),
        (np.full((4, 4, 3), np.nan), "outside"),
        (np.full((4, 4, 3), 200.0), "outside"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (7, "not int"),
    ],
)
def test_what_is_no_image_is_named(image: Any, says: str) -> None:
    support, query = [(picture(1), "a"), (picture(2), "b")], [image, picture(3), image]
    with pytest.raises(InvalidRequest, match=says) as caught:
        metazoo(Server()).meta_models.predict("m1", support=support, query=query)
    assert [fault.field for fault in caught.value.fields] == ["query.0", "query.2"]
