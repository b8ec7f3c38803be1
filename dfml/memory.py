"""The task memory: query images and the answers paid for."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """What every API said about a shared pool of images.

    images: uint8 (n, 3, height, width).
    probabilities: for each API float32 (n, ways of this API), as received; rows not asked are zeros.
    asked: bool (n, APIs).

    Raises ValueError where the parts do not fit together.
    """

    images: Tensor
    probabilities: list[Tensor]
    asked: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 (n, 3, height, width), got {_describe(self.images)}")
        if self.asked.dtype != torch.bool or self.asked.shape != (n, len(self.probabilities)):
            raise ValueError(f"asked: expected bool ({n}, {len(self.probabilities)}), got {_describe(self.asked)}")
        for api, answers in enumerate(self.probabilities):
            if answers.dtype != torch.float32 or answers.ndim != 2 or len(answers) != n or answers.shape[1] < 2:
                raise ValueError(
                    f"probabilities[{api}]: expected float32 ({n}, 2 or more classes), got {_describe(answers)}"
                )
            if not torch.isfinite(answers).all():
                raise ValueError(f"probabilities[{api}]: holds NaN or infinity; leave such answers out of `asked`")

    @property
    def ways(self) -> tuple[int, ...]:
        """Classes of each API."""
        return tuple(answers.shape[1] for answers in self.probabilities)

    @property
    def queries(self) -> int:
        """Images asked about, over all APIs."""
        return int(self.asked.sum())


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
