"""The documentation is true: its commands and scripts run, its links lead somewhere, its reference is the code's."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from PIL import Image

from client import Metazoo
from contracts.jobs import ApiSpec
from metazoo.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRAINS = ROOT / "examples" / "train_from_apis.py"
FOREIGN = ROOT / "examples" / "any_oip_endpoint.py"
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {TRAINS, FOREIGN})
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


QUICKSTART = ROOT / "docs" / "quickstart.md"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code of every fenced block that is meant to be run and not marked `untested: why`."""
    return [
        (language, code)
        for language, note, code in FENCE.findall(page.read_text())
        if language in {"sh", "python"} and not note.startswith("untested: ")
    ]


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page: Path, up, models: None, terminal: Path) -> None:
    told = {} if page == QUICKSTART else of(up)  # it says itself where they come from
    state = terminal.parent / "state"
    state.touch()
    for language, code in blocks(page):
        if language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", f'source "{state}"\n{code}\nexport -p > "{state}"']
        else:
            command = [sys.executable, "-c", code]
        run_to_the_end(command, terminal, HOME=str(terminal.parent), **told)


@pytest.fixture
def terminal(up, tmp_path: Path) -> Path:
    """A folder as a reader of the quickstart has it: the clone's `.venv`, own photos, and a service that is running."""
    place = tmp_path / "here"
    place.mkdir()
    (place / ".venv").symlink_to(sys.prefix)
    written = tmp_path / ".local" / "share" / "metazoo" / "ready.env"
    written.parent.mkdir(parents=True)
    written.symlink_to(up.ready_file.with_suffix(".env"))
    for kind, colour in {"cat": (200, 120, 60), "dog": (60, 90, 200)}.items():
        for name in (*(f"support/{kind}/{number}.jpg" for number in range(8)), f"new/{kind}.jpg"):
            photo = place / "photos" / name
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((80, 60), 60).convert("RGB").save(photo)
            Image.blend(Image.open(photo), Image.new("RGB", (80, 60), colour), 0.7).save(photo)
    return place


@pytest.fixture(scope="session")
def models(up, trained: None) -> None:
    """There are two meta-models."""
    with Metazoo(up.ready["server_url"], up.ready["api_key"]) as metazoo:
        if len(metazoo.meta_models.list(limit=2).items) < 2:
            few = {"apis": up.apis, "budget": {"queries": 64}, "method": {"name": "pqd", "steps": 5}}
            metazoo.jobs.create(few).wait(timeout=240)


@pytest.fixture(scope="session")
def trained(up, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The example that trains has run: others use its meta-model."""
    run_to_the_end([sys.executable, str(TRAINS)], tmp_path_factory.mktemp("trained"), **of(up))


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(example: Path, up, trained: None, tmp_path: Path) -> None:
    run_to_the_end([sys.executable, str(example)], tmp_path, **of(up))


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
        told = run_to_the_end([sys.executable, str(FOREIGN)], tmp_path, **of(up), OIP_URL=served.url)
    assert "tells 5 classes apart" in told
    assert "paid for 256 of 256 images" in told


def untested() -> list[pytest.param]:
    """Every block in sh or python that is not run."""
    return [
        pytest.param(language, code, id=f"{page.relative_to(ROOT)}: {note}")
        for page in PAGES
        for language, note, code in FENCE.findall(page.read_text())
        if language in {"sh", "python"} and note.startswith("untested: ")
    ]


@pytest.mark.parametrize(("language", "code"), untested())
def test_a_block_that_is_not_run_could_be(language: str, code: str) -> None:
    """Python compiles; scripts are there, and `metazoo` takes these options."""
    if language == "python":
        compile(code, "block", "exec")
        return
    for words in commands(code):
        if words[0] == "metazoo":
            command = typer.main.get_command(app)
            name, rest = "metazoo", words[1:]
            while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
                name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
            command.make_parser(command.make_context(name, [], resilient_parsing=True)).parse_args(rest)
        elif words[0].startswith("scripts/"):
            assert (ROOT / words[0]).exists(), words


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a block; quotes and backslashes span lines."""
    said = ""
    for line in code.splitlines():
        said += line.removesuffix("\\") + "\n"
        if line.endswith("\\"):
            continue
        with suppress(ValueError):  # an open quote: the next line goes on
            if words := shlex.split(said, comments=True):
                yield words
            said = ""
    assert not said, code


def test_every_description_of_an_api_is_one() -> None:
    """The JSON of the pages that describes an API."""
    found = [
        json.loads(code)
        for page in PAGES
        for language, _, code in FENCE.findall(page.read_text())
        if language == "json" and '"adapter"' in code
    ]
    assert len(found) >= 2
    for told in found:
        ApiSpec.model_validate(told)


def test_every_example_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for example in (TRAINS, FOREIGN, *EXAMPLES):
        assert f"(examples/{example.name})" in readme


def of(up) -> dict[str, str]:
    """Where the service is, as `ready.env` tells a shell."""
    return {
        "METAZOO_READY_FILE": str(up.ready_file),
        "METAZOO_URL": up.ready["server_url"],
        "METAZOO_API_KEY": up.ready["api_key"],
        "METAZOO_ZOO_URL": up.ready["zoo_url"],
        "METAZOO_ZOO_API_KEY": up.ready["models"][0]["api_key"],
    }


def run_to_the_end(command: list[str], folder: Path, **more: str) -> str:
    """What it printed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("METAZOO_")},
        "OMP_NUM_THREADS": "1",  # threads that wait for each other on shared cores take many times as long
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
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
