"""Meta-models: find them, download them, and let them learn a new task from a handful of labelled images."""

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import anyio

from client._flow import AsyncDriver, Driver, Flow, Request, call, retried
from client._images import Image, to_files
from client.errors import InvalidAnswer
from contracts.meta_models import MetaModel, MetaModelPage, PredictResponse

Head = Literal["logistic", "prototypes"]


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
        self,
        meta_model_id: str,
        *,
        support: Iterable[tuple[Image, str]],
        query: Iterable[Image],
        head: Head = "logistic",
    ) -> PredictResponse:
        """Learn a task from `support`, images with their labels, and label the images of `query`, in one call.

            answer = metazoo.meta_models.predict(id, support=[("cat.png", "cat"), ("dog.png", "dog")], query=["x.png"])
            answer.predictions[0].label

        Images are paths, bytes of image files, PIL images or arrays; the server resizes them. Raises `InvalidRequest`
        naming every image that cannot be read.
        """
        return self._driver.call(_predict(meta_model_id, support, query, head), PredictResponse)


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
        self,
        meta_model_id: str,
        *,
        support: Iterable[tuple[Image, str]],
        query: Iterable[Image],
        head: Head = "logistic",
    ) -> PredictResponse:
        """Learn a task and label images, in one call; see `MetaModels.predict`."""
        request = await anyio.to_thread.run_sync(_predict, meta_model_id, support, query, head)
        return await self._driver.call(request, PredictResponse)


def _path(meta_model_id: str) -> str:
    return f"/v1/meta-models/{quote(meta_model_id, safe='')}"


def _list(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/meta-models", params={"limit": limit} | ({"after": after} if after else {}))


def _predict(meta_model_id: str, support: Iterable[tuple[Image, str]], query: Iterable[Image], head: Head) -> Request:
    shown = list(support)
    images = to_files((image for image, _ in shown), "support.images")
    body = {
        "support": {"images": list(map(_base64, images)), "labels": [label for _, label in shown]},
        "query": list(map(_base64, to_files(query, "query"))),
        "head": head,
    }
    headers = {"Content-Type": "application/json"}
    return Request("POST", f"{_path(meta_model_id)}/predict", headers=headers, content=json.dumps(body).encode())


def _base64(file: bytes) -> str:
    return b64encode(file).decode()


def _download(meta_model_id: str, folder: Path, retries: int) -> Flow[Path]:
    model = yield from call(Request("GET", _path(meta_model_id)), MetaModel, retries=retries)
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in model.files.items():
        if Path(name).name != name or name in {"", ".", ".."}:
            raise InvalidAnswer(
                f"meta-model {meta_model_id}: {name!r} is no plain file name; nothing was written to it"
            )
        target, part = folder / name, folder / f".{name}.part"
        if target.is_file() and _sha256(target) == digest:
            continue
        try:
            file = f"{_path(meta_model_id)}/files/{quote(name, safe='')}"
            yield from retried(Request("GET", file, save_to=part), retries=retries)
            if _sha256(part) != digest:
                raise InvalidAnswer(f"meta-model {meta_model_id}: {name} arrived damaged: download it again")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
