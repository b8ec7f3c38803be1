"""`metazoo images`, and a job that names what it uploaded."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
from PIL import Image

from contracts.image_sets import ImageSet
from metazoo.commands import jobs
from metazoo.commands.image_sets import app

HERE = ("--url", "http://server.test")
SET = ImageSet(
    id="is_" + "0" * 22, name="photos", created_at="2026-01-01T00:00:00Z", images=2, bytes=9, sha256="0" * 64
)


class Server:
    def __init__(self) -> None:
        self.sent: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if request.method == "DELETE":
            return httpx.Response(204)
        told = SET.model_dump(mode="json")
        return httpx.Response(200, json=told if request.method == "POST" else {"items": [told], "next": "is_1"})


def test_upload_list_and_delete(command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.JPG"):
        Image.new("RGB", (8, 8)).save(folder / name)
    server = Server()
    made = command(app, server, "upload", folder, *HERE)
    assert made.output == f"{SET.id} 2 images\n"
    (sent,) = server.sent
    assert sent.url.params["name"] == "photos"
    (tmp_path / "sent.zip").write_bytes(sent.content)
    with ZipFile(tmp_path / "sent.zip") as archive:
        assert [archive.read(name) for name in archive.namelist()] == [
            (folder / name).read_bytes() for name in ("a.png", "b.JPG")
        ]
    command(app, server, "upload", tmp_path / "sent.zip", "--name", "again", *HERE)
    assert server.sent[-1].content == sent.content
    listed = command(app, server, "list", *HERE).output
    assert "photos" in listed
    assert "--after is_1" in listed
    assert command(app, server, "delete", SET.id, *HERE).output == f"{SET.id} deleted\n"
    assert server.sent[-1].url.path == f"/v1/image-sets/{SET.id}"


def test_a_job_names_it(command: Any, job: Any) -> None:
    sent: list[Any] = []

    def server(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(202, json=job().model_dump(mode="json"))

    flags = ("--api", "http://zoo/v2/models/first", "--queries", "100", "--unlabeled", SET.id)
    made = command(jobs.app, server, "submit", *flags, *HERE)
    assert made.exit_code == 0, made.output
    assert sent[0]["unlabeled"] == SET.id
