"""`metazoo models`: find, download, predict from folders of images."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from contracts.adaptation import AdaptedModel
from contracts.meta_models import BackboneConfig, MetaModel, Score
from metazoo.commands import adapted
from metazoo.commands.models import app

HERE = ("--url", "http://server.test")
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
MODEL = MetaModel(
    id="mm_1",
    name="trial",
    created_at="2026-01-01T00:00:00Z",
    job="job_1",
    method="pqd",
    backbone=BackboneConfig(),
    input_shape=(3, 32, 32),
    seed=7,
    version="0.1.0",
    queries=4096,
    apis=["0" * 64],
    evaluation=None,
    score=Score(accuracy={"1": 40.9, "5": 55.7}, interval={"1": 0.8, "5": 0.7}),
    random_score=None,
    files={name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
)


class Server:
    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.url.path.split("/")[3:]:
            case []:
                return httpx.Response(200, json={"items": [MODEL.model_dump(mode="json")], "next": "mm_0"})
            case ["mm_1"]:
                return httpx.Response(200, json=MODEL.model_dump(mode="json"))
            case ["mm_1", "files", name]:
                return httpx.Response(200, content=FILES[name])
            case ["mm_1", "predict"]:
                self.sent = json.loads(request.content)
                predictions = [
                    {"label": "red", "probabilities": {"red": 0.75, "blue": 0.25}} for _ in self.sent["query"]
                ]
                return httpx.Response(200, json={"predictions": predictions})
        return httpx.Response(404)


def test_list_and_show(command: Any) -> None:
    listed = command(app, Server(), "list", *HERE)
    assert (listed.exit_code, "mm_1" in listed.stdout, "more: metazoo models list --after mm_0" in listed.stdout) == (
        0,
        True,
        True,
    )
    assert json.loads(command(app, Server(), "list", "--json", *HERE).stdout)["items"][0]["id"] == "mm_1"
    shown = command(app, Server(), "show", "mm_1", *HERE).stdout
    assert "1-shot 40.9 ± 0.8 %, 5-shot 55.7 ± 0.7 %" in shown
    assert "conv4-32, images of 3x32x32" in shown
    assert MetaModel.model_validate_json(command(app, Server(), "show", "mm_1", "--json", *HERE).stdout) == MODEL


def test_download(command: Any, tmp_path: Path) -> None:
    ran = command(app, Server(), "download", "mm_1", tmp_path / "m", *HERE)
    assert (ran.exit_code, ran.stdout) == (0, f"{tmp_path / 'm'}\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == FILES
    (tmp_path / "file").write_text("")
    assert command(app, Server(), "download", "mm_1", tmp_path / "file", *HERE).exit_code == 2


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("support/red/1.png", "support/red/2.JPG", "support/blue/1.webp", "query/x.png", "query/y.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")
    (tmp_path / "support" / "red" / "notes.txt").write_text("no image")
    return tmp_path


def test_predict_from_folders(command: Any, images: Path) -> None:
    server = Server()
    arguments = (
        "predict",
        "mm_1",
        images / "query",
        images / "query" / "x.png",
        "--support",
        images / "support",
        *HERE,
    )
    ran = command(app, server, *arguments)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines() == [f"{images}/query/{name}.png\tred\t75.0%" for name in ("x", "y", "x")]
    assert server.sent["support"]["labels"] == ["blue", "red", "red"]
    listed = json.loads(command(app, server, *arguments, "--json").stdout)["predictions"]
    assert listed[0] == {"image": f"{images}/query/x.png", "label": "red", "probabilities": {"red": 0.75, "blue": 0.25}}


def test_folders_without_images(command: Any, images: Path) -> None:
    nothing = images / "nothing"
    nothing.mkdir()
    for query, support in ((images / "query", nothing), (nothing, images / "support")):
        ran = command(app, Server(), "predict", "mm_1", query, "--support", support, *HERE)
        assert ran.exit_code == 2
        assert str(nothing) in ran.stderr


def test_a_missing_image_is_named(command: Any, images: Path) -> None:
    ran = command(app, Server(), "predict", "mm_1", images / "none.png", "--support", images / "support", *HERE)
    assert ran.exit_code == 2
    assert "none.png cannot be read" in ran.stderr


class Served:
    """A server with one adapted model."""

    model = AdaptedModel(
        id="am_1",
        name="pets",
        meta_model="mm_1",
        method="logistic",
        calibrated=True,
        seed=0,
        labels=["blue", "red"],
        shots={"blue": 1, "red": 2},
        input_shape=(3, 8, 8),
        support_kept=False,
        bytes=100,
        files={name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
        path="/v2/models/am_1",
        created_at="2026-01-01T00:00:00Z",
        expires_at="2026-01-02T00:00:00Z",
        answered=3,
    ).model_dump(mode="json")

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.deleted = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.method, request.url.path.split("/")[2:]:
            case "POST", ["meta-models", "mm_1", "adapt"]:
                self.sent = json.loads(request.content)
                return httpx.Response(201, json=self.model)
            case "GET", ["adapted-models"]:
                return httpx.Response(200, json={"items": [self.model], "next": None})
            case "GET", ["adapted-models", "am_1"]:
                return httpx.Response(200, json=self.model)
            case "GET", ["adapted-models", "am_1", "files", name]:
                return httpx.Response(200, content=FILES[name])
            case "DELETE", ["adapted-models", "am_1"]:
                self.deleted = True
                return httpx.Response(204)
            case "GET", ["models", "am_1"]:
                image = {"name": "images", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}
                scores = {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}
                told = {
                    "name": "am_1",
                    "inputs": [image],
                    "outputs": [scores],
                    "parameters": {"labels": ["blue", "red"]},
                }
                return httpx.Response(200, json=told)
            case "POST", ["models", "am_1", "infer"]:
                scores = {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.2, 0.8, 0.6, 0.4]}
                return httpx.Response(200, json={"model_name": "am_1", "outputs": [scores]})
        return httpx.Response(200, json={"name": "x", "version": "1", "extensions": []})


def test_adapt_from_a_folder(command: Any, images: Path) -> None:
    server = Served()
    arguments = ("adapt", "mm_1", "--support", images / "support", "--ttl", "60", "--name", "pets", *HERE)
    ran = command(app, server, *arguments, "--method", "prototypes", "--calibrate", "--steps", "3")
    assert (ran.exit_code, ran.stdout) == (0, "am_1\n")
    assert server.sent["support"].pop("labels") == ["blue", "red", "red"]
    server.sent.pop("support")
    assert server.sent == {
        "method": "prototypes", "calibration": {}, "steps": 3, "ttl": 60, "name": "pets", "keep_support": False,
    }  # fmt: skip
    assert json.loads(command(app, server, *arguments, "--json").stdout)["path"] == "/v2/models/am_1"


def test_adapted_models(command: Any, images: Path) -> None:
    server = Served()
    assert "logistic, calibrated" in command(adapted.app, server, "list", *HERE).stdout
    assert json.loads(command(adapted.app, server, "list", "--json", *HERE).stdout)["items"] == [server.model]
    assert "blue (1), red (2)" in command(adapted.app, server, "show", "am_1", *HERE).stdout
    assert json.loads(command(adapted.app, server, "show", "am_1", "--json", *HERE).stdout) == server.model
    labelled = command(adapted.app, server, "predict", "am_1", images / "query", *HERE).stdout
    assert [line.split("\t")[1:] for line in labelled.splitlines()] == [["red", "80.0%"], ["blue", "60.0%"]]
    assert command(adapted.app, server, "download", "am_1", images / "got", *HERE).exit_code == 0
    assert {path.name: path.read_bytes() for path in (images / "got").iterdir()} == FILES
    assert command(adapted.app, server, "delete", "am_1", *HERE).stdout == "am_1 ended\n"
    assert server.deleted


def test_registry(command: Any, tmp_path: Path) -> None:
    calls = []
    score = {"accuracy": {"1": 50.0}, "interval": {"1": 1.0}}

    def server(request: httpx.Request) -> httpx.Response:
        calls.append((request.method, request.url.path, request.content))
        if request.url.path.endswith("/compare"):
            return httpx.Response(200, json={"first": score, "second": score, "difference": score})
        if request.url.path.endswith("/archive"):
            return httpx.Response(200, content=b"zip")
        return httpx.Response(204 if request.method == "DELETE" else 200, json=MODEL.model_dump(mode="json"))

    assert command(app, server, "edit", "mm_1", "--tag", "a", "--tag", "b", "--notes", "x", *HERE).exit_code == 0
    assert command(app, server, "delete", "mm_1", *HERE).exit_code == 0
    assert command(app, server, "restore", "mm_1", *HERE).exit_code == 0
    assert command(app, server, "export", "mm_1", tmp_path / "m.zip", *HERE).exit_code == 0
    assert (tmp_path / "m.zip").read_bytes() == b"zip"
    compared = command(app, server, "compare", "mm_1", "mm_2", "--shots", "1", *HERE).stdout
    assert "second - first 50.00 ± 1.00 points" in compared
    told = json.loads(command(app, server, "compare", "mm_1", "mm_2", "--json", *HERE).stdout)
    assert told["difference"]["interval"] == {"1": 1.0}
    assert [(method, path) for method, path, _ in calls[:4]] == [
        ("PATCH", "/v1/meta-models/mm_1"),
        ("DELETE", "/v1/meta-models/mm_1"),
        ("POST", "/v1/meta-models/mm_1/restore"),
        ("GET", "/v1/meta-models/mm_1/archive"),
    ]
    assert json.loads(calls[0][2]) == {"tags": ["a", "b"], "notes": "x"}
    assert json.loads(calls[4][2])["evaluation"]["shots"] == [1]
