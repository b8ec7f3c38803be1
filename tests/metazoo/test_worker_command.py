"""`metazoo worker` up to where Celery begins: which queues it takes from, and which GPU it sees."""

import os
from typing import Any

import pytest
from typer.testing import CliRunner

from meta_server.queue import ACQUIRE_QUEUES, GPU_QUEUES, LEARN_QUEUES
from meta_server.store.secrets import Secrets
from metazoo import cli
from worker import devices


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> dict[str, Any]:
    """What the worker was started with, and the GPUs that its children would see."""
    told: dict[str, Any] = {}

    def start(_: Any, **others: Any) -> None:
        told.update(others, seen=os.environ.get("CUDA_VISIBLE_DEVICES"))

    monkeypatch.setattr("worker.app.start", start)
    monkeypatch.setattr(devices.Path, "glob", lambda *_: iter(["gpu-a", "gpu-b"]))
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "REMAP_SIGTERM": "SIGQUIT",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "METAZOO_ARTIFACTS": str(tmp_path),
        "METAZOO_SECRET_KEY": Secrets.generate(),
    }.items():
        monkeypatch.setenv(name, value)  # put back in the end, whatever the command sets
    return told


@pytest.mark.parametrize(
    ("arguments", "seen", "queues"),
    [
        (["learn", "--gpu", "1"], "1", GPU_QUEUES + LEARN_QUEUES),
        (["learn"], "0,1", GPU_QUEUES + LEARN_QUEUES),
        (["learn", "--gpu", "none"], "", LEARN_QUEUES),
        (["acquire"], "0,1", ACQUIRE_QUEUES),
    ],
)
def test_a_learner_is_pinned_to_its_gpu_and_takes_what_needs_one(
    begun: dict[str, Any], arguments: list[str], seen: str, queues: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(cli.app, ["worker", *arguments])
    assert done.exit_code == 0, done.output
    assert (begun["seen"], begun["queues"]) == (seen, queues)
