"""Teachers whose answers tell less, or nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from api_zoo.inference import limited
from contracts.zoo import parse_policy
from dfml.teachers import ModuleTeacher


class Limited(ModuleTeacher):
    """A teacher whose answers tell what a zoo's response policy lets through. Raises ValueError where there is no such one."""

    def __init__(self, teacher: ModuleTeacher, policy: str) -> None:
        super().__init__(teacher.module, ways=teacher.ways, input_shape=teacher.input_shape)
        parse_policy(policy)
        self._policy = policy

    def predict(self, images: Tensor) -> Tensor:
        return limited(super().predict(images), self._policy)


class Useless(ModuleTeacher):
    """A teacher that answers at random, about as sure of itself as one that knows: Dirichlet of 0.3 for each class."""

    def __init__(self, teacher: ModuleTeacher, seed: int) -> None:
        super().__init__(teacher.module, ways=teacher.ways, input_shape=teacher.input_shape)
        self._generator = torch.Generator().manual_seed(seed)

    def predict(self, images: Tensor) -> Tensor:
        shape = super().predict(images).shape
        drawn = torch._standard_gamma(torch.full(shape, 0.3), generator=self._generator)
        return drawn / drawn.sum(1, keepdim=True).clamp_min(1e-12)


def degraded(teachers: Sequence[ModuleTeacher], how: str) -> Sequence[ModuleTeacher]:
    """`probabilities`: as they are; another response policy: of all; `useless:N`: the first N answer at random.

    Raises ValueError that says what there is.
    """
    kind, _, count = how.partition(":")
    if kind == "useless":
        if not count.isdecimal():
            raise ValueError(f"{how!r}: write useless:N, of N teachers that answer at random")
        return [Useless(one, index) if index < int(count) else one for index, one in enumerate(teachers)]
    return teachers if how == "probabilities" else [Limited(teacher, how) for teacher in teachers]
