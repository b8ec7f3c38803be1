"""Meta-models: find them, download them, and let them learn a new task from a handful of labelled images."""

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

import anyio

from client._download import download
from client._flow import AsyncDriver, Driver, Flow, Request, call
from client._images import Image, to_files
from contracts.adaptation import AdaptedModel, Calibration, Method, PredictResponse
from contracts.meta_models import MetaModel, MetaModelPage

Support = Iterable[tuple[Image, str]]
"""Images with their labels. An image is a path, the bytes of an image file, a PIL image or an array."""


class TaskOptions(TypedDict, total=False):
    """How a task is learned; see `contracts.adaptation.Task`."""

    method: Method
    steps: int
    rate: float
    calibration: Calibration | Mapping[str, Any]
    seed: int


class AdaptOptions(TaskOptions, total=False):
    """And what becomes of it; see `contracts.adaptation.AdaptRequest`."""

    name: str
    ttl: int
    keep_support: bool


class MetaModels:
    """`Metazoo.meta_models`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def list(self, *, after: str | None = None, limit: int = 20) -> MetaModelPage:
        """A page of meta-models, newest first; its `next` is the `after` of the following page."""
        return self._driver.call(_list(after, limit), MetaModelPage)

    def retrieve(self, meta_model_id: str) -> MetaModel:
        """What is known of a meta-model: where it comes from, what it cost, how good it is. Raises `NotFound`."""
        return self._driver.call(Request("GET", _path(meta_model_id)), MetaModel)

    def download(self, meta_model_id: str, folder: str | os.PathLike[str]) -> Path:
        """Put the meta-model's files into `folder`, made if need be, each checked by its SHA-256; returns the folder.

        Files that are there and whole are kept. Raises `InvalidAnswer` when one arrives damaged.
        """
        return self._driver.run(_download(meta_model_id, Path(folder), self._driver.retries))

    def predict(
        self, meta_model_id: str, *, support: Support, query: Iterable[Image], **options: Unpack[TaskOptions]
    ) -> PredictResponse:
        """Learn a task from `support`, images with their labels, and label the images of `query`, in one call.

            answer = metazoo.meta_models.predict(id, support=[("cat.png", "cat"), ("dog.png", "dog")], query=["x.png"])
            answer.predictions[0].label

        Images are paths, bytes of image files, PIL images or arrays; the server resizes them. Raises `InvalidRequest`
        naming every image that cannot be read.
        """
        return self._driver.call(_predict(meta_model_id, support, query, options), PredictResponse)

    def adapt(self, meta_model_id: str, *, support: Support, **options: Unpack[AdaptOptions]) -> AdaptedModel:
        """Learn a task from `support` and keep what was learned as a model that can be asked for a day.

            cats = metazoo.meta_models.adapt(id, support=[("cat.png", "cat"), ("dog.png", "dog")], ttl=3600)
            metazoo.adapted_models.predict(cats.id, ["x.png"])

        `method` is "logistic", "prototypes" or "fine-tune"; `calibration={}` calibrates the features by ICFIL before it.
        """
        return self._driver.call(_adapt(meta_model_id, support, options), AdaptedModel)


class AsyncMetaModels:
    """`AsyncMetazoo.meta_models`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self, *, after: str | None = None, limit: int = 20) -> MetaModelPage:
        """A page of meta-models, newest first; its `next` is the `after` of the following page."""
        return await self._driver.call(_list(after, limit), MetaModelPage)

    async def retrieve(self, meta_model_id: str) -> MetaModel:
        """What is known of a meta-model; see `MetaModels.retrieve`."""
        return await self._driver.call(Request("GET", _path(meta_model_id)), MetaModel)

    async def download(self, meta_model_id: str, folder: str | os.PathLike[str]) -> Path:
        """Put the meta-model's files into `folder`; see `MetaModels.download`."""
        return await self._driver.run(_download(meta_model_id, Path(folder), self._driver.retries))

    async def predict(
        self, meta_model_id: str, *, support: Support, query: Iterable[Image], **options: Unpack[TaskOptions]
    ) -> PredictResponse:
        """Learn a task and label images, in one call; see `MetaModels.predict`."""
        request = await anyio.to_thread.run_sync(_predict, meta_model_id, support, query, options)
        return await self._driver.call(request, PredictResponse)

    async def adapt(self, meta_model_id: str, *, support: Support, **options: Unpack[AdaptOptions]) -> AdaptedModel:
        """Learn a task and keep what was learned; see `MetaModels.adapt`."""
        request = await anyio.to_thread.run_sync(_adapt, meta_model_id, support, options)
        return await self._driver.call(request, AdaptedModel)


def _path(meta_model_id: str) -> str:
    return f"/v1/meta-models/{quote(meta_model_id, safe='')}"


def _list(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/meta-models", params={"limit": limit} | ({"after": after} if after else {}))


def _predict(meta_model_id: str, support: Support, query: Iterable[Image], options: TaskOptions) -> Request:
    body = {"query": list(map(_base64, to_files(query, "query"))), **_task(support, options)}
    return _post(f"{_path(meta_model_id)}/predict", body)


def _adapt(meta_model_id: str, support: Support, options: AdaptOptions) -> Request:
    # Repeated, it would make a second one, which ends by itself: no harm.
    return _post(f"{_path(meta_model_id)}/adapt", _task(support, options))


def _task(support: Support, options: TaskOptions | AdaptOptions) -> dict[str, Any]:
    shown = list(support)
    images = to_files((image for image, _ in shown), "support.images")
    task: dict[str, Any] = {**options}
    if isinstance(calibration := task.get("calibration"), Calibration):
        task["calibration"] = calibration.model_dump(mode="json")
    return task | {"support": {"images": list(map(_base64, images)), "labels": [label for _, label in shown]}}


def _post(path: str, body: Mapping[str, Any]) -> Request:
    return Request("POST", path, headers={"Content-Type": "application/json"}, content=json.dumps(body).encode())


def _base64(file: bytes) -> str:
    return b64encode(file).decode()


def _download(meta_model_id: str, folder: Path, retries: int) -> Flow[Path]:
    path = _path(meta_model_id)
    model = yield from call(Request("GET", path), MetaModel, retries=retries)
    return (yield from download(path, model.files, folder, retries=retries))
