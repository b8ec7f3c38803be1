"""Meta-models from weights alone: the same function inside the image, and the plain mean."""

import pytest
import torch

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.fusion import average, transplant
from dfml.nets import build_classifier
from dfml.teachers import ModuleTeacher

CONFIG = BackboneConfig(width=16)


def teacher(seed: int, *, width: int = 16, size: int = 32) -> ModuleTeacher:
    """With a bias before batch norm, statistics that are not 0 and 1, and a normalisation that is not a meta-model's."""
    random = torch.Generator().manual_seed(seed)
    theirs = Normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    net = build_classifier(width, (3, size, size), 3, normalisation=theirs, conv_bias=True, generator=random)
    for block in net.body.blocks:
        block.norm.running_mean.normal_(std=0.1, generator=random)  # type: ignore[union-attr, operator]
        block.norm.running_var.uniform_(0.5, 2, generator=random)  # type: ignore[union-attr, operator]
    return ModuleTeacher(net, ways=3, input_shape=(3, size, size))


def test_a_transplant_computes_the_teachers_features() -> None:
    """Exactly where the border is out of reach: an image that ends in the colours that both pad with is not there, so compare
    the first block's output away from the edge, and the rest of the network by its weights."""
    given = teacher(0)
    mine = transplant(given, CONFIG)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    module = given.module
    theirs = module.body.blocks[0](module.normalise(images))  # type: ignore[union-attr, index, operator]
    ours = mine.body.blocks[0](mine.normalise(images))
    assert torch.allclose(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-5)
    rest = theirs
    for index in range(1, 4):
        rest = module.body.blocks[index](rest)  # type: ignore[union-attr, index, operator]
        theirs = mine.body.blocks[index](theirs)
        assert torch.allclose(theirs, rest, atol=1e-5)


def test_the_average_is_the_mean() -> None:
    teachers = [teacher(0), teacher(1)]
    mean, parts = average(teachers, CONFIG), [transplant(one, CONFIG) for one in teachers]
    for name, tensor in mean.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, (parts[0].state_dict()[name] + parts[1].state_dict()[name]) / 2), name


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="architectures differ"):
        average([teacher(0), teacher(0, width=8)], CONFIG)
    with pytest.raises(ValueError, match="do not fit this network"):
        transplant(teacher(0), BackboneConfig(width=32))
