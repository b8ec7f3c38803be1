"""The memory of recovered images: what it keeps, and the tasks that it gives."""

import pytest
import torch
from torch import Tensor

from dfml.replay import TaskMemory, split_task


def grey(*levels: int) -> Tensor:
    """Float images (n, 3, 2, 2), each of one level out of 255."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 255


def levels(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_the_newest_images_of_a_class_are_kept() -> None:
    memory = TaskMemory(3)
    memory.add(0, grey(1, 2, 3, 4), torch.tensor([0, 0, 1, 0]))
    memory.add(0, grey(5, 6), torch.tensor([0, 1]))
    memory.add(1, grey(7), torch.tensor([0]))
    assert len(memory) == 3
    assert memory.images == 3 + 2 + 1
    assert sorted(levels(next(memory.batches(100)))) == [2, 3, 4, 5, 6, 7]


def test_a_task_mixes_teachers_and_never_repeats_an_image(generator: torch.Generator) -> None:
    memory = TaskMemory(10)
    for teacher in range(3):
        for label in range(2):
            first = 50 * teacher + 20 * label
            memory.add(teacher, grey(*range(first, first + 10)), torch.full((10,), label))
    seen = set()
    for _ in range(30):
        task = memory.task(ways=3, shots=2, queries=4, generator=generator)
        assert task.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert len(task.query) == 12
        shown = levels(task.support) + levels(task.query)
        assert len(set(shown)) == 18
        owners = [{level // 10 for level in levels(task.query[task.query_labels == way])} for way in range(3)]
        assert all(len(owner) == 1 for owner in owners)
        seen |= set.union(*owners)
    assert seen == {0, 2, 5, 7, 10, 12}


def test_too_few_classes_say_so(generator: torch.Generator) -> None:
    memory = TaskMemory(10)
    memory.add(0, grey(1, 2, 3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="1 of 2 classes have the 2 images"):
        memory.task(ways=2, shots=1, queries=1, generator=generator)


def test_what_is_taken_up_again_lies_on_the_device_of_whoever_does() -> None:
    """It was kept on the CPU; a task of images on two devices could not be learned."""
    before, memory = TaskMemory(3), TaskMemory(3, device="meta")
    before.add(0, grey(1, 2), torch.tensor([0, 1]))
    memory.load_state_dict(before.state_dict())
    memory.add(0, grey(3), torch.tensor([1]))
    assert {batch.device.type for batch in memory.batches(2)} == {"meta"}
    assert memory.images == 3


def test_batches_cover_everything_once() -> None:
    memory = TaskMemory(100)
    memory.add(0, grey(*range(37)), torch.arange(37) % 4)
    batches = list(memory.batches(10))
    assert sorted(level for batch in batches for level in levels(batch)) == list(range(37))
    assert min(map(len, batches)) >= 2


def test_a_split_keeps_images_with_their_labels() -> None:
    images = torch.arange(12).view(3, 4, 1, 1, 1).expand(-1, -1, 3, 2, 2)
    task = split_task(images, shots=1)
    assert levels(task.support) == [0, 4, 8]
    assert levels(task.query) == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert task.query_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
