"""Meta-models: find them, download them, and let them learn a new task from a handful of labelled images."""

import json
import os
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack
from urllib.parse import quote

import anyio

from client._download import cached, download
from client._flow import AsyncDriver, Driver, Flow, Request, call, retried
from client._images import Image, to_files
from client._task import AdaptOptions, Support, TaskOptions
from contracts.adaptation import AdaptedModel, Calibration, PredictResponse
from contracts.meta_models import Comparison, Evaluation, MetaModel, MetaModelPage

if TYPE_CHECKING:
    from client.local import LocalMetaModel

Head = Literal["logistic", "prototypes"]


class MetaModels:
    """`Metazoo.meta_models`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def list(self, *, after: str | None = None, limit: int = 20) -> MetaModelPage:
        """A page of meta-models, newest first; its `next` is the `after` of the following page.

        for model in metazoo.meta_models.list(limit=5).items:
            print(model.id, model.name)
        """
        return self._driver.call(_list(after, limit), MetaModelPage)

    def retrieve(self, meta_model_id: str) -> MetaModel:
        """What is known of a meta-model: where it comes from, what it cost, how good it is. Raises `NotFound`.

        print(metazoo.meta_models.retrieve(job.meta_model).score)
        """
        return self._driver.call(Request("GET", _path(meta_model_id)), MetaModel)

    def download(self, meta_model_id: str, folder: str | os.PathLike[str]) -> Path:
        """Put the meta-model's files into `folder`, made if need be, each checked by its SHA-256; returns the folder.

            metazoo.meta_models.download(job.meta_model, "my-model")

        Files that are there and whole are kept. Raises `InvalidAnswer` when one arrives damaged.
        """
        return self._driver.run(_download(meta_model_id, Path(folder), self._driver.retries))

    def load(self, meta_model_id: str, folder: str | os.PathLike[str] | None = None) -> "LocalMetaModel":
        """The meta-model on this machine, downloaded to `folder` (default: a cache) if it is not there: needs torch.

        model = metazoo.meta_models.load(id)
        model.predict(support=[("cat.png", "cat"), ("dog.png", "dog")], query=["x.png"])
        """
        place = cached(meta_model_id) if folder is None else Path(folder)
        return _loaded(self.download(meta_model_id, place))

    def archive(self, meta_model_id: str, file: str | os.PathLike[str]) -> Path:
        """Put all of the meta-model's files into one zip at `file`; returns it.

        metazoo.meta_models.archive(id, "model.zip")
        """
        return self._driver.run(_archive(meta_model_id, Path(file), self._driver.retries))

    def edit(
        self,
        meta_model_id: str,
        *,
        name: str | None = None,
        tags: Iterable[str] | None = None,
        notes: str | None = None,
    ) -> MetaModel:
        """Change its name, tags or notes; what is not given stays.

        metazoo.meta_models.edit(id, tags=["best"], notes="five APIs of animals")
        """
        return self._driver.call(_edit(meta_model_id, name, tags, notes), MetaModel)

    def delete(self, meta_model_id: str) -> None:
        """Delete it; `restore` brings it back. Raises `NotFound`, also when it was deleted before.

        metazoo.meta_models.delete(id)
        """
        self._driver.run(retried(Request("DELETE", _path(meta_model_id)), retries=self._driver.retries))

    def restore(self, meta_model_id: str) -> MetaModel:
        """Bring a deleted one back.

        metazoo.meta_models.restore(id)
        """
        return self._driver.call(Request("POST", f"{_path(meta_model_id)}/restore"), MetaModel)

    def compare(
        self,
        first: str,
        second: str,
        *,
        evaluation: Evaluation | Mapping[str, Any] | None = None,
        head: Head = "logistic",
    ) -> Comparison:
        """Measure two meta-models on the same episodes.

        told = metazoo.meta_models.compare(old, new, evaluation={"dataset": "glyphs", "shots": [1]})
        told.difference.accuracy["1"], told.difference.interval["1"]
        """
        return self._driver.call(_compare(first, second, evaluation, head), Comparison)

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

    async def load(self, meta_model_id: str, folder: str | os.PathLike[str] | None = None) -> "LocalMetaModel":
        """The meta-model on this machine; see `MetaModels.load`."""
        place = cached(meta_model_id) if folder is None else Path(folder)
        return await anyio.to_thread.run_sync(_loaded, await self.download(meta_model_id, place))

    async def archive(self, meta_model_id: str, file: str | os.PathLike[str]) -> Path:
        """Put all of the meta-model's files into one zip at `file`; returns it."""
        return await self._driver.run(_archive(meta_model_id, Path(file), self._driver.retries))

    async def edit(
        self,
        meta_model_id: str,
        *,
        name: str | None = None,
        tags: Iterable[str] | None = None,
        notes: str | None = None,
    ) -> MetaModel:
        """Change its name, tags or notes; see `MetaModels.edit`."""
        return await self._driver.call(_edit(meta_model_id, name, tags, notes), MetaModel)

    async def delete(self, meta_model_id: str) -> None:
        """Delete it; see `MetaModels.delete`."""
        await self._driver.run(retried(Request("DELETE", _path(meta_model_id)), retries=self._driver.retries))

    async def restore(self, meta_model_id: str) -> MetaModel:
        """Bring a deleted one back."""
        return await self._driver.call(Request("POST", f"{_path(meta_model_id)}/restore"), MetaModel)

    async def compare(
        self,
        first: str,
        second: str,
        *,
        evaluation: Evaluation | Mapping[str, Any] | None = None,
        head: Head = "logistic",
    ) -> Comparison:
        """Measure two meta-models on the same episodes; see `MetaModels.compare`."""
        return await self._driver.call(_compare(first, second, evaluation, head), Comparison)

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


def _loaded(folder: Path) -> "LocalMetaModel":
    from client import local  # brings torch

    return local.load(folder)


def _path(meta_model_id: str) -> str:
    return f"/v1/meta-models/{quote(meta_model_id, safe='')}"


def _list(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/meta-models", params={"limit": limit} | ({"after": after} if after else {}))


def _predict(meta_model_id: str, support: Support, query: Iterable[Image], options: TaskOptions) -> Request:
    body = {"query": list(map(_base64, to_files(query, "query"))), **_task(support, options)}
    return _send("POST", f"{_path(meta_model_id)}/predict", body)


def _adapt(meta_model_id: str, support: Support, options: AdaptOptions) -> Request:
    # Repeated, it would make a second one, which ends by itself: no harm.
    return _send("POST", f"{_path(meta_model_id)}/adapt", _task(support, options))


def _task(support: Support, options: TaskOptions | AdaptOptions) -> dict[str, Any]:
    shown = list(support)
    images = to_files((image for image, _ in shown), "support.images")
    task: dict[str, Any] = {**options}
    if isinstance(calibration := task.get("calibration"), Calibration):
        task["calibration"] = calibration.model_dump(mode="json")
    return task | {"support": {"images": list(map(_base64, images)), "labels": [label for _, label in shown]}}


def _edit(meta_model_id: str, name: str | None, tags: Iterable[str] | None, notes: str | None) -> Request:
    told = {"name": name, "tags": None if tags is None else list(tags), "notes": notes}
    return _send("PATCH", _path(meta_model_id), {key: value for key, value in told.items() if value is not None})


def _compare(first: str, second: str, evaluation: Evaluation | Mapping[str, Any] | None, head: Head) -> Request:
    body: dict[str, Any] = {"first": first, "second": second, "head": head}
    if evaluation is not None:
        body["evaluation"] = evaluation.model_dump() if isinstance(evaluation, Evaluation) else dict(evaluation)
    return _send("POST", "/v1/meta-models/compare", body)


def _archive(meta_model_id: str, file: Path, retries: int) -> Flow[Path]:
    part = file.with_name(f".{file.name}.part")
    try:
        yield from retried(Request("GET", f"{_path(meta_model_id)}/archive", save_to=part), retries=retries)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _send(method: str, path: str, body: Mapping[str, Any]) -> Request:
    return Request(method, path, headers={"Content-Type": "application/json"}, content=json.dumps(body).encode())


def _base64(file: bytes) -> str:
    return b64encode(file).decode()


def _download(meta_model_id: str, folder: Path, retries: int) -> Flow[Path]:
    path = _path(meta_model_id)
    model = yield from call(Request("GET", path), MetaModel, retries=retries)
    return (yield from download(path, model.files, folder, retries=retries))
