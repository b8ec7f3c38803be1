"""Ordinary supervised training of a small classifier: how the teachers of a zoo are made."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.augmentation import augment
from dfml.nets import STUDENT, Classifier, build_classifier
from dfml.teachers import ModuleTeacher

OnEpoch = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, {"loss": mean over the epoch}); it may raise to stop."""

BATCH = 64
SEEN_AT_LEAST = 12_000
"""Images that a training shows by default, repeats counted: about 10 s of a Conv4-32 at 32x32 on one core."""


def train_classifier(
    images: Tensor,
    *,
    config: BackboneConfig,
    seed: int,
    held_out: float = 0.2,
    epochs: int | None = None,
    normalisation: Normalisation = STUDENT,
    flip: bool = True,
    shift: int = 2,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
    device: torch.device | str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> tuple[Classifier, float]:
    """A Conv4 and its accuracy, a fraction in [0, 1], on the last `held_out` part of each class, which training never saw.

    Cross-entropy, AdamW on a one-cycle schedule, batches of 64, random flips and shifts; the weights are those of the last
    epoch, so that the accuracy is an honest one. Default epochs: 14, or more where the images are few.

    images: uint8 (classes, per_class, 3, h, w). Give `flip=False` where a mirrored image is of another class.
    Raises ValueError where there are too few classes or images.
    """
    if config.backbone != "conv4":
        raise ValueError(f"backbone {config.backbone}: teachers are Conv4 networks; give conv4")
    ways, per_class = images.shape[:2]
    kept = per_class - round(per_class * held_out)
    if ways < 2 or not 0 < kept < per_class:
        raise ValueError(
            f"{ways} classes of {per_class} images, {held_out} held out: training or testing has none left"
        )
    seen, unseen = images[:, :kept].flatten(0, 1), images[:, kept:].flatten(0, 1)
    labels = torch.arange(ways).repeat_interleave(kept).to(device)
    generator = torch.Generator().manual_seed(seed)
    _, channels, height, width = seen.shape
    classifier = build_classifier(
        config.width, (channels, height, width), ways, normalisation=normalisation, generator=generator
    )
    classifier.to(device).train()
    batches = math.ceil(len(seen) / BATCH)
    epochs = epochs if epochs is not None else max(14, math.ceil(SEEN_AT_LEAST / len(seen)))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * batches)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(seen), generator=generator).tensor_split(batches):  # equal to one image
            shown = augment(seen[chosen].to(device), flip=flip, shift=shift, generator=generator)
            loss = F.cross_entropy(classifier(shown), labels[chosen.to(device)])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item()
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs, {"loss": total / batches})
    teacher = ModuleTeacher(classifier, ways=ways, input_shape=classifier.input_shape, device=device)
    answer = torch.arange(ways).repeat_interleave(per_class - kept)
    accuracy = (teacher.predict(unseen).argmax(-1) == answer).double().mean().item()
    return classifier, accuracy
