"""Teachers: what answers images with probabilities, and counts how often it was asked.

What a method needs is in its types: `Teacher` is a black box, `DifferentiableTeacher` gives gradients to the pixels as well,
exact ones or estimated (`dfml.numerics.gradient_sources`), `WhiteBoxTeacher` is one whose host publishes the weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn
from torch.func import functional_call

from contracts.zoo import SUFFIXES, Manifest, Network, Normalisation, TeacherEntry
from dfml import foreign
from dfml.nets import Classifier, build_classifier, check_fit, load_weights, shapes, weights

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

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


@dataclass(frozen=True)
class BatchStatistics:
    """What one batch norm met in a batch, and what it met in training: four tensors (channels,).

    `mean` and `variance` (biased) are of the batch, differentiable to the pixels; the others are the running statistics.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor


@runtime_checkable
class DifferentiableTeacher(Teacher, Protocol):
    """A teacher that also gives gradients to the pixels, and what its batch norms remember, if that is known."""

    @property
    def device(self) -> torch.device:
        """Where images must be for `logits` and `inspect`."""

    def logits(self, images: Tensor) -> Tensor:
        """float (n, 3, h, w) on `device`, meant to be in [0, 1] -> logits (n, ways), differentiable to the pixels.

        Logits are known up to a number an image: of a black box they are the logarithms of its probabilities.
        """

    def inspect(self, images: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
        """Like `logits`, and the statistics of every batch norm, in the order they are met; empty where there is none."""


@runtime_checkable
class WhiteBoxTeacher(DifferentiableTeacher, Protocol):
    """A teacher whose weights are at hand: its gradients are exact, and cost no queries."""

    @property
    def forward_passes(self) -> int:
        """Images that went through it, `predict` included."""

    @property
    def backward_passes(self) -> int:
        """Images whose pixels got a gradient from it."""

    def normalisation(self) -> Normalisation:
        """What it subtracts from images in [0, 1], and divides by."""

    def weights(self) -> dict[str, Tensor]:
        """Copies of its tensors, named as in the files of a zoo: `blocks.0.conv.weight`, …, `head.weight`."""


class ModuleTeacher:
    """A teacher from a module in this process that gives logits: a `WhiteBoxTeacher`.

    Each image is answered by itself: batch norm uses its running statistics. The module is never changed, and its
    parameters get no gradients.
    """

    def __init__(
        self, module: nn.Module, *, ways: int, input_shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.ways = ways
        self.input_shape = input_shape
        self.queries = 0
        self.forward_passes = 0
        self.backward_passes = 0
        self.module = module.to(device).eval()
        self.device = torch.device(device)

    def predict(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (n, 3, h, w) -> probabilities float32 (n, ways), on the CPU.

        Raises ValueError on another shape or type, on NaN, and on values outside [0, 1]; then nothing is counted.
        """
        check_images(images, self.input_shape)
        self.queries += len(images)
        self.forward_passes += len(images)
        with torch.inference_mode():
            chunks = torch.split(images, CHUNK)
            answers = torch.cat([self.module(chunk.to(self.device)).softmax(-1).float().cpu() for chunk in chunks])
        return answers.clone()  # a plain tensor, outside inference mode

    def logits(self, images: Tensor) -> Tensor:
        """float (n, 3, h, w) on `device` -> logits (n, ways), differentiable to the pixels. Not a query.

        Values outside [0, 1] are let through: an optimiser may step there. Raises ValueError on another shape or type.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}: send float (n, {', '.join(map(str, self.input_shape))})"
            )
        self.forward_passes += len(images)
        if images.requires_grad:
            images = images.view_as(images)  # a node of our own: the hook goes with the graph
            images.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        fixed = {name: parameter.detach() for name, parameter in self.module.named_parameters()}
        logits: Tensor = functional_call(self.module, fixed, (images,))
        return logits

    def inspect(self, images: Tensor) -> tuple[Tensor, list[BatchStatistics]]:
        """Like `logits`, and the statistics of every batch norm in the order they are met."""
        met: list[BatchStatistics] = []
        norms = [part for part in self.module.modules() if isinstance(part, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(partial(_observe, met)) for norm in norms]
        try:
            return self.logits(images), met
        finally:
            for hook in hooks:
                hook.remove()

    def normalisation(self) -> Normalisation:
        """What it subtracts and divides by. Raises TypeError where the module is no `Classifier`."""
        normalise = self._classifier().normalise
        mean, std = normalise.mean.flatten().tolist(), normalise.std.flatten().tolist()
        return Normalisation(mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))

    def weights(self) -> dict[str, Tensor]:
        """Copies of its tensors, named as in the files of a zoo. Raises TypeError where the module is no `Classifier`."""
        return weights(self._classifier())

    def _classifier(self) -> Classifier:
        if not isinstance(self.module, Classifier):
            raise TypeError(f"the layout of a {type(self.module).__name__} is known to nobody else: give a Classifier")
        return self.module

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)


def _observe(met: list[BatchStatistics], norm: nn.Module, inputs: Sequence[Tensor]) -> None:
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        met.append(BatchStatistics(mean, variance, norm.running_mean, norm.running_var))


def rounds_images(teacher: Teacher) -> bool:
    """Whether images are rounded to 8 bits on their way to it: an API says so by `eight_bit`, others do not."""
    return bool(getattr(teacher, "eight_bit", False))


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
    """The teacher of a zoo folder's entry, from its file or the bytes of it.

    One that brings its own program (ONNX, torch.export) gives answers alone: no gradients, no weights.
    Raises BadTeacher when the bytes differ from the manifest's SHA-256 (where it has one) or do not fit its architecture.
    """
    held = weights if isinstance(weights, bytes) else weights.read_bytes()
    if entry.sha256 is not None and hashlib.sha256(held).hexdigest() != entry.sha256:
        raise BadTeacher(f"{entry.file}: its SHA-256 is not the manifest's; get the file again, or build the zoo anew")
    network, ways = manifest.network_of(entry), len(entry.classes)
    try:
        if network.backbone in SUFFIXES:
            return ModuleTeacher(foreign.read(network, held), ways=ways, input_shape=network.input)
        return white_box(network, held, ways=ways)
    except ValueError as error:
        raise BadTeacher(f"{entry.file}: {error}") from error


def white_box(network: Network, held: bytes, *, ways: int, device: torch.device | str = "cpu") -> ModuleTeacher:
    """The teacher whose weights these bytes of a safetensors file are.

    Raises ValueError unless they are finite floats that fit this architecture; nothing of its size is made before that.
    """
    try:
        tensors = read_safetensors(held)
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that torch has not
        raise ValueError(f"they cannot be read as safetensors: {error}") from error
    if strange := [name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS]:
        raise ValueError(f"{strange[0]} holds {tensors[strange[0]].dtype}, not floats of 16 bits or more")
    check_fit(_expected(network, ways), tensors)
    classifier = classifier_of(network, ways=ways, generator=torch.Generator().manual_seed(0))
    load_weights(classifier, tensors)
    return ModuleTeacher(classifier, ways=ways, input_shape=network.input, device=device)


def check_weights(network: Network, ways: int, held: bytes) -> None:
    """Raise BadTeacher where the bytes of a safetensors file do not fit this architecture, as `load_teacher` would.

    For many files of few architectures: it builds no network for each.
    """
    try:
        tensors = read_safetensors(held)
        check_fit(_expected(network, ways), tensors)
    except (SafetensorError, ValueError) as error:
        raise BadTeacher(str(error)) from error


@lru_cache(64)
def _expected(network: Network, ways: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):  # shapes alone: a network that is stated may be larger than memory
        return shapes(
            Classifier(
                network.width,
                network.input,
                ways,
                normalisation=network.normalise,
                conv_bias=network.conv_bias,
                backbone=network.backbone,
            )
        )


def classifier_of(network: Network, *, ways: int, generator: torch.Generator) -> Classifier:
    """An untrained classifier of this architecture. Raises ValueError where its images are too small for it."""
    return build_classifier(
        network.width,
        network.input,
        ways,
        backbone=network.backbone,
        normalisation=network.normalise,
        conv_bias=network.conv_bias,
        generator=generator,
    )
