"""How a meta-model meets a new task: a light head on frozen features, fitted to a handful of labelled images.

Batch norm is inductive (running statistics), so an answer never depends on its batch neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfml.nets import Backbone
from dfml.teachers import CHUNK, check_images

HeadName = Literal["logistic", "prototypes"]

SCALE = 5.0
"""Length of the features that a logistic head sees: how fast it can become sure of itself."""
SHARPNESS = 10.0
"""Cosine to a prototype times this is the logit of a class."""


@dataclass(frozen=True)
class Heads:
    """Linear heads of a batch of tasks on L2-normalised features: logits = (f / |f| - centre) @ weight + bias.

    centre: (tasks, 1, d); weight: (tasks, d, ways); bias: (tasks, 1, ways).
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(tasks, n, d) -> (tasks, n, ways)."""
        return (F.normalize(features, dim=-1) - self.centre) @ self.weight + self.bias


def logistic_heads(
    support: Tensor, labels: Tensor, *, ways: int, steps: int = 100, rate: float = 0.05, decay: float = 1e-2
) -> Heads:
    """Multinomial logistic regression for many tasks at once, by Adam on the exact gradient.

    Minimises mean cross-entropy + decay/2 |W|^2 on features of length `SCALE`, centred on the support's mean, from zero.
    Tasks do not touch each other: each head is what it would be alone.

    support: features (tasks, n, d); labels: int64 (tasks, n) in [0, ways).
    """
    unit = F.normalize(support, dim=-1)
    centre = unit.mean(1, keepdim=True)
    x = (unit - centre) * SCALE
    target = F.one_hot(labels, ways).to(x.dtype)
    tasks, n, d = x.shape
    weight, bias = x.new_zeros(tasks, d, ways), x.new_zeros(tasks, 1, ways)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (weight, bias)]
    for step in range(1, steps + 1):
        error = (torch.baddbmm(bias, x, weight).softmax(-1) - target) / n
        gradients = (torch.baddbmm(weight, x.mT, error, beta=decay), error.sum(1, keepdim=True))
        for parameter, gradient, (first, second) in zip((weight, bias), gradients, moments, strict=True):
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            spread = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, spread, value=-rate / (1 - 0.9**step))
    return Heads(centre, weight * SCALE, bias)


def prototype_heads(support: Tensor, labels: Tensor, *, ways: int) -> Heads:
    """Cosine to the mean of each class's L2-normalised features (Snell et al. 2017, with the cosine).

    support: features (tasks, n, d); labels: int64 (tasks, n) in [0, ways).
    """
    unit = F.normalize(support, dim=-1)
    members = F.one_hot(labels, ways).to(unit.dtype)  # (tasks, n, ways)
    prototypes = F.normalize(unit.mT @ members, dim=1)  # sums and means have the same direction
    zeros = unit.new_zeros(len(unit), 1, ways)
    return Heads(unit.new_zeros(len(unit), 1, unit.shape[2]), prototypes * SHARPNESS, zeros)


def heads(name: HeadName, support: Tensor, labels: Tensor, *, ways: int) -> Heads:
    """The heads called `name`, fitted to each task's support."""
    if name == "logistic":
        return logistic_heads(support, labels, ways=ways)
    if name == "prototypes":
        return prototype_heads(support, labels, ways=ways)
    raise ValueError(f"head {name!r} is unknown: there are logistic and prototypes")


@dataclass(frozen=True)
class Adapted:
    """A backbone with the head of one task."""

    backbone: Backbone
    head: Heads
    ways: int

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways), on the CPU. ValueError on bad images."""
        check_images(images, self.backbone.input_shape)
        with torch.inference_mode():
            logits = self.head.logits(embed(self.backbone, images)[None])[0]
        return logits.softmax(-1).cpu().clone()


def adapt(backbone: Backbone, images: Tensor, labels: Tensor, *, ways: int, head: HeadName = "logistic") -> Adapted:
    """Fit a head to a few labelled images.

    images: uint8, or float in [0, 1], (n, 3, h, w); labels: int64 (n,) in [0, ways), each class at least once.
    Raises ValueError that says what does not fit.
    """
    check_images(images, backbone.input_shape)
    if labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images but labels of shape {tuple(labels.shape)}: give one label an image")
    present = sorted(set(labels.tolist()))
    if ways < 2 or present != list(range(ways)):
        raise ValueError(
            f"labels {present}: give each of the classes 0 to {ways - 1} at least one image, and two classes"
        )
    with torch.inference_mode():
        support = embed(backbone, images)[None]
        fitted = heads(head, support, labels.to(support.device)[None], ways=ways)
    return Adapted(backbone, fitted, ways)


class Embedding(Protocol):
    """What can be evaluated like a backbone: an `nn.Module` from images (n, *input_shape) to features (n, dim)."""

    input_shape: tuple[int, int, int]
    dim: int
    training: bool

    def __call__(self, images: Tensor) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def train(self, mode: bool = True) -> Any: ...
    def to(self, device: torch.device | str) -> Any: ...


def embed(backbone: Embedding, images: Tensor) -> Tensor:
    """Features (n, dim) on the backbone's device; without gradients, in chunks, in evaluation mode."""
    was_training = backbone.training
    backbone.train(False)
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        features = torch.cat([backbone(chunk.to(device)) for chunk in torch.split(images, CHUNK)])
    backbone.train(was_training)
    return features
