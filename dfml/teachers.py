"""Teachers: what answers images with probabilities, and counts how often it was asked."""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

from contracts.zoo import Manifest, TeacherEntry
from dfml.nets import Classifier, build_classifier, load_weights

CHUNK = 64
"""Images at once: on a CPU core the activations of 64 still fit the cache, those of 512 run 1.5 times slower."""


class BadTeacher(ValueError):
    """The file of a teacher is damaged, altered, or not what its manifest says."""


@runtime_checkable
class Teacher(Protocol):
    """A black box: one answer a query, no gradients, nothing of its training data."""

    @property
    def ways(self) -> int:
        """Number of classes."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, height, width) of the images it takes."""

    @property
    def queries(self) -> int:
        """Images asked so far: each image costs one, whatever the batch."""

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways)."""


class ModuleTeacher:
    """A teacher from a module in this process that gives logits.

    Each image is answered by itself: batch norm uses its running statistics.
    """

    def __init__(
        self, module: nn.Module, *, ways: int, input_shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.ways = ways
        self.input_shape = input_shape
        self.queries = 0
        self.module = module.to(device).eval()
        self._device = torch.device(device)

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways), on the CPU.

        Raises ValueError on another shape or type, on NaN, and on values outside [0, 1]; then nothing is counted.
        """
        check_images(images, self.input_shape)
        self.queries += len(images)
        with torch.inference_mode():
            chunks = torch.split(images, CHUNK)
            answers = torch.cat([self.module(chunk.to(self._device)).softmax(-1).float().cpu() for chunk in chunks])
        return answers.clone()  # a plain tensor, outside inference mode


def check_images(images: Tensor, input_shape: tuple[int, int, int]) -> None:
    """Raise ValueError, saying what to send, unless `images` is uint8 or float in [0, 1] of shape (n >= 1, *input_shape)."""
    if images.ndim != 4 or tuple(images.shape[1:]) != input_shape or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)}: send (n, {', '.join(map(str, input_shape))}), n >= 1"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: send uint8, or float in [0, 1]")
    if not bool(((images >= 0) & (images <= 1)).all()):  # NaN fails both
        raise ValueError("images hold NaN or values outside [0, 1]: scale them to [0, 1], or send uint8")


def load_teacher(manifest: Manifest, entry: TeacherEntry, weights: Path | bytes) -> ModuleTeacher:
    """The teacher of a zoo folder's entry, from its safetensors file or the bytes of it.

    Raises BadTeacher when the bytes differ from the manifest's SHA-256 (where it has one) or do not fit its architecture.
    """
    held = weights if isinstance(weights, bytes) else weights.read_bytes()
    if entry.sha256 is not None and hashlib.sha256(held).hexdigest() != entry.sha256:
        raise BadTeacher(f"{entry.file}: its SHA-256 is not the manifest's; get the file again, or build the zoo anew")
    classifier = classifier_of(manifest, ways=len(entry.classes), generator=torch.Generator().manual_seed(0))
    try:
        load_weights(classifier, read_safetensors(held))
    except (SafetensorError, ValueError) as error:
        raise BadTeacher(f"{entry.file}: {error}") from error
    return ModuleTeacher(classifier, ways=len(entry.classes), input_shape=manifest.input)


def classifier_of(manifest: Manifest, *, ways: int, generator: torch.Generator) -> Classifier:
    """An untrained classifier of the manifest's architecture."""
    return build_classifier(
        manifest.width,
        manifest.input,
        ways,
        normalisation=manifest.normalise,
        conv_bias=manifest.conv_bias,
        generator=generator,
    )
