"""Networks that take images in [0, 1] or uint8: normalisation is inside, so that nobody can forget it.

`Backbone` gives features and becomes a meta-model; `Classifier` gives logits and becomes a teacher. Both are built from a
`torch.Generator` alone: the same generator state gives the same weights, whatever else the process has drawn.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from contracts.meta_models import BackboneConfig
from contracts.zoo import Normalisation
from dfml.nets.conv4 import Conv4
from dfml.nets.resnet import ResNet, ResNet12

__all__ = [
    "STUDENT",
    "Backbone",
    "Classifier",
    "build",
    "build_classifier",
    "check_fit",
    "initialise",
    "load_weights",
    "shapes",
    "weights",
]

STUDENT = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
"""What a meta-model subtracts and divides by: the statistics of a data set would be a leak."""


class Normalise(nn.Module):
    """uint8, or float in [0, 1], (n, 3, h, w) -> float32 (n, 3, h, w), minus mean, divided by standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def body(
    backbone: str, width: int, input_shape: tuple[int, int, int], *, conv_bias: bool = False
) -> Conv4 | ResNet | ResNet12:
    """Normalised images to features, by a network of this name. Raises ValueError on another, and on images too small.

    conv_bias: of Conv4 alone.
    """
    if backbone == "conv4":
        return Conv4(width, input_shape, conv_bias=conv_bias)
    each = {"resnet10": 1, "resnet18": 2}.get(backbone)
    if (each is None and backbone != "resnet12") or conv_bias:
        known = "conv4, resnet10, resnet12, resnet18"
        raise ValueError(f"{backbone}{' with conv_bias' if conv_bias else ''} is no network: {known}")
    return ResNet12(width, input_shape) if each is None else ResNet(width, each=each)


class Backbone(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> features (n, dim)."""

    def __init__(self, config: BackboneConfig, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.input_shape = input_shape
        self.normalise = Normalise(STUDENT)
        self.body = body(config.backbone, config.width, input_shape)
        self.dim = self.body.dim

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(self.normalise(images))
        return features


class Classifier(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> logits (n, ways). A network of any width and a linear head."""

    def __init__(
        self,
        width: int,
        input_shape: tuple[int, int, int],
        ways: int,
        *,
        normalisation: Normalisation,
        conv_bias: bool = False,
        backbone: str = "conv4",
    ) -> None:
        super().__init__()
        self.ways = ways
        self.input_shape = input_shape
        self.normalise = Normalise(normalisation)
        self.body = body(backbone, width, input_shape, conv_bias=conv_bias)
        self.head = nn.Linear(self.body.dim, ways)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(images)))
        return logits


def build(config: BackboneConfig, input_shape: tuple[int, int, int], *, generator: torch.Generator) -> Backbone:
    """A randomly initialised backbone, in evaluation mode, on the CPU."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator: give it back as it was
        backbone = Backbone(config, input_shape)
    initialise(backbone, generator)
    return backbone


def build_classifier(
    width: int,
    input_shape: tuple[int, int, int],
    ways: int,
    *,
    normalisation: Normalisation,
    conv_bias: bool = False,
    backbone: str = "conv4",
    generator: torch.Generator,
) -> Classifier:
    """A randomly initialised classifier, in evaluation mode, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier(
            width, input_shape, ways, normalisation=normalisation, conv_bias=conv_bias, backbone=backbone
        )
    initialise(classifier, generator)
    return classifier


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill convolutions and linear layers with PyTorch's own defaults (Kaiming uniform with a = sqrt 5) from `generator`.

    Leaves the module in evaluation mode and channels-last.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                bound = 1 / math.sqrt(part.weight[0].numel())
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 2 to 3 times faster on CPUs
    module.eval()


def weights(module: Backbone | Classifier) -> dict[str, Tensor]:
    """Tensors as files hold them: `blocks.0.conv.weight`, …, `head.weight`; contiguous, on the CPU, detached.

    Names are those of the body, so that a teacher's and a meta-model's Conv4 look the same on disk.
    """
    return {
        _file_name(name): tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
        if _stored(name)
    }


def load_weights(module: Backbone | Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Fill a module from tensors named as by `weights`. Raises ValueError that names what is missing, unknown or mis-shaped."""
    own = {_file_name(name): tensor for name, tensor in module.state_dict().items() if _stored(name)}
    check_fit(shapes(module), tensors)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def shapes(module: Backbone | Classifier) -> dict[str, tuple[int, ...]]:
    """Of the tensors that files hold, named as by `weights`."""
    return {_file_name(name): tuple(tensor.shape) for name, tensor in module.state_dict().items() if _stored(name)}


def check_fit(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError that names what is missing, unknown, of another shape than in `shapes`, or not finite."""
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in shapes]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    wrong += [f"{name} holds NaN or infinity" for name, tensor in tensors.items() if not _finite(tensor)]
    if wrong:
        raise ValueError(f"the weights do not fit this network: {'; '.join(sorted(wrong))}")


def _finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float32 and tensor.numel():
        return math.isfinite(tensor.abs().amax().item())  # several times faster for the small ones that most are
    return bool(torch.isfinite(tensor).all())


def _file_name(name: str) -> str:
    return name.removeprefix("body.")


def _stored(name: str) -> bool:
    """Batches tracked are only read by batch norm without a momentum, which ours is not."""
    return not name.endswith("num_batches_tracked")
