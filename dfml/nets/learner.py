"""A backbone with a linear head: what gradient-based meta-learning starts from."""

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from dfml.nets import Backbone, build, initialise

__all__ = ["Learner", "build_learner"]


class Learner(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> logits (n, ways). The backbone is the meta-model."""

    def __init__(self, backbone: Backbone, ways: int) -> None:
        super().__init__()
        self.ways = ways
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, ways)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images))
        return logits


def build_learner(
    config: BackboneConfig, input_shape: tuple[int, int, int], *, ways: int, generator: torch.Generator
) -> Learner:
    """A randomly initialised learner, in evaluation mode, on the CPU."""
    backbone = build(config, input_shape, generator=generator)
    with torch.random.fork_rng(devices=[]):
        learner = Learner(backbone, ways)
    initialise(learner.head, generator)
    return learner.eval()
