"""The documentation is true: its commands and scripts run, its links lead somewhere, its reference is the code's."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAINS = ROOT / "examples" / "train_from_apis.py"
FOREIGN = ROOT / "examples" / "any_oip_endpoint.py"
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {TRAINS, FOREIGN})
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[pytest.param]:
    """Every fenced block in these languages that is not marked `untested: why`."""
    found = []
    for page in PAGES:
        for number, (language, note, code) in enumerate(FENCE.findall(page.read_text())):
            if language in languages and not note.startswith("untested: "):
                found.append(pytest.param(language, code, id=f"{page.relative_to(ROOT)}:{number}"))
    return found


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("language", "code"), blocks("sh", "python"))
def test_a_block_runs(language: str, code: str, up, tmp_path: Path) -> None:
    shell = ["bash", "-euo", "pipefail", "-c", code]
    run_to_the_end(shell if language == "sh" else [sys.executable, "-c", code], up, tmp_path)


@pytest.fixture(scope="session")
def trained(up, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example that trains has run: others use its meta-model."""
    run_to_the_end([sys.executable, str(TRAINS)], up, tmp_path_factory.mktemp("trained"))


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, up, trained: None, tmp_path: Path) -> None:
    run_to_the_end([sys.executable, str(example)], up, tmp_path)


@pytest.mark.e2e
@pytest.mark.timeout(800)  # MLServer is installed the first time
@pytest.mark.filterwarnings("ignore::UserWarning:torch.export", "ignore::DeprecationWarning")
def test_the_example_of_any_endpoint_runs_against_an_mlserver(up, foreign_port: int, tmp_path: Path) -> None:
    import torch

    from benchmarks.rig import mlserver
    from contracts.zoo import Normalisation
    from dfml.nets import build_classifier

    normalise = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    generator = torch.Generator().manual_seed(0)
    teacher = build_classifier(8, (3, 16, 16), 5, normalisation=normalise, generator=generator)
    try:
        mlserver.environment()
    except mlserver.EnvironmentUnavailable as error:
        pytest.skip(str(error))
    with mlserver.serving(teacher, (3, 16, 16), 5, tmp_path / "mlserver", http=foreign_port) as served:
        told = run_to_the_end([sys.executable, str(FOREIGN)], up, tmp_path, OIP_URL=served.url)
    assert "tells 5 classes apart" in told
    assert "paid for 256 of 256 images" in told


def test_every_example_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for example in (TRAINS, FOREIGN, *EXAMPLES):
        assert f"(examples/{example.name})" in readme


def run_to_the_end(command: list[str], up, folder: Path, **more: str) -> str:
    """What it printed."""
    environment = {
        **os.environ,
        **more,
        "OMP_NUM_THREADS": "1",  # threads that wait for each other on shared cores take many times as long
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "METAZOO_READY_FILE": str(up.ready_file),
        "METAZOO_URL": up.ready["server_url"],
        "METAZOO_API_KEY": up.ready["api_key"],
        "METAZOO_ZOO_URL": up.ready["zoo_url"],
        "METAZOO_ZOO_API_KEY": up.ready["models"][0]["api_key"],
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_rest_reference_is_the_codes() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.current(), "run .venv/bin/python docs/reference.py"
