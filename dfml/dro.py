"""DRO fusion: weights predicted from an embedding of the task, learned against the worst task near each teacher's.

Wang, Wang, Shen, Suo, Song, Yu, Shen, Gao: Meta-Learning without Data via Wasserstein Distributionally-Robust Model Fusion.
UAI 2022. A teacher is a point theta_i in the space of weights, e_i a learned embedding of its task, f_phi linear:

    log P(theta | e) = -|theta - f_phi(e)|^2 / 2

Each round parts the teachers into a support S and a query Q, and takes a step of each of

    phi* = phi + rate grad mean_S log P(theta_i | f_phi(e_i))
    e*   = argmin_e' log P(theta_j | f_phi*(e')) + gamma |e_j - e'|^2       for each j of Q: the worst task near it
    phi  = phi + rate grad mean_Q log P(theta_j | f_phi*(e*_j))             through phi*, as MAML

The meta-model is `f_phi(mean e)`. It takes published weights of one architecture, and no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.fusion import as_student, filled
from dfml.nets import Backbone
from dfml.teachers import WhiteBoxTeacher

EMBEDDING = 50
QUERY_SHARE = 0.2
LEAST_VARIANCE = 1e-4
"""Of a batch norm's running variance, which a linear map may predict below zero."""


@dataclass(frozen=True)
class Predictor:
    """phi, and the embeddings e: weight (d, EMBEDDING), bias (d,), tasks (teachers, EMBEDDING). Learned together."""

    weight: Tensor
    bias: Tensor
    tasks: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.bias, self.tasks

    def __call__(self, embeddings: Tensor) -> Tensor:
        """f_phi: (n, EMBEDDING) -> (n, d)."""
        return embeddings @ self.weight.T + self.bias


def fused(
    teachers: Sequence[WhiteBoxTeacher], *, seed: int, rounds: int = 300, rate: float = 0.03, gamma: float = 2.0
) -> dict[str, Tensor]:
    """The predicted weights and running statistics, named as in files. Raises ValueError where architectures differ.

    Each tensor is measured in its own length, so that a teacher is a point about one from the origin, in any network.
    `rate` and `gamma` are the paper's; `rounds` is ours, and enough for the loss to come to rest.
    """
    each = [as_student(teacher) for teacher in teachers]
    shapes = {name: tensor.shape for name, tensor in each[0].items()}
    if any({name: tensor.shape for name, tensor in weights.items()} != shapes for weights in each):
        raise ValueError("the teachers' architectures differ: their weights have no fusion")
    stacked = {name: torch.stack([weights[name].flatten() for weights in each]) for name in shapes}
    units = {name: _length(rows) * len(shapes) ** 0.5 for name, rows in stacked.items()}
    points = torch.cat([rows / units[name] for name, rows in stacked.items()], 1)
    learned = learn(points, seed=seed, rounds=rounds, rate=rate, gamma=gamma)
    parts = torch.split(learned(learned.tasks.mean(0, keepdim=True))[0], [shape.numel() for shape in shapes.values()])
    found = {name: part.reshape(shape) * units[name] for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return {
        name: tensor.clamp_min(LEAST_VARIANCE) if name.endswith("running_var") else tensor
        for name, tensor in found.items()
    }


def fuse(teachers: Sequence[WhiteBoxTeacher], config: BackboneConfig, *, seed: int) -> Backbone:
    """`fused` as a meta-model. Raises ValueError where an architecture is not `config`'s."""
    return filled(fused(teachers, seed=seed), teachers[0].input_shape, config)


def _length(rows: Tensor) -> Tensor:
    return rows.square().sum(1).mean().sqrt().clamp_min(1e-12)


def learn(points: Tensor, *, seed: int, rounds: int, rate: float, gamma: float) -> Predictor:
    """The predictor of the points (teachers, d). One teacher is its own support and query."""
    generator = torch.Generator().manual_seed(seed)
    count, size = points.shape
    spread = EMBEDDING**-0.5  # embeddings of length about one, so that `rate` is as long a step for any point
    now = Predictor(
        torch.randn(size, EMBEDDING, generator=generator) * 0.1 * spread,
        torch.zeros(size),
        torch.randn(count, EMBEDDING, generator=generator) * spread,
    )
    for _ in range(rounds):
        order = torch.randperm(count, generator=generator)
        asked = max(1, round(QUERY_SHARE * count))
        query, support = order[:asked], order[asked:] if count > 1 else order
        now = step(now, points, support, query, rate=rate, gamma=gamma)
    return now


def step(now: Predictor, points: Tensor, support: Tensor, query: Tensor, *, rate: float, gamma: float) -> Predictor:
    """One round on teachers `support` and `query`, int64 indices. The way from e_j to e*_j is a constant to the gradient."""
    held = Predictor(*(part.detach().requires_grad_() for part in now.parts))
    slopes = torch.autograd.grad(loss(held, points, support, held.tasks[support]), held.parts, create_graph=True)
    there = Predictor(*(part - rate * slope for part, slope in zip(held.parts, slopes, strict=True)))
    away = worst(there, points, query, rate=rate, gamma=gamma) - there.tasks[query].detach()
    slopes = torch.autograd.grad(loss(there, points, query, there.tasks[query] + away), held.parts)
    return Predictor(*(part.detach() - rate * slope for part, slope in zip(held.parts, slopes, strict=True)))


def loss(predictor: Predictor, points: Tensor, which: Tensor, embeddings: Tensor) -> Tensor:
    """Mean of `-log P(theta | e)` over some teachers."""
    return (points[which] - predictor(embeddings)).square().sum(1).mean() / 2


def worst(predictor: Predictor, points: Tensor, which: Tensor, *, rate: float, gamma: float, steps: int = 5) -> Tensor:
    """e*: (n, EMBEDDING), `steps` steps of `rate` from e. There is no least where phi is long: so few steps end."""
    weight, bias, start = (part.detach() for part in (predictor.weight, predictor.bias, predictor.tasks[which]))
    found = start
    for _ in range(steps):
        apart = points[which] - (found @ weight.T + bias)
        found = found - rate * (apart @ weight + 2 * gamma * (found - start))
    return found
