import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meta_server.store import artifacts as artifacts_module
from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts
from meta_server.store.secrets import BadSecretKey, Secrets


@pytest.fixture(params=["folder", "memory"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    return Artifacts(str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read_and_listed(artifacts: Artifacts) -> None:
    artifacts.write("a/b/one", b"1")
    artifacts.write("a/two", b"2")
    artifacts.write("a/two", b"22")
    assert artifacts.read("a/b/one") == b"1"
    assert artifacts.list("a") == ["a/b/one", "a/two"]
    assert (artifacts.exists("a/two"), artifacts.exists("a/three")) == (True, False)
    with artifacts.open("a/two") as file:
        assert file.read() == b"22"
    folder = artifacts.local("a")
    assert (folder / "b" / "one").read_bytes() == b"1"


def test_what_is_kept_is_known_by_its_hash(artifacts: Artifacts) -> None:
    path = artifacts.keep("jobs/j/answers/a0.0", ".bin", b"paid for")
    assert artifacts.recall(path) == b"paid for"
    artifacts.write(path, b"something else")
    with pytest.raises(ArtifactDamaged, match="damaged"):
        artifacts.recall(path)


def test_what_is_not_there(artifacts: Artifacts) -> None:
    for call in (artifacts.read, artifacts.open, artifacts.local):
        with pytest.raises(ArtifactMissing):
            call("nothing")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../out", "a/../../out", "a\\b"])
def test_paths_stay_inside(artifacts: Artifacts, path: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        artifacts.read(path)


def test_a_folder_is_put_whole(artifacts: Artifacts, tmp_path: Path) -> None:
    source = tmp_path / "made"
    source.mkdir()
    (source / "x").write_bytes(b"x")
    digests = artifacts.put_folder(source, "into/here")
    assert list(digests) == ["x"]
    assert artifacts.read("into/here/x") == b"x"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = Artifacts(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="full"):
        artifacts.write("a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_secrets_need_the_key_they_were_sealed_under() -> None:
    secrets = Secrets(Secrets.generate())
    sealed = secrets.seal({"a0": "key"})
    assert "key" not in sealed
    assert secrets.open(sealed) == {"a0": "key"}
    with pytest.raises(BadSecretKey, match="has changed"):
        Secrets(Secrets.generate()).open(sealed)
    with pytest.raises(BadSecretKey, match="make one with"):
        Secrets("short")
    assert "…" in repr(secrets)


def test_every_rename_is_on_disk_when_its_write_returns_and_writers_share_the_way_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, happened, lock = Artifacts(str(tmp_path)), [], threading.Lock()
    rename, to_disk = os.replace, artifacts_module._sync_folder

    def note(*what: object) -> None:
        with lock:
            happened.append(what)

    def replace(source: str, target: Path) -> None:
        rename(source, target)
        note("renamed", target.name)

    def slowly(folder: Path) -> None:
        note("begun", folder)
        to_disk(folder)
        many.wait(timeout=0.02)  # while it is written, others rename
        note("done", folder)

    many = threading.Event()
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(artifacts_module, "_sync_folder", slowly)

    def write(number: int) -> None:
        store.write(f"answers/{number}", b"1")
        note("returned", str(number))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(write, range(64)))
    folder = tmp_path / "answers"
    for number in map(str, range(64)):
        renamed, returned = happened.index(("renamed", number)), happened.index(("returned", number))
        begun = happened.index(("begun", folder), renamed)
        assert happened.index(("done", folder), begun) < returned
    assert happened.count(("begun", folder)) < 64
