"""Meta-models on this machine: what the server does with them, without it. Needs `pip install 'metazoo[learn]'`.

The only module of the SDK that imports torch; nothing imports it before `load` is called.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from client._images import Image, to_tensor
from client._task import Support, TaskOptions
from contracts.adaptation import Calibration, Prediction, PredictResponse, Task
from dfml import adapted, io
from dfml.adapted import TaskNetwork
from dfml.nets import Backbone


class LocalAdaptedModel:
    """A network that has learned a task."""

    def __init__(self, network: TaskNetwork, labels: list[str]) -> None:
        self.network = network
        self.labels = labels

    def predict(self, images: Iterable[Image]) -> PredictResponse:
        """Label images, resized to its input: paths, bytes of image files, PIL images or arrays."""
        rows = adapted.predict(self.network, _tensor(images, self.network.backbone)).tolist()
        return PredictResponse(predictions=[self._prediction(row) for row in rows])

    def export_onnx(self, file: str | os.PathLike[str]) -> Path:
        """Write it as ONNX: `images`, float32 (n, c, h, w) in [0, 1], to `probabilities`. Needs the package `onnx`."""
        from dfml import onnx_export

        return onnx_export.export(self.network, file, input_shape=self.network.backbone.input_shape, labels=self.labels)

    def _prediction(self, row: list[float]) -> Prediction:
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction(label=self.labels[best], probabilities=dict(zip(self.labels, row, strict=True)))


class LocalMetaModel:
    """A meta-model's network. `backbone` is a `torch.nn.Module` from images to features."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def adapt(self, *, support: Support, **options: Unpack[TaskOptions]) -> LocalAdaptedModel:
        """Learn a task from `support`, images with their labels.

            pets = metazoo.meta_models.load(id).adapt(support=[("cat.png", "cat"), ("dog.png", "dog")])
            pets.predict(["x.png"]).predictions[0].label

        Options are those of `MetaModels.adapt`. Raises a pydantic `ValidationError` naming every option that is wrong.
        """
        shown = list(support)
        labels = [label for _, label in shown]
        told: dict[str, Any] = {**options}
        if isinstance(calibration := told.get("calibration"), Calibration):
            told["calibration"] = calibration.model_dump()
        # the server's own rules; the images themselves are read below
        task = Task.model_validate({"support": {"images": [""] * len(shown), "labels": labels}, **told})
        classes = sorted(set(task.support.labels))
        network = adapted.fit(
            self.backbone,
            _tensor((image for image, _ in shown), self.backbone),
            torch.tensor([classes.index(label) for label in task.support.labels]),
            ways=len(classes),
            method=task.method,
            fine_tuning=task.fine_tuning,
            seed=task.seed,
        )
        return LocalAdaptedModel(network, classes)

    def predict(self, *, support: Support, query: Iterable[Image], **options: Unpack[TaskOptions]) -> PredictResponse:
        """Learn a task from `support`, label the images of `query`."""
        return self.adapt(support=support, **options).predict(query)


def load(folder: str | os.PathLike[str]) -> LocalMetaModel:
    """A meta-model from its folder. Raises `dfml.io.BadModel` where a file is missing, damaged or altered."""
    return LocalMetaModel(io.load(Path(folder)).requires_grad_(False))


def load_adapted(folder: str | os.PathLike[str], meta_model: LocalMetaModel) -> LocalAdaptedModel:
    """An adapted model from its folder; `meta_model` is the one it was made from. Raises `dfml.io.BadModel`."""
    files = {name: (Path(folder) / name).read_bytes() for name in (io.CONFIG, io.WEIGHTS)}
    return LocalAdaptedModel(*adapted.load(files, meta_model.backbone))


def _tensor(images: Iterable[Image], backbone: Backbone) -> Tensor:
    """uint8 (n, c, h, w)."""
    made = to_tensor(images, backbone.input_shape)
    return torch.frombuffer(bytearray(made.data), dtype=torch.uint8).reshape(made.shape)
