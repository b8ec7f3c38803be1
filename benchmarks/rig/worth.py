"""What recovered images are worth: accuracy on real images of a fresh network that learned a teacher's answers about them."""

from collections.abc import Callable

import torch
from torch import Tensor

from contracts.meta_models import BackboneConfig
from dfml.datasets import Dataset
from dfml.methods import distill
from dfml.teachers import ModuleTeacher

MOST = 40
"""Real images of a class that the network is tried on."""


def worth(
    images: Tensor,
    teacher: ModuleTeacher,
    source: Dataset,
    classes: list[str],
    *,
    seed: int,
    steps: int,
    device: str = "cpu",
) -> float:
    """Percent right on real images of the teacher's classes. images: float in [0, 1] (n, 3, h, w), asked about as uint8."""
    shown = (images.detach().cpu() * 255).round().to(torch.uint8)
    learner, _ = distill.one(shown, teacher.predict(shown), BackboneConfig(), seed=seed, steps=steps, device=device)
    return right(learner.cpu(), source, classes)


def right(learner: Callable[[Tensor], Tensor], source: Dataset, classes: list[str]) -> float:
    """Percent right on the last real images of the classes, none of which the network has seen."""
    known = source.classes("train")
    shown = source.images("train")[[known.index(name) for name in classes], -MOST:]
    with torch.inference_mode():
        guess = learner(shown.flatten(0, 1)).argmax(-1)
    return 100 * (guess == torch.arange(len(classes)).repeat_interleave(MOST)).double().mean().item()
