"""A network that has learned a task as one ONNX file, for servers and devices without PyTorch. Needs the package `onnx`."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dfml.adapted import TaskNetwork

INPUT, OUTPUT = "images", "probabilities"
OPSET = 18


class _Probabilities(nn.Module):
    def __init__(self, network: TaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.network(images).softmax(-1)
        return probabilities


def export(
    network: TaskNetwork, file: str | os.PathLike[str], *, input_shape: tuple[int, int, int], labels: Sequence[str]
) -> Path:
    """Write `images`, float32 (n, *input_shape) in [0, 1], to `probabilities`, float32 (n, ways), as ONNX; return its path.

    n is free. The labels, in order, are the metadata property `labels`, one a line. Raises ModuleNotFoundError without `onnx`.
    """
    import onnx

    path = Path(file)
    example = torch.zeros((2, *input_shape))
    with warnings.catch_warnings():
        # The exporter that torch prefers needs two packages more, and gives the same graph for these networks.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Probabilities(network).eval(),
            (example,),
            path,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
            opset_version=OPSET,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"labels": "\n".join(labels)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
