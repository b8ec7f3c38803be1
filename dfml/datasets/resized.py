"""A data set at another size than its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dfml.datasets import Dataset

_TOGETHER = 256  # images resized at once


@dataclass(frozen=True)
class Resized:
    """Images of `dataset` as (3, side, side), bilinear with antialiasing. Not kept: ask for what you need."""

    dataset: "Dataset"
    side: int

    @property
    def name(self) -> str:
        """The data set's own."""
        return self.dataset.name

    def classes(self, split: str) -> tuple[str, ...]:
        """The data set's own."""
        return self.dataset.classes(split)

    def images(self, split: str, classes: Sequence[str] | None = None) -> Tensor:
        """uint8 (classes, per_class, 3, side, side)."""
        images = self.dataset.images(split, classes)
        if images.shape[3:] == (self.side, self.side):
            return images
        flat = images.reshape(-1, *images.shape[2:])
        parts = [
            F.interpolate(part.float(), (self.side, self.side), mode="bilinear", antialias=True).round().clamp(0, 255)
            for part in torch.split(flat, _TOGETHER)
        ]
        return torch.cat([part.byte() for part in parts]).reshape(*images.shape[:3], self.side, self.side)
