"""Ordinary supervised training of a small classifier: how the teachers of a zoo are made."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.augmentation import augment
from dfml.checkpoint import CheckpointFile
from dfml.nets import STUDENT, Classifier, build_classifier
from dfml.teachers import CHUNK
from dfml.training import Training

OnEpoch = Callable[[int, int, dict[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, {"loss": mean over the epoch, "accuracy": fraction}); it may
raise to stop."""

BATCH = 64
SEEN_AT_LEAST = 12_000
"""Images that a training shows by default, repeats counted: about 5 s of a Conv4-32 at 32x32 on one core."""
EPOCHS = 10
"""At least so many by default."""


def train_classifier(
    images: Tensor,
    *,
    config: BackboneConfig,
    seed: int,
    held_out: float = 0.2,
    epochs: int | None = None,
    patience: int | None = None,
    normalisation: Normalisation = STUDENT,
    flip: bool = True,
    shift: int = 2,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
    device: torch.device | str = "cpu",
    compiled: bool = False,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[Classifier, float]:
    """A classifier and its accuracy, a fraction in [0, 1], on images that neither trained nor chose it.

    Cross-entropy, AdamW on a one-cycle schedule, batches of 64, random flips and shifts. The last `held_out` part of each
    class is never trained on: every second image of it chooses the epoch whose weights are kept (of equals the later one),
    the others measure them. Where a class has but one such image, it does both. Default epochs: 10, or more where the
    images are few.

    images: uint8 (classes, per_class, 3, h, w). Give `flip=False` where a mirrored image is of another class.
    patience: stop after so many epochs without a better one. compiled: train through `torch.compile`.
    checkpoint: a file that is written after each epoch; a training that finds its own there goes on from it, to the same
    weights. It is left there.
    Raises ValueError where there are too few classes or images.
    """
    ways, per_class = images.shape[:2]
    kept = per_class - round(per_class * held_out)
    if ways < 2 or not 0 < kept < per_class:
        raise ValueError(
            f"{ways} classes of {per_class} images, {held_out} held out: training or testing has none left"
        )
    seen, unseen = images[:, :kept].flatten(0, 1), images[:, kept:]
    choosing, measuring = unseen[:, ::2], unseen[:, 1::2] if per_class - kept > 1 else unseen
    labels = torch.arange(ways).repeat_interleave(kept).to(device)
    generator = torch.Generator().manual_seed(seed)
    classifier = _classifier(config, images, normalisation, generator).to(device)
    batches = math.ceil(len(seen) / BATCH)
    epochs = epochs if epochs is not None else max(EPOCHS, math.ceil(SEEN_AT_LEAST / len(seen)))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * batches)
    best = Best(classifier)
    options = [config.model_dump(), seed, held_out, epochs, normalisation.model_dump(), flip, shift, weight_decay]
    file = None if checkpoint is None else CheckpointFile(checkpoint, every=1)
    training = Training(file, [*options, learning_rate], [images])
    training.resume(generator, classifier=classifier, optimiser=optimiser, schedule=schedule, best=best)
    forward = torch.compile(classifier) if compiled else classifier
    for epoch in range(training.done + 1, epochs + 1):
        if patience is not None and epoch - 1 - best.epoch >= patience:
            break
        classifier.train()
        total = 0.0
        for chosen in torch.randperm(len(seen), generator=generator).tensor_split(batches):  # equal to one image
            shown = augment(seen[chosen].to(device), flip=flip, shift=shift, generator=generator)
            loss = F.cross_entropy(forward(shown), labels[chosen.to(device)])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item()
        accuracy = _accuracy(classifier, choosing, device)
        best.saw(epoch, accuracy)
        training.keep(epoch)
        if on_epoch is not None:
            on_epoch(epoch, epochs, {"loss": total / batches, "accuracy": accuracy})
    best.put_back()
    return classifier, _accuracy(classifier, measuring, device)


class Best:
    """The weights of the best epoch so far, of equals the last; `epoch` 0 before there is any."""

    def __init__(self, module: nn.Module) -> None:
        self.epoch, self.accuracy = 0, -1.0
        self._module = module
        self._weights: dict[str, Tensor] = {}

    def saw(self, epoch: int, accuracy: float) -> None:
        """One epoch more is done; its weights are copied if none was better."""
        if accuracy >= self.accuracy:
            self.epoch, self.accuracy = epoch, accuracy
            self._weights = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}

    def put_back(self) -> None:
        """Give the module these weights."""
        if self._weights:
            self._module.load_state_dict(self._weights)

    def state_dict(self) -> dict[Any, Any]:
        return {"epoch": self.epoch, "accuracy": self.accuracy, "weights": self._weights}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.epoch, self.accuracy, self._weights = state["epoch"], state["accuracy"], state["weights"]


def _classifier(
    config: BackboneConfig, images: Tensor, normalisation: Normalisation, generator: torch.Generator
) -> Classifier:
    ways, _, channels, height, width = images.shape
    return build_classifier(
        config.width,
        (channels, height, width),
        ways,
        backbone=config.backbone,
        normalisation=normalisation,
        generator=generator,
    )


def _accuracy(classifier: Classifier, images: Tensor, device: torch.device | str) -> float:
    """Fraction right of uint8 images (classes, per_class, 3, h, w); leaves the classifier in evaluation mode."""
    classifier.eval()
    answer = torch.arange(images.shape[0]).repeat_interleave(images.shape[1])
    with torch.inference_mode():
        chunks = torch.split(images.flatten(0, 1), CHUNK)
        guess = torch.cat([classifier(chunk.to(device)).argmax(-1).cpu() for chunk in chunks])
    return (guess == answer).double().mean().item()
