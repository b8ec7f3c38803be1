"""The image generator of FREE and BiDf-MKD: noise, and a label if it is conditional, to images.

Architecture as in Fast-Datafree (Fang et al. 2022), which both papers use: a linear layer to a quarter of the size, then
twice upsample - conv3x3 - batch norm - leaky ReLU, then conv3x3 - sigmoid; 256 noise numbers and width 64 in the papers.
Deviations: any size; and it may take labels, where the papers' learns what comes at which place of the batch instead.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfml.nets import initialise

__all__ = ["Generator", "build_generator"]


class Generator(nn.Module):
    """z (n, latent) and, if conditional, labels int64 (n,) in [0, classes) -> images (n, 3, h, w) in [0, 1].

    Batch norm uses the statistics of the batch in any mode, as the papers do, and keeps none: an image depends on the
    others made with it, and a forward pass changes nothing in the module.
    """

    def __init__(self, *, latent: int, classes: int | None, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, across = shape
        self.latent = latent
        self.classes = classes
        self.shape = shape
        self._small = (math.ceil(height / 4), math.ceil(across / 4))
        self._middle = (math.ceil(height / 2), math.ceil(across / 2))
        self._wide = 2 * width
        self.label = None if classes is None else nn.Parameter(torch.empty(classes, latent))
        self.project = nn.Linear(latent if classes is None else 2 * latent, self._wide * math.prod(self._small))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(features, track_running_stats=False) for features in (self._wide, self._wide, width)
        )
        self.first = nn.Conv2d(self._wide, self._wide, 3, padding=1)
        self.second = nn.Conv2d(self._wide, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Raises ValueError where labels are missing, or given to a generator that takes none."""
        if (labels is None) != (self.label is None):
            needs = (
                "takes no labels" if self.label is None else f"is conditional: give it labels in [0, {self.classes})"
            )
            raise ValueError(f"this generator {needs}")
        if self.label is not None and labels is not None:
            z = torch.cat([z, self.label[labels]], 1)
        x = self.norms[0](self.project(z).view(len(z), self._wide, *self._small))
        x = F.leaky_relu(self.norms[1](self.first(F.interpolate(x, self._middle))), 0.2)
        x = F.leaky_relu(self.norms[2](self.second(F.interpolate(x, self.shape[1:]))), 0.2)
        images: Tensor = self.last(x).sigmoid()
        return images


def build_generator(
    *, latent: int, classes: int | None, shape: tuple[int, int, int], width: int, generator: torch.Generator
) -> Generator:
    """A randomly initialised generator of images of `shape` (3, h, w), on the CPU; `classes` None: it takes no labels."""
    with torch.random.fork_rng(devices=[]):
        net = Generator(latent=latent, classes=classes, shape=shape, width=width)
    initialise(net, generator)
    if net.label is not None:  # labels as far apart as noise is
        nn.init.normal_(net.label, generator=generator)
    return net
