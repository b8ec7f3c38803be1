"""Adapted models: meta-models that have learned a task, asked by the Open Inference Protocol until their time is over."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import anyio

from client import zoo
from client._download import cached, download
from client._flow import AsyncDriver, Driver, Flow, Request, call, retried
from client._images import Image, to_tensor
from client.meta_models import AsyncMetaModels, MetaModels
from contracts.adaptation import AdaptedModel, AdaptedModelPage, PredictResponse

if TYPE_CHECKING:
    from client.local import LocalAdaptedModel


class AdaptedModels:
    """`Metazoo.adapted_models`; `Metazoo.meta_models.adapt` makes them."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def list(self, *, after: str | None = None, limit: int = 20) -> AdaptedModelPage:
        """A page of those served now, newest first; its `next` is the `after` of the following page.

        for model in metazoo.adapted_models.list().items:
            print(model.id, model.expires_at)
        """
        return self._driver.call(_list(after, limit), AdaptedModelPage)

    def retrieve(self, adapted_id: str) -> AdaptedModel:
        """What it learned, when it ends, what it has answered. Raises `NotFound`, also for one that has ended.

        print(metazoo.adapted_models.retrieve(cats.id).labels)
        """
        return self._driver.call(Request("GET", _path(adapted_id)), AdaptedModel)

    def predict(self, adapted_id: str, images: Iterable[Image]) -> PredictResponse:
        """Label images, resized to its input.

            answer = metazoo.adapted_models.predict(cats.id, ["x.png"])
            answer.predictions[0].probabilities["cat"]

        Images are paths, bytes of image files, PIL images or arrays; needs Pillow.
        """
        info = self._driver.run(zoo.describe(adapted_id, self._driver.retries))
        return self._driver.run(zoo.ask(info, adapted_id, to_tensor(images, info.input_shape), self._driver.retries))

    def delete(self, adapted_id: str) -> None:
        """End it now. Raises `NotFound`, also when it has ended already.

        metazoo.adapted_models.delete(cats.id)
        """
        self._driver.run(retried(_delete(adapted_id), retries=self._driver.retries))

    def download(self, adapted_id: str, folder: str | os.PathLike[str]) -> Path:
        """Put its files into `folder`, each checked by its SHA-256; returns the folder. See `MetaModels.download`.

        metazoo.adapted_models.download(cats.id, "cats")
        """
        return self._driver.run(_download(adapted_id, Path(folder), self._driver.retries))

    def load(self, adapted_id: str) -> "LocalAdaptedModel":
        """It on this machine, downloaded to a cache with its meta-model: needs torch. It goes on after the server's ends.

        metazoo.adapted_models.load(id).export_onnx("pets.onnx")
        """
        model = self.retrieve(adapted_id)
        origin = MetaModels(self._driver).download(model.meta_model, cached(model.meta_model))
        return _loaded(self.download(adapted_id, cached(adapted_id)), origin)


class AsyncAdaptedModels:
    """`AsyncMetazoo.adapted_models`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self, *, after: str | None = None, limit: int = 20) -> AdaptedModelPage:
        """A page of those served now, newest first; its `next` is the `after` of the following page."""
        return await self._driver.call(_list(after, limit), AdaptedModelPage)

    async def retrieve(self, adapted_id: str) -> AdaptedModel:
        """What it learned, when it ends, what it has answered; see `AdaptedModels.retrieve`."""
        return await self._driver.call(Request("GET", _path(adapted_id)), AdaptedModel)

    async def predict(self, adapted_id: str, images: Iterable[Image]) -> PredictResponse:
        """Label images; see `AdaptedModels.predict`."""
        info = await self._driver.run(zoo.describe(adapted_id, self._driver.retries))
        tensor = await anyio.to_thread.run_sync(to_tensor, images, info.input_shape)
        return await self._driver.run(zoo.ask(info, adapted_id, tensor, self._driver.retries))

    async def delete(self, adapted_id: str) -> None:
        """End it now; see `AdaptedModels.delete`."""
        await self._driver.run(retried(_delete(adapted_id), retries=self._driver.retries))

    async def download(self, adapted_id: str, folder: str | os.PathLike[str]) -> Path:
        """Put its files into `folder`; see `AdaptedModels.download`."""
        return await self._driver.run(_download(adapted_id, Path(folder), self._driver.retries))

    async def load(self, adapted_id: str) -> "LocalAdaptedModel":
        """It on this machine; see `AdaptedModels.load`."""
        model = await self.retrieve(adapted_id)
        origin = await AsyncMetaModels(self._driver).download(model.meta_model, cached(model.meta_model))
        return await anyio.to_thread.run_sync(_loaded, await self.download(adapted_id, cached(adapted_id)), origin)


def _loaded(folder: Path, origin: Path) -> "LocalAdaptedModel":
    from client import local  # brings torch

    return local.load_adapted(folder, local.load(origin))


def _path(adapted_id: str) -> str:
    return f"/v1/adapted-models/{quote(adapted_id, safe='')}"


def _list(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/adapted-models", params={"limit": limit} | ({"after": after} if after else {}))


def _delete(adapted_id: str) -> Request:
    return Request("DELETE", _path(adapted_id))


def _download(adapted_id: str, folder: Path, retries: int) -> Flow[Path]:
    path = _path(adapted_id)
    model = yield from call(Request("GET", path), AdaptedModel, retries=retries)
    return (yield from download(path, model.files, folder, retries=retries))
