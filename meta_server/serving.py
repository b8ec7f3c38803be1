"""Predictions: a meta-model learns a task from a few images and labels others, in one call.

The only module of the server that runs a network. Torch is imported when the first prediction is asked for.
"""

import asyncio
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from contracts.meta_models import MetaModel, Prediction, PredictRequest, PredictResponse
from contracts.problems import Fault, ProblemError
from meta_server.store.artifacts import Artifacts
from meta_server.store.meta_models import MetaModelStore

if TYPE_CHECKING:
    from torch import Tensor

    from dfml.nets import Backbone


class Serving:
    """Predicts with any published meta-model; the `capacity` used last stay loaded."""

    def __init__(self, meta_models: MetaModelStore, artifacts: Artifacts, *, capacity: int) -> None:
        self._meta_models = meta_models
        self._artifacts = artifacts
        self._capacity = capacity
        self._loaded: OrderedDict[str, Backbone] = OrderedDict()
        self._loading = asyncio.Lock()
        self._threads = anyio.CapacityLimiter(2)

    async def predict(self, meta_model_id: str, request: PredictRequest) -> PredictResponse:
        """Fit a head to the support, label the query. Raises `ProblemError`: not-found, or naming every bad image."""
        model = await self._meta_models.get(meta_model_id)
        backbone = await self._backbone(model)
        return await anyio.to_thread.run_sync(_predict, backbone, model.input_shape, request, limiter=self._threads)

    async def _backbone(self, model: MetaModel) -> "Backbone":
        """The network, loaded once however many ask for it at the same time; those in memory wait for nobody."""
        if model.id not in self._loaded:
            async with self._loading:
                if model.id not in self._loaded:
                    folder = await self._meta_models.folder(model.id)
                    self._loaded[model.id] = await anyio.to_thread.run_sync(_load, self._artifacts, folder)
        backbone = self._loaded[model.id]
        self._loaded.move_to_end(model.id)
        while len(self._loaded) > self._capacity:
            self._loaded.popitem(last=False)
        return backbone


def _load(artifacts: Artifacts, folder: str) -> "Backbone":
    from dfml import io

    return io.load(artifacts.local(folder))


def _predict(backbone: "Backbone", shape: tuple[int, int, int], request: PredictRequest) -> PredictResponse:
    import torch

    from dfml.adaptation import adapt

    found: list[Fault] = []
    support = decode(request.support.images, shape, "support.images", found)
    query = decode(request.query, shape, "query", found)
    if found:
        raise ProblemError("invalid-request", f"{len(found)} of the images cannot be used", errors=found)
    classes = sorted(set(request.support.labels))
    labels = torch.tensor([classes.index(label) for label in request.support.labels])
    probabilities = adapt(backbone, support, labels, ways=len(classes), head=request.head).predict(query)
    return PredictResponse(predictions=[_prediction(classes, row) for row in probabilities.tolist()])


def _prediction(classes: list[str], probabilities: list[float]) -> Prediction:
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return Prediction(label=classes[best], probabilities=dict(zip(classes, probabilities, strict=True)))


def decode(images: Sequence[str], shape: tuple[int, int, int], where: str, found: list[Fault]) -> "Tensor":
    """base64 image files as uint8 (n, c, h, w), resized to `shape` = (c, h, w).

    Each one that cannot be used adds a fault named `where`.index to `found`, and is left out.
    """
    import torch

    from dfml.pictures import drawn, opened

    usable = []
    for index, text in enumerate(images):
        try:
            usable.append(drawn(opened(b64decode(text, validate=True)), shape))
        except ValueError as error:  # no base64, or a `BadPicture`
            found.append(Fault(field=f"{where}.{index}", message=f"is no base64 PNG, JPEG or WebP file: {error}"))
    return torch.stack(usable) if usable else torch.zeros((0, *shape), dtype=torch.uint8)
