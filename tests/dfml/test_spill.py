"""Images beyond what is kept in memory: the same values from a file without a name, and the same training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.methods import PqdOptions
from dfml import spill
from dfml.memory import Answers
from dfml.methods import pqd
from dfml.nets import weights
from dfml.replay import TaskMemory
from dfml.teachers import ModuleTeacher


def mapped() -> int:
    """Files of images that this process has mapped; none of them has a name any more."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if "metazoo-images-" in line]
    assert all(line.endswith("(deleted)") for line in lines)
    return len(lines)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_what_is_more_than_memory_may_hold_lies_in_a_file_and_goes_with_the_tensor(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 1000)
    files = len(os.listdir("/proc/self/fd"))
    small, large = spill.room((10, 100)), spill.room((10, 101))
    beside = spill.room((5, 100), beside=501)
    assert (mapped(), list(disk.iterdir()), len(os.listdir("/proc/self/fd"))) == (2, [], files)
    for room in (small, large, beside):
        room.copy_(torch.arange(room.numel()).view(room.shape) % 256)
        assert room.flatten().tolist() == [index % 256 for index in range(room.numel())]
    del room, large, beside
    assert mapped() == 0
    assert spill.room((0, 3)).shape == (0, 3)


def test_a_full_disk_is_an_error_and_no_crash(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    with pytest.raises(OSError, match=r"space|large"):
        spill.room((2**50,))
    assert list(disk.iterdir()) == []


@pytest.mark.usefixtures("disk")
def test_a_training_on_spilled_images_is_the_same(
    make_teacher: Callable[..., ModuleTeacher], images: Tensor, tiny: BackboneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = torch.ones(40, 1, dtype=torch.bool)
    asked[7] = False  # an image that nobody answered
    answers = Answers(images, [make_teacher(0).predict(images)], asked)

    def train() -> dict[str, Tensor]:
        return weights(pqd.distil(answers, tiny, PqdOptions(steps=3, batch=8), seed=0).backbone)

    plain = train()
    monkeypatch.setattr(spill, "IN_MEMORY", 100)
    spilled = train()
    assert all(torch.equal(spilled[name], plain[name]) for name in plain)
    assert spill.chosen(images, torch.ones(40, dtype=torch.bool)) is images
    assert torch.equal(spill.chosen(images, asked[:, 0]), images[asked[:, 0]])


@pytest.mark.usefixtures("disk")
def test_a_task_memory_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    images, labels = torch.rand(60, 3, 4, 4, generator=random), torch.arange(60) % 3

    def held() -> tuple[TaskMemory, list[Any]]:
        memory = TaskMemory(15)
        memory.add(0, images[:30], labels[:30])
        memory.add(1, images[30:], labels[30:])
        memory.add(0, images[30:], labels[30:])
        task = memory.task(ways=3, shots=2, queries=3, generator=torch.Generator().manual_seed(1))
        return memory, [task.support, task.query, *memory.batches(16)]

    _, plain = held()
    monkeypatch.setattr(spill, "IN_MEMORY", 1500)
    memory, spilled = held()
    assert mapped() > 0
    assert all(map(torch.equal, plain, spilled))
    again = TaskMemory(15)
    again.load_state_dict(memory.state_dict())
    assert all(map(torch.equal, plain[2:], again.batches(16)))
