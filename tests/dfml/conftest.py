"""Small, quick things that the tests of dfml share."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.nets import STUDENT, build_classifier
from dfml.teachers import ModuleTeacher

SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> BackboneConfig:
    return BackboneConfig(width=16)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_teacher() -> Callable[..., ModuleTeacher]:
    """An untrained teacher for 16x16 images; another seed is another teacher."""

    def make(seed: int, *, ways: int = 3) -> ModuleTeacher:
        net = build_classifier(16, SHAPE, ways, normalisation=STUDENT, generator=torch.Generator().manual_seed(seed))
        return ModuleTeacher(net, ways=ways, input_shape=SHAPE)

    return make


@pytest.fixture
def images() -> Tensor:
    """uint8 (40, 3, 16, 16) of noise."""
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (40, *SHAPE)).astype(np.uint8))
