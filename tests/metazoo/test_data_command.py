"""`metazoo data`: what is here, what is missing, and downloads that are checked; from a server of the test's own."""

import gc
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dfml.datasets import SOURCES
from dfml.datasets.sources import Download
from metazoo.commands.data import app


def run(*arguments: str, data: Path | None = None) -> Result:
    return CliRunner().invoke(app, arguments, env={"METAZOO_DATA": str(data) if data else None})


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("L", (20, 20), 200).save(out, "PNG")
    return out.getvalue()


def zipped(top: str, *alphabets: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for alphabet in alphabets:
            archive.writestr(f"{top}/{alphabet}/character01/1_01.png", picture())
    return out.getvalue()


def tarred(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
    return out.getvalue()


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`publish(name, files)` serves a data set's downloads as they are in `files`; the paths that were asked for."""
    held: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = held.get(self.path.strip("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def publish(name: str, files: dict[str, bytes], *, folder: str | None = None) -> list[str]:
        held.update(files)
        url = f"http://127.0.0.1:{server.server_port}"
        downloads = tuple(
            Download(f"{url}/{file}", f"sha256:{hashlib.sha256(content).hexdigest()}", file, folder)
            for file, content in files.items()
        )
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], downloads=downloads))
        return asked

    publish.held = held  # type: ignore[attr-defined]
    yield publish
    server.shutdown()
    server.server_close()


SMALL = {
    "images_background_small1.zip": zipped("images_background_small1", "Greek", "Early_Aramaic"),
    "images_background_small2.zip": zipped("images_background_small2", "Greek", "Tagalog"),
}


def test_a_data_set_is_got_once_and_then_is_whole(publish: Any, tmp_path: Path) -> None:
    asked = publish("omniglot-small", SMALL)
    root = tmp_path / "new"
    done = run("get", "omniglot-small", data=root)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(root / name) for name in SMALL]
    assert "Licence: MIT" in done.stderr
    assert len(asked) == 2
    assert run("get", "omniglot-small", data=root).exit_code == 0
    assert len(asked) == 2
    checked = run("check", "omniglot-small", data=root)
    assert (checked.exit_code, checked.stdout.splitlines()[0]) == (0, "train  2 classes, 1 images of each")
    assert run("path", "omniglot-small", data=root).stdout.split() == [str(root / name) for name in SMALL]


def test_another_file_than_was_published_is_not_kept(publish: Any, tmp_path: Path) -> None:
    publish("omniglot-small", SMALL)
    publish.held["images_background_small2.zip"] += b"!"
    done = run("get", "omniglot-small", data=tmp_path)
    assert done.exit_code == 1
    assert "digest" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images_background_small1.zip"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests leaves it to the collector
def test_a_server_that_has_it_not_is_named(publish: Any, tmp_path: Path) -> None:
    publish("omniglot-small", SMALL)
    publish.held.clear()
    done = run("get", "omniglot-small", data=tmp_path)
    assert done.exit_code == 1
    assert "images_background_small1.zip could not be fetched: 404" in done.stderr
    assert list(tmp_path.iterdir()) == []
    gc.collect()


def test_an_archive_is_unpacked_in_its_place(publish: Any, tmp_path: Path) -> None:
    names = [f"CUB_200_2011/images/{k:03d}.Bird/{j}.png" for k in range(4) for j in range(2)]
    asked = publish("cub", {"CUB_200_2011.tgz": tarred(*names, "attributes.txt")}, folder="CUB_200_2011")
    assert run("get", "cub", data=tmp_path).stdout.split() == [str(tmp_path / "CUB_200_2011")]
    assert run("check", "cub", data=tmp_path).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["CUB_200_2011"]
    assert run("get", "cub", data=tmp_path).exit_code == 0
    assert len(asked) == 1


@pytest.mark.parametrize("escape", ["CUB_200_2011/../../out.png", "/../elsewhere.png"])
def test_an_archive_that_leads_out_is_refused(publish: Any, tmp_path: Path, escape: str) -> None:
    publish("cub", {"CUB_200_2011.tgz": tarred("CUB_200_2011/images/1.png", escape)}, folder="CUB_200_2011")
    root = tmp_path / "root"
    done = run("get", "cub", data=root)
    assert done.exit_code == 1
    assert "could not be unpacked" in done.stderr
    assert not (root / "CUB_200_2011").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_what_cannot_be_downloaded_says_what_to_do(tmp_path: Path) -> None:
    done = run("get", "mini-imagenet", data=tmp_path)
    assert (done.exit_code, "train.csv" in done.stderr) == (1, True)
    assert run("get", "imagenet", data=tmp_path).exit_code == 2
    assert "METAZOO_DATA" in run("get", "cub").stderr


def test_list_tells_here_and_missing(publish: Any, tmp_path: Path) -> None:
    publish("omniglot-small", SMALL)
    run("get", "omniglot-small", data=tmp_path)
    for name in ("ant", "bee"):
        (tmp_path / "insects" / name).mkdir(parents=True)
        (tmp_path / "insects" / name / "1.png").write_bytes(picture())
    (tmp_path / "cifar-fs.zip").write_bytes(b"no zip")
    rows = {row["name"]: row for row in json.loads(run("list", "--json", data=tmp_path).stdout)}
    assert {name for name, row in rows.items() if row["here"]} == {"glyphs", "omniglot-small", "folder:insects"}
    assert rows["omniglot-small"]["classes"] == {"train": 2, "val": 1, "test": 0}
    assert "bertinetto" in rows["cifar-fs"]["how"]
    told = run("list", data=tmp_path).stdout
    assert "cub" in told.splitlines()[-1]
    assert "glyphs" in run("list").stdout  # without METAZOO_DATA too


def test_check_names_what_is_broken(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / "x" / f"{number}").mkdir(parents=True)
        (tmp_path / "x" / f"{number}" / "1.png").write_bytes(picture() if number % 2 else b"broken")
    done = run("check", "folder:x", data=tmp_path)
    assert done.exit_code == 1
    assert "folder:x: 0/1.png: it is no PNG" in done.stdout
    assert json.loads(run("check", "folder:x", "--json", data=tmp_path).stdout)["val"]["faults"] == []


def test_a_data_set_that_is_none_or_not_here(tmp_path: Path) -> None:
    assert run("check", "imagenet", data=tmp_path).exit_code == 2
    missing = run("path", "cub", data=tmp_path)
    assert (missing.exit_code, "metazoo data get cub" in missing.stderr) == (1, True)
    assert run("path", data=tmp_path).stdout.strip() == str(tmp_path)
    assert run("path").exit_code == 2
    assert run("path", "glyphs").stdout == ""
