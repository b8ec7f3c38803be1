"""Classifiers that bring their own program: a `torch.export` archive or an ONNX file, run here without unpickling anything."""

from typing import Protocol

import torch
from torch import Tensor, nn

from contracts.zoo import Network
from dfml.foreign.problem import BadProgram
from dfml.nets import Normalise

__all__ = ["BadProgram", "ForeignClassifier", "read"]

LEAST = 1e-9  # of a probability, before its logarithm is taken


class Program(Protocol):
    """float32 (n, 3, h, w) -> float (n, ways)."""

    def __call__(self, images: Tensor) -> Tensor: ...


class ForeignClassifier(nn.Module):
    """Images, uint8 or float in [0, 1], (n, 3, h, w) -> logits (n, ways), by a program from elsewhere."""

    def __init__(self, program: Program, network: Network) -> None:
        super().__init__()
        self.normalise = Normalise(network.normalise)
        self.program = program
        self._probabilities = network.answers == "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        answers = self.program(self.normalise(images).contiguous())
        return answers.clamp_min(LEAST).log() if self._probabilities else answers


def read(network: Network, content: bytes) -> ForeignClassifier:
    """The classifier in a `.pt2` or `.onnx` file's bytes. Raises BadProgram, and ModuleNotFoundError without onnxruntime."""
    if network.backbone == "onnx":
        from dfml.foreign.onnx_file import OnnxProgram

        return ForeignClassifier(OnnxProgram(content, network.input), network)
    from dfml.foreign.exported import read_archive

    return ForeignClassifier(read_archive(content), network).requires_grad_(False)


def probe(module: nn.Module, shape: tuple[int, int, int], ways: int) -> None:
    """Ask about random images whether this is a classifier of `ways` classes. Raises BadProgram, saying what is wrong."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        try:
            answers, alone = module(images), module(images[1:2])
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            raise BadProgram(f"it fails on images of shape {shape}: {str(error).splitlines()[0]}") from error
    if tuple(answers.shape) != (3, ways):
        raise BadProgram(f"it answers shape {tuple(answers.shape)} to 3 images: {ways} classes were declared")
    if not torch.isfinite(answers).all():
        raise BadProgram("it answers NaN or infinity to plain images")
    if not torch.allclose(answers[1:2], alone, atol=1e-3, rtol=1e-3):
        raise BadProgram(
            "an answer depends on the other images asked with it: bring it into evaluation mode, then export"
        )
