"""Images of one's own, without labels, that jobs may ask APIs about."""

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from urllib.parse import quote
from zipfile import ZipFile, ZipInfo

import anyio

from client._flow import AsyncDriver, Driver, Request, retried
from client._images import Image, to_files
from client.errors import InvalidRequest
from contracts.image_sets import ImageSet, ImageSetPage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same images make the same archive, whenever they are packed
Images = str | os.PathLike[str] | Iterable[Image]
"""A folder with image files (in folders of it too), a zip of such, or the images themselves."""


class ImageSets:
    """`Metazoo.image_sets`. What is uploaded is sent to the APIs of the jobs that name it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def create(self, images: Images, *, name: str | None = None) -> ImageSet:
        """Upload images; a job then asks about them in place of images made from its seed.

            mine = metazoo.image_sets.create("photos", name="holiday")
            job = metazoo.jobs.create({"apis": apis, "budget": {"queries": 5000}, "unlabeled": mine.id})

        They are kept as they are until the set is deleted: make large ones smaller before. Raises `InvalidRequest` that names
        each one that cannot be used, `TooLarge`.
        """
        return self._driver.call(_create(packed(images), name), ImageSet)

    def list(self, *, after: str | None = None, limit: int = 20) -> ImageSetPage:
        """A page, newest first; its `next` is the `after` of the following page.

        for mine in metazoo.image_sets.list().items:
            print(mine.id, mine.name, mine.images)
        """
        return self._driver.call(_list(after, limit), ImageSetPage)

    def retrieve(self, image_set: str) -> ImageSet:
        """One of them. Raises `NotFound`.

        print(metazoo.image_sets.retrieve(mine.id).images)
        """
        return self._driver.call(Request("GET", _path(image_set)), ImageSet)

    def delete(self, image_set: str) -> None:
        """Delete it; jobs that still have to ask about it fail. Raises `NotFound`.

        metazoo.image_sets.delete(mine.id)
        """
        self._driver.run(retried(Request("DELETE", _path(image_set)), retries=self._driver.retries))


class AsyncImageSets:
    """`AsyncMetazoo.image_sets`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def create(self, images: Images, *, name: str | None = None) -> ImageSet:
        """Upload images; see `ImageSets.create`."""
        content = await anyio.to_thread.run_sync(packed, images)
        return await self._driver.call(_create(content, name), ImageSet)

    async def list(self, *, after: str | None = None, limit: int = 20) -> ImageSetPage:
        """A page, newest first; its `next` is the `after` of the following page."""
        return await self._driver.call(_list(after, limit), ImageSetPage)

    async def retrieve(self, image_set: str) -> ImageSet:
        """One of them. Raises `NotFound`."""
        return await self._driver.call(Request("GET", _path(image_set)), ImageSet)

    async def delete(self, image_set: str) -> None:
        """Delete it; see `ImageSets.delete`."""
        await self._driver.run(retried(Request("DELETE", _path(image_set)), retries=self._driver.retries))


def packed(images: Images) -> bytes:
    """A zip of the images, their names left out. Raises `InvalidRequest` where there are none, or one cannot be read."""
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_file():
            return path.read_bytes()
        images = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not images:
            raise InvalidRequest(f"{path} holds no {', '.join(SUFFIXES)} files: give a folder with images, or a zip")
    archive = BytesIO()
    with ZipFile(archive, "w") as file:
        for index, content in enumerate(to_files(images, "images")):
            file.writestr(ZipInfo(f"{index:06d}", _EARLIEST), content)
    return archive.getvalue()


def _path(image_set: str) -> str:
    return f"/v1/image-sets/{quote(image_set, safe='')}"


def _list(after: str | None, limit: int) -> Request:
    return Request("GET", "/v1/image-sets", params={"limit": limit} | ({"after": after} if after else {}))


def _create(content: bytes, name: str | None) -> Request:
    headers, params = {"Content-Type": "application/zip"}, {} if name is None else {"name": name}
    return Request("POST", "/v1/image-sets", params=params, headers=headers, content=content, repeatable=False)
