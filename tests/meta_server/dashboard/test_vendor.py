"""The build hook: what it takes from npm is what was reviewed, or nothing."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest


def packed(content: bytes) -> io.BytesIO:
    """An npm package with one file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/dist/idiomorph.min.js")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return io.BytesIO(made.getvalue())


@pytest.fixture
def hook(hatch_build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = hatch_build.Library("idiomorph", "0", "dist/idiomorph.min.js", hatch_build.sha256(b"reviewed"))
    monkeypatch.setattr(hatch_build, "LIBRARIES", (library,))
    made = hatch_build.Vendor(str(tmp_path), {}, None, None, "", "wheel", None)
    made.file = tmp_path / hatch_build.FOLDER / "idiomorph.min.js"
    return made


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> Any:
        asked.append(url)
        if isinstance(answer, Exception):
            raise answer
        return packed(answer)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_it_takes_what_was_reviewed_once(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, b"reviewed")
    hook.initialize("standard", {})
    hook.initialize("editable", {})
    assert hook.file.read_bytes() == b"reviewed"
    assert asked == ["https://registry.npmjs.org/idiomorph/-/idiomorph-0.tgz"]


@pytest.mark.parametrize("build", ["standard", "editable"])
def test_it_refuses_another_file(hook: Any, monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    answering(monkeypatch, b"changed")
    with pytest.raises(ValueError, match="reviewed"):
        hook.initialize(build, {})
    assert not hook.file.exists()


def test_without_npm_a_wheel_is_not_built_and_an_editable_install_goes_on(
    hatch_build: Any, hook: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answering(monkeypatch, OSError("unreachable"))
    with pytest.raises(OSError, match="put its dist"):
        hook.initialize("standard", {})
    assert len(asked) == hatch_build.TRIES
    hook.initialize("editable", {})
    assert "unreachable" in "".join(capsys.readouterr())
