"""What processes run with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metazoo import runtime

BATCHES = """
import resource
from metazoo import runtime
runtime.keep_memory()
import torch
def batch():
    held = [torch.ones(2 << 20) for _ in range(4)]  # 8 MiB each
for _ in range(5):  # until pieces lie where they fit
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


def page_faults(**told: str) -> int:
    """Of a batch of 32 MiB, after the first ones."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", BATCHES]
    return int(subprocess.run(command, env=environment | told, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_unless_the_caller_has_it_given_back() -> None:
    start = (
        "131072"  # where glibc begins; it raises both by what it sees, and the order of that decides what is given back
    )
    assert page_faults() < 100
    assert page_faults(MALLOC_TRIM_THRESHOLD_=start, MALLOC_MMAP_THRESHOLD_=start) > 8000


def test_what_the_caller_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("METAZOO_DATA", "here")
    runtime.prepare()
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == os.environ["MALLOC_MMAP_THRESHOLD_"] == "1000000"
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["METAZOO_DATA"] == str(Path("here").absolute())


def test_scripts_set_what_the_command_sets() -> None:
    set_there = subprocess.run(
        ["bash", "-c", "source scripts/environment; env"],
        env={"PATH": os.environ["PATH"]},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert {"OMP_WAIT_POLICY=PASSIVE", f"MALLOC_TRIM_THRESHOLD_={runtime.KEPT}"} <= set(set_there)
    assert f"MALLOC_MMAP_THRESHOLD_={runtime.LARGE}" in set_there
