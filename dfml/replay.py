"""The memory of recovered images, from which tasks across teachers are drawn: cross-task replay of BiDf-MKD and FREE."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dfml import spill


@dataclass(frozen=True)
class Task:
    """A few-shot task. Images (n, 3, h, w), uint8 or float in [0, 1]; labels int64 (n,) in [0, ways)."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


class TaskMemory:
    """The newest `capacity` recovered images of every class of every teacher, as uint8 in the memory of `device`.

    On the CPU what is beyond a limit lies on disk (`dfml.spill`).

    A class is known as (teacher, its place in the teacher's answers): that two teachers know the same class is nothing that a
    zoo tells. One image is `3 * h * w` bytes.
    """

    def __init__(self, capacity: int, *, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self._device = device
        self._held: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        """Classes that it has images of."""
        return len(self._held)

    @property
    def images(self) -> int:
        """Images held."""
        return sum(len(held) for held in self._held.values())

    def add(self, teacher: int, images: Tensor, labels: Tensor) -> None:
        """Keep images, float in [0, 1] (n, 3, h, w), of the teacher's classes `labels`; the oldest give way."""
        stored = (images.detach() * 255).round().to(torch.uint8)
        for label in sorted(set(labels.tolist())):
            new = stored[labels == label].to(self._device)
            held = self._held.get((teacher, label))
            both = new if held is None else torch.cat([held, new])
            self._keep((teacher, label), both[-self.capacity :])

    def able(self, images: int) -> int:
        """Classes with so many images at least."""
        return sum(len(held) >= images for held in self._held.values())

    def task(self, *, ways: int, shots: int, queries: int, generator: torch.Generator) -> Task:
        """A task of `ways` classes drawn at random from all teachers' together, its images drawn without repeats.

        Raises ValueError where there are too few classes with so many images.
        """
        able = [held for held in self._held.values() if len(held) >= shots + queries]
        if len(able) < ways:
            raise ValueError(
                f"{len(able)} of {len(self)} classes have the {shots + queries} images that a task takes of a class, "
                f"{ways} are needed: recover more images, or ask for smaller tasks"
            )
        chosen = [able[index] for index in torch.randperm(len(able), generator=generator)[:ways].tolist()]
        picked = [held[torch.randperm(len(held), generator=generator)[: shots + queries]] for held in chosen]
        return split_task(torch.stack(picked), shots=shots)

    def state_dict(self) -> dict[Any, Any]:
        return dict(self._held)

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self._held = {}
        for known, held in state.items():
            self._keep(known, held.to(self._device))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images, classes mixed evenly: uint8 (size or fewer, 3, h, w) each, two images at least."""
        count = max(1, self.images // size)
        for start in range(count):
            parts, before = [], 0
            for held in self._held.values():  # of all images, one after the other, every `count`th from `start` on
                parts.append(held[(start - before) % count :: count])
                before += len(held)
            yield torch.cat(parts)

    def _keep(self, known: tuple[int, int], images: Tensor) -> None:
        others = sum(held.nbytes for one, held in self._held.items() if one != known)
        if images.device.type == "cpu" and images.nbytes + others > spill.IN_MEMORY:
            images = spill.room(tuple(images.shape), beside=others).copy_(images)
        self._held[known] = images


def split_task(images: Tensor, *, shots: int) -> Task:
    """Images (ways, n, 3, h, w) -> the first `shots` of each class are the support, the others the query."""
    ways, each = images.shape[:2]
    labels = torch.arange(ways, device=images.device)
    return Task(
        images[:, :shots].flatten(0, 1),
        labels.repeat_interleave(shots),
        images[:, shots:].flatten(0, 1),
        labels.repeat_interleave(each - shots),
    )
