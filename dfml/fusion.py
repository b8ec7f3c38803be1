"""Meta-models made of teachers' weights alone, without an image: one teacher's features, and the average of all of them.

A meta-model normalises by mean 0.5 and standard deviation 0.25 and has no bias before a batch norm, a teacher may differ: what
it does instead is folded into its first convolution and its running means. The same function is computed, save for the
outermost pixels: zeros around a normalised image are a teacher's mean colour, and grey to a meta-model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.nets import STUDENT, Backbone, build, load_weights
from dfml.teachers import WhiteBoxTeacher


def transplant(teacher: WhiteBoxTeacher, config: BackboneConfig) -> Backbone:
    """The teacher's features as a meta-model. Raises ValueError where its architecture is not `config`'s."""
    return _filled(_as_student(teacher), teacher.input_shape, config)


def average(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig) -> Backbone:
    """The plain mean of the teachers' weights and running statistics. Raises ValueError where architectures differ."""
    each = [_as_student(teacher) for teacher in teachers]
    alike = {tuple((name, tensor.shape) for name, tensor in weights.items()) for weights in each}
    if len(alike) != 1:
        raise ValueError("the teachers' architectures differ: their weights have no average")
    mean = {name: torch.stack([weights[name] for weights in each]).mean(0) for name in each[0]}
    return _filled(mean, teachers[0].input_shape, config)


def _filled(weights: dict[str, Tensor], shape: tuple[int, int, int], config: BackboneConfig) -> Backbone:
    backbone = build(config, shape, generator=torch.Generator().manual_seed(0))
    load_weights(backbone, weights)
    return backbone


def _as_student(teacher: WhiteBoxTeacher) -> dict[str, Tensor]:
    """A teacher's weights without its head, as a meta-model would hold them."""
    weights = {name: tensor for name, tensor in teacher.weights().items() if not name.startswith("head.")}
    weights["blocks.0.conv.weight"], shift = _folded(weights["blocks.0.conv.weight"], teacher.normalisation())
    weights["blocks.0.norm.running_mean"] = weights["blocks.0.norm.running_mean"] - shift
    for name in [name for name in weights if name.endswith(".conv.bias")]:
        mean = name.replace(".conv.bias", ".norm.running_mean")
        weights[mean] = weights[mean] - weights.pop(name)
    return weights


def _folded(weight: Tensor, theirs: Normalisation) -> tuple[Tensor, Tensor]:
    """A convolution's weight for inputs normalised as a meta-model's are, and what its output then lacks, a channel.

    (x - m) / s = (0.25 / s) u + (0.5 - m) / s, with u = (x - 0.5) / 0.25.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (theirs.mean, theirs.std))
    own_mean, own_std = (torch.tensor(values).view(1, 3, 1, 1) for values in (STUDENT.mean, STUDENT.std))
    return weight * own_std / std, (weight * (own_mean - mean) / std).sum((1, 2, 3))
