"""Profiles: where the server is and where its key is, by name; a key is never shown."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from metazoo import profiles
from metazoo.commands.jobs import app

EMPTY_PAGE = {"items": [], "next": None}


class Server:
    """Remembers where it was asked and by which key."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.host, request.headers.get("Authorization")))
        return httpx.Response(200, json=EMPTY_PAGE)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("METAZOO_PROFILE", "METAZOO_READY_FILE", "LAB_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "metazoo.toml"


def lab(config: Path, line: str = "") -> None:
    config.write_text(f'[profiles.lab]\nurl = "http://lab.test"\n{line}\n')


@pytest.mark.parametrize("named", ["option", "environment"])
def test_a_profile_gives_server_and_key_whatever_the_environment_says(
    named: str, command: Any, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab(config, 'api_key_env = "LAB_KEY"')
    server = Server()
    for name, value in {"METAZOO_URL": "http://other.test", "METAZOO_API_KEY": "other", "LAB_KEY": "s3cret"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("METAZOO_READY_FILE", str(tmp_path / "nowhere"))
    if named == "environment":
        monkeypatch.setenv("METAZOO_PROFILE", "lab")
    ran = command(app, server, "list", *(("--profile", "lab") if named == "option" else ()))
    assert ran.exit_code == 0, ran.stderr
    assert server.asked == [("lab.test", "Bearer s3cret")]


def test_the_key_may_lie_in_a_private_file(command: Any, config: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    key.chmod(0o600)
    lab(config, f'api_key_file = "{key}"')
    server = Server()
    assert command(app, server, "list", "--profile", "lab").exit_code == 0
    assert server.asked == [("lab.test", "Bearer s3cret")]
    key.chmod(0o640)
    ran = command(app, server, "list", "--profile", "lab")
    assert ran.exit_code == 2
    assert "chmod 600" in ran.stderr
    assert "s3cret" not in ran.output
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "[profiles.lab]"),
        ("[profiles", "is no TOML"),
        ("", "has no profile 'lab'; it has: none"),
        ('[profiles.home]\nurl = "http://a"', "it has: home"),
        ("[profiles.lab]", "needs a url"),
        ("[profiles.lab]\nurl = 7", "table of texts"),
        ('[profiles.lab]\nurl = "http://a"\napi_key = "s3cret"', "name its place instead"),
        ('[profiles.lab]\nurl = "http://a"\nkey_env = "s3cret"', "unknown fields: key_env"),
        ('[profiles.lab]\nurl = "http://a"\napi_key_env = "A"\napi_key_file = "b"', "two places"),
        ('[profiles.lab]\nurl = "http://a"\napi_key_env = "LAB_KEY"', "LAB_KEY is not set"),
        ('[profiles.lab]\nurl = "http://a"\napi_key_file = "/nowhere/key"', "/nowhere/key: No such file"),
    ],
)
def test_a_profile_at_fault_is_said_and_sends_nothing(text: str | None, says: str, command: Any, config: Path) -> None:
    if text is not None:
        config.write_text(text)
    server = Server()
    ran = command(app, server, "list", "--profile", "lab")
    assert ran.exit_code == 2
    assert says in ran.stderr
    assert "s3cret" not in ran.output
    assert server.asked == []


def test_a_profiles_key_goes_to_no_other_server(command: Any, config: Path) -> None:
    lab(config)
    server = Server()
    ran = command(app, server, "list", "--profile", "lab", "--url", "http://other.test")
    assert ran.exit_code == 2
    assert "not both" in ran.stderr
    assert server.asked == []


def test_the_file_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profiles.config_file() == tmp_path / ".config" / "metazoo.toml"
