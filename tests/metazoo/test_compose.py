"""docker-compose.yml against the code: commands parse, settings exist, health checks name real routes."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import CliRunner

from metazoo.cli import app

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "metazoo"}


def settings_of(service: str) -> type:
    if service == "zoo":
        from api_zoo.settings import Settings
    elif service == "server":
        from meta_server.settings import Settings  # type: ignore[assignment]
    else:
        from worker.settings import Settings  # type: ignore[assignment]
    return Settings


def aliases(settings: Any) -> dict[str, bool]:
    """Environment variable -> whether it must be set."""
    return {str(field.validation_alias): field.is_required() for field in settings.model_fields.values()}


@pytest.mark.parametrize("name", OURS)
def test_a_command_is_one_that_the_program_has(name: str) -> None:
    command = typer.main.get_command(app)
    shown = CliRunner().invoke(command, [*OURS[name]["command"], "--help"])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("name", OURS)
def test_its_environment_is_what_the_settings_read(name: str) -> None:
    given, read = set(OURS[name]["environment"]), aliases(settings_of(name))
    assert given <= set(read)
    by_argument = {"METAZOO_ZOO_FOLDER"}
    assert {variable for variable, required in read.items() if required} <= given | by_argument


def test_secrets_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for variable in re.findall(r"\$\{(\w*(?:KEY|PASSWORD))(.{0,2})", text):
        assert variable[1] == ":?", variable


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name in ("zoo", "server", "acquire"):
        for variable in aliases(settings_of(name)):
            assert f"`{variable}`" in page, variable
