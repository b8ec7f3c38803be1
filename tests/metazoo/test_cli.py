"""The command's frame: quick to start, and plain about what is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metazoo import cli


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for name in ("up", "demo", "zoo", "server", "worker", "jobs", "models"):
        assert name in shown.output


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert CliRunner().invoke(cli.app, ["--version"]).output.strip() == version("metazoo")


def test_a_shell_completes_what_it_was_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is named, not found out
    installed = CliRunner().invoke(cli.app, ["--install-completion", "bash"], prog_name="metazoo")
    assert installed.exit_code == 0, installed.output
    script = tmp_path / ".bash_completions" / "metazoo.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "_METAZOO_COMPLETE=complete_bash" in script.read_text()
    asked = {"_METAZOO_COMPLETE": "complete_bash", "COMP_WORDS": "metazoo jobs sub", "COMP_CWORD": "2"}
    assert CliRunner().invoke(cli.app, [], env=asked, prog_name="metazoo").output.split() == ["submit"]


def test_starting_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'fastapi', 'celery', 'redis', 'httpx'}"
    check = (
        f"import sys, metazoo.cli; found = {heavy} & set(sys.modules); sys.exit(f'imported {{found}}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit, match=r"pip install 'metazoo\[zoo\]'"):
        cli.main()


def test_a_missing_module_of_ours_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'worker.nothing'", name="worker.nothing")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_the_data_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAZOO_DATA", "sets")
    cli.root()
    assert os.environ["METAZOO_DATA"] == str(tmp_path / "sets")


def test_missing_settings_are_named_in_one_line(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "metazoo", "server"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert all(
        name in line for name in ("REDIS_URL", "METAZOO_ARTIFACTS", "METAZOO_SECRET_KEY", "METAZOO_SERVER_API_KEY")
    )


def test_the_servers_settings_are_printed_without_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hush1@h/0")
    monkeypatch.setenv("METAZOO_ARTIFACTS", "/somewhere")
    monkeypatch.setenv("METAZOO_SECRET_KEY", "hush2")
    monkeypatch.setenv("METAZOO_SERVER_API_KEY", "hush3hush3hush3hush3")
    ran = CliRunner().invoke(cli.app, ["server", "config"])
    assert "METAZOO_ARTIFACTS=/somewhere" in ran.stdout.splitlines()
    assert "hush" not in ran.stdout
