"""Meta-models made of teachers' weights alone, without an image: one teacher's features, and averages of all of them.

`average` is plain; `aligned_average` first matches channels by optimal transport (Singh and Jaggi 2020, "OTA" in the tables).

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
    return filled(as_student(teacher), teacher.input_shape, config)


def average(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig) -> Backbone:
    """The plain mean of the teachers' weights and running statistics. Raises ValueError where architectures differ."""
    each = [as_student(teacher) for teacher in teachers]
    alike = {tuple((name, tensor.shape) for name, tensor in weights.items()) for weights in each}
    if len(alike) != 1:
        raise ValueError("the teachers' architectures differ: their weights have no average")
    mean = {name: torch.stack([weights[name] for weights in each]).mean(0) for name in each[0]}
    return filled(mean, teachers[0].input_shape, config)


def aligned_average(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig, *, spread: float = 0.05) -> Backbone:
    """The mean of Conv4 teachers whose channels were matched to the first one's, layer by layer: OTA fusion by weights.

    A layer's channels are moved by the plan that carries them onto the first teacher's at least cost, the squared distance of
    incoming weights, batch-norm scale and shift included; the next layer's inputs are moved along. Entropic plans (Cuturi 2013)
    of `spread` times the mean cost, which are soft permutations. Raises ValueError where architectures differ or are no Conv4.
    """
    if config.backbone != "conv4":
        raise ValueError(f"backbone {config.backbone}: only the channels of conv4 can be matched")
    each = [as_student(teacher) for teacher in teachers]
    if len({tuple((name, tensor.shape) for name, tensor in weights.items()) for weights in each}) != 1:
        raise ValueError("the teachers' architectures differ: their channels have no match")
    aligned = [each[0], *(_aligned(weights, each[0], spread) for weights in each[1:])]
    mean = {name: torch.stack([weights[name] for weights in aligned]).mean(0) for name in aligned[0]}
    return filled(mean, teachers[0].input_shape, config)


def transport(cost: Tensor, *, spread: float, rounds: int = 200) -> Tensor:
    """The entropic optimal transport between two uniform measures (n,), as n times the plan: rows and columns sum to one."""
    scores = -cost / (spread * cost.mean()).clamp_min(1e-12)
    for _ in range(rounds):
        scores = scores - scores.logsumexp(1, keepdim=True)
        scores = scores - scores.logsumexp(0, keepdim=True)
    return scores.exp()


def _aligned(weights: dict[str, Tensor], to: dict[str, Tensor], spread: float) -> dict[str, Tensor]:
    moved, carried = dict(weights), None
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for block in range(blocks):
        conv = f"blocks.{block}.conv.weight"
        if carried is not None:
            moved[conv] = torch.einsum("oihw,ji->ojhw", moved[conv], carried)
        others = [f"blocks.{block}.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        here, there = (
            torch.cat([held[conv].flatten(1), *(held[name][:, None] for name in others[:2])], 1) for held in (moved, to)
        )
        carried = transport(
            torch.cdist(there, here).square(), spread=spread
        )  # (theirs, ours): rows say where to take from
        for name in (conv, *others):
            moved[name] = torch.tensordot(carried, moved[name], dims=1)
    return moved


def filled(weights: dict[str, Tensor], shape: tuple[int, int, int], config: BackboneConfig) -> Backbone:
    backbone = build(config, shape, generator=torch.Generator().manual_seed(0))
    load_weights(backbone, weights)
    return backbone


def as_student(teacher: WhiteBoxTeacher) -> dict[str, Tensor]:
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
