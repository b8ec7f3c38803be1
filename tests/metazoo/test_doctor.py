"""`metazoo doctor` tells what is there, what is not, and what breaks the promise; it shows no secret."""

import json
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from metazoo.cli import app


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        "REDIS_URL",
        "METAZOO_ARTIFACTS",
        "METAZOO_DATA",
        "METAZOO_URL",
        "METAZOO_ZOO_URL",
        "METAZOO_READY_FILE",
    ):
        monkeypatch.delenv(variable, raising=False)


def told(expected: int = 0) -> dict[str, list[tuple[str, str]]]:
    """What is said about each thing: (state, words)."""
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == expected, done.output
    found: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(done.output):
        found.setdefault(one["about"], []).append((one["state"], one["told"]))
    return found


def test_without_any_setting_nothing_is_at_fault() -> None:
    found = told()
    ((state, words),) = found["server"]
    assert state == "not set"
    assert "METAZOO_URL is not set: `metazoo up`" in words
    assert found["workers"][0][0] == "not set"
    assert found["gpu"][0][0] in ("ok", "not set", "warning")
    assert "glyphs" in found["data sets"][0][1]
    assert "worker" in found["extras"][0][1]
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert "data sets" in shown.output


def test_what_cannot_be_reached_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden-secret@127.0.0.1:1/0")
    monkeypatch.setenv("METAZOO_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("METAZOO_ARTIFACTS", "nonsense://x")
    found = told(1)
    assert [found[about][0][0] for about in ("redis", "server", "artefacts")] == ["fault"] * 3
    assert "hidden-secret" not in str(found)


@pytest.mark.redis
def test_kinds_of_worker_that_are_missing_are_told_with_how_to_start_them(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text(json.dumps({"redis_url": redis_url}))
    monkeypatch.setenv("METAZOO_READY_FILE", str(ready))
    found = told()
    assert found["redis"][0][0] == "ok"
    assert [state for state, _ in found["workers"]] == ["warning", "warning"]
    assert "start `metazoo worker acquire`" in found["workers"][0][1]
    assert "start `metazoo worker learn`" in found["workers"][1][1]


def test_a_gpu_that_pytorch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0" or there(path))
    ((state, words),) = told()["gpu"]
    assert (state, "cannot use it" in words) == ("warning", True)


@pytest.mark.redis
def test_a_redis_that_forgets_is_told_of(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    (one,) = told()["redis"]
    assert one[0] == "ok"
    assert "appendfsync always" in one[1]
    with redis.Redis.from_url(redis_url) as connection:
        connection.config_set("appendfsync", "everysec")
        connection.config_set("maxmemory-policy", "allkeys-lru")
        try:
            warned = [words for state, words in told()["redis"] if state == "warning"]
        finally:
            connection.config_set("appendfsync", "always")
            connection.config_set("maxmemory-policy", "noeviction")
    assert len(warned) == 2
    assert "set always" in warned[0]
    assert "noeviction" in warned[1]
