"""One running service for the folder: real Redis, zoo, server and workers, as `metazoo up` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metazoo.redis_server import free_port

TEACHERS = 4


@dataclass
class Up:
    """A `metazoo up` of its own and what its ready file says."""

    process: subprocess.Popen[str]
    ready_file: Path
    ready: dict[str, Any]

    @property
    def apis(self) -> list[dict[str, str]]:
        return [{"url": model["url"], "api_key": model["api_key"]} for model in self.ready["models"]]

    def stop(self) -> str:
        """Everything it wrote; it has ended."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=60)
        return output


def metazoo(
    *arguments: str, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would."""
    command = [sys.executable, "-m", "metazoo", *arguments]
    return subprocess.run(
        command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    return metazoo


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small zoo of real, quickly trained teachers."""
    folder = tmp_path_factory.mktemp("zoo")
    build = ["zoo", "build", "--dataset", "glyphs", "--teachers", str(TEACHERS), "--ways", "5", "--epochs", "6"]
    done = metazoo(*build, "--out", str(folder), timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def foreign_port() -> int:
    """A port of this machine that services may call, for a server that is not theirs."""
    return free_port()


@pytest.fixture(scope="session")
def start_up(zoo_folder: Path, foreign_port: int) -> Iterator[Callable[[Path], Up]]:
    """Start a service in a folder; all are stopped in the end."""
    started: list[Up] = []

    def start(folder: Path) -> Up:
        ready_file = folder / "ready.json"
        arguments = ["up", "--zoo", zoo_folder, "--data-dir", folder / "data", "--ready-file", ready_file]
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        environment["METAZOO_ALLOW"] = f"127.0.0.1:{foreign_port}"
        process = subprocess.Popen(
            [sys.executable, "-m", "metazoo", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not ready_file.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "not ready within two minutes"
            time.sleep(0.1)
        started.append(Up(process, ready_file, json.loads(ready_file.read_text())))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.stop()


@pytest.fixture(scope="session")
def up(start_up: Callable[[Path], Up], tmp_path_factory: pytest.TempPathFactory) -> Up:
    """The service that most tests share."""
    return start_up(tmp_path_factory.mktemp("up"))
