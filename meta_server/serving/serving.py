"""Predict in one call, or adapt and be asked again and again."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import cast

import anyio
import torch
from anyio import to_thread
from safetensors.torch import save as write_safetensors
from torch import Tensor

from api_zoo.compiled import Compiled
from api_zoo.inference import Model
from contracts.adaptation import AdaptedModel, AdaptRequest, Prediction, PredictRequest, PredictResponse, Task
from contracts.meta_models import CompareRequest, Comparison, MetaModel
from dfml import adapted, io
from dfml.adapted import TaskNetwork
from dfml.nets import Backbone
from meta_server.serving.comparing import compared
from meta_server.serving.memory import Memory
from meta_server.serving.pictures import decoded
from meta_server.store import ids
from meta_server.store.adapted_models import AdaptedModelStore, Served, folder
from meta_server.store.artifacts import Artifacts
from meta_server.store.meta_models import MetaModelStore

FITTING = 2  # tasks learned at once, each in a thread
SUPPORT = "support.safetensors"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A meta-model's network: as it was trained, to adapt it, and compiled, to answer with frozen features."""

    backbone: Backbone
    fast: Compiled


class Serving:
    """Runs meta-models and what was adapted from them; `memory` bytes of networks stay loaded.

    data: folder of data sets to compare meta-models on; None: glyphs alone.
    """

    def __init__(
        self,
        meta_models: MetaModelStore,
        adapted_models: AdaptedModelStore,
        artifacts: Artifacts,
        *,
        memory: int,
        data: Path | None = None,
    ) -> None:
        self._meta_models = meta_models
        self._adapted_models = adapted_models
        self._artifacts = artifacts
        self._data = data
        self._memory = Memory(memory)
        self._threads = anyio.CapacityLimiter(FITTING)
        self._comparing = anyio.CapacityLimiter(1)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of networks that are loaded now."""
        return self._memory.bytes

    async def predict(self, meta_model_id: str, request: PredictRequest) -> PredictResponse:
        """Learn the task, label the query. Raises `ProblemError`: not-found, or naming every bad image."""
        model = await self._meta_models.get(meta_model_id)
        loaded = await self._loaded(model)
        return await to_thread.run_sync(_predict, loaded.backbone, request, limiter=self._threads)

    async def adapt(self, meta_model_id: str, request: AdaptRequest) -> AdaptedModel:
        """Learn the task and keep what was learned. Raises `ProblemError`: not-found, or naming every bad image."""
        origin = await self._meta_models.get(meta_model_id)
        loaded = await self._loaded(origin)
        fit = partial(_adapt, loaded.backbone, origin.id, request)
        network, files = await to_thread.run_sync(fit, limiter=self._threads)
        now = self._adapted_models.clock()
        labels = _classes(request)
        adapted_id = ids.new("am", now)
        model = AdaptedModel(
            id=adapted_id,
            name=request.name,
            meta_model=origin.id,
            method=request.method,
            calibrated=request.calibration is not None,
            seed=request.seed,
            labels=labels,
            shots={label: request.support.labels.count(label) for label in labels},
            input_shape=origin.input_shape,
            support_kept=request.keep_support,
            bytes=_own_bytes(network, loaded.backbone),
            files={name: sha256(content).hexdigest() for name, content in files.items()},
            path=f"/v2/models/{adapted_id}",
            created_at=now,
            expires_at=now + timedelta(seconds=request.ttl),
        )
        await self._adapted_models.begin(adapted_id)
        await to_thread.run_sync(_write, self._artifacts, folder(adapted_id), files)
        await self._adapted_models.finish(model)
        return model

    async def compare(self, request: CompareRequest) -> Comparison:
        """Two meta-models on the same episodes; one comparison runs at a time. Raises `ProblemError`."""
        first, second = [
            await self._loaded(await self._meta_models.get(each)) for each in (request.first, request.second)
        ]
        return await to_thread.run_sync(
            compared, first.backbone, second.backbone, request, self._data, limiter=self._comparing
        )

    async def hosted(self, served: Served) -> Model:
        """An adapted model as the zoo answers with it. Raises `ProblemError` (its meta-model is gone), `BadModel`."""
        model = served.model

        async def load() -> tuple[Model, int]:
            origin = await self._loaded(await self._meta_models.kept(model.meta_model))
            network = await to_thread.run_sync(_load_adapted, self._artifacts, model, origin)
            return Model(model.id, network, model.labels, model.input_shape), model.bytes

        found = await self._memory.get(model.id, load)
        self._memory.touch(model.meta_model)  # after it: a backbone is never dropped while one that shares it stays
        return found

    async def _loaded(self, model: MetaModel) -> Loaded:
        async def load() -> tuple[Loaded, int]:
            where = await self._meta_models.folder(model.id)
            backbone = await to_thread.run_sync(_load, self._artifacts, where)
            fast = Compiled(backbone)
            return Loaded(backbone, fast), adapted.size(backbone) + fast.held_bytes

        return await self._memory.get(model.id, load)


def _load(artifacts: Artifacts, where: str) -> Backbone:
    return io.load(artifacts.local(where)).requires_grad_(False)


def _load_adapted(artifacts: Artifacts, model: AdaptedModel, origin: Loaded) -> TaskNetwork:
    held = {name: artifacts.read(f"{folder(model.id)}/{name}") for name in (io.CONFIG, io.WEIGHTS)}
    for name, content in held.items():
        if sha256(content).hexdigest() != model.files[name]:
            raise io.BadModel(f"{name} of {model.id} was damaged or altered: delete it, and adapt again")
    network, _ = adapted.load(held, origin.backbone)
    shared = network.backbone is origin.backbone
    return TaskNetwork(cast(Backbone, origin.fast if shared else Compiled(network.backbone)), network.head)


def _write(artifacts: Artifacts, where: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        artifacts.write(f"{where}/{name}", content)


def _predict(backbone: Backbone, request: PredictRequest) -> PredictResponse:
    support, query = decoded(backbone.input_shape, support__images=request.support.images, query=request.query)
    probabilities = adapted.predict(_fit(backbone, support, request), query)
    classes = _classes(request)
    return PredictResponse(predictions=[_prediction(classes, row) for row in probabilities.tolist()])


def _adapt(backbone: Backbone, origin: str, request: AdaptRequest) -> tuple[TaskNetwork, dict[str, bytes]]:
    (support,) = decoded(backbone.input_shape, support__images=request.support.images)
    network = _fit(backbone, support, request)
    shared = network.backbone is backbone
    files = adapted.dump(network, labels=_classes(request), meta_model=origin, shared=shared)
    if request.keep_support:
        files[SUPPORT] = write_safetensors({"images": support, "labels": _labels(request)})
    return network, files


def _fit(backbone: Backbone, support: Tensor, task: Task) -> TaskNetwork:
    return adapted.fit(
        backbone,
        support,
        _labels(task),
        ways=len(_classes(task)),
        method=task.method,
        fine_tuning=task.fine_tuning,
        seed=task.seed,
    )


def _classes(task: Task) -> list[str]:
    return sorted(set(task.support.labels))


def _labels(task: Task) -> Tensor:
    """int64 (n,): index of each support label among the classes."""
    place = {label: index for index, label in enumerate(_classes(task))}
    return torch.tensor([place[label] for label in task.support.labels])


def _own_bytes(network: TaskNetwork, shared: Backbone) -> int:
    return adapted.size(network.head if network.backbone is shared else network)


def _prediction(classes: list[str], probabilities: list[float]) -> Prediction:
    best = max(range(len(classes)), key=probabilities.__getitem__)
    return Prediction(label=classes[best], probabilities=dict(zip(classes, probabilities, strict=True)))
