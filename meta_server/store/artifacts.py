"""The artefact store: answers, checkpoints and meta-models as files, in a folder or at any fsspec URL.

A path is relative, with forward slashes. A write is whole or absent, and durable once it returns.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

CHUNK = 2**18  # bytes


class ArtifactMissing(FileNotFoundError):
    """The store has no such file."""


class Artifacts:
    """Files below `url`: an absolute folder, or `s3://bucket/prefix` and the like."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._is_local = isinstance(self._fs, LocalFileSystem)

    async def read(self, path: str) -> bytes:
        """The file's bytes. Raises `ArtifactMissing`."""
        return await asyncio.to_thread(self._read, path)

    async def write(self, path: str, content: bytes) -> None:
        """Write a file, whole."""
        await asyncio.to_thread(self._write, path, content)

    async def size(self, path: str) -> int:
        """Bytes of a file. Raises `ArtifactMissing`."""
        try:
            return int(await asyncio.to_thread(self._fs.size, self._full(path)))
        except FileNotFoundError:
            raise ArtifactMissing(f"the artefact store has no file {path}") from None

    def chunks(self, path: str) -> Iterator[bytes]:
        """The file's bytes in parts, blocking: for readers that must not hold it whole."""
        with self._fs.open(self._full(path), "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    async def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return bool(await asyncio.to_thread(self._fs.isfile, self._full(path)))

    async def list(self, folder: str) -> list[str]:
        """Paths of all files below a folder, sorted."""
        found = await asyncio.to_thread(self._fs.find, self._full(folder))
        return sorted(str(path).removeprefix(self._root).lstrip("/") for path in found)

    async def local(self, folder: str, into: Path) -> Path:
        """The folder on this machine: itself if it is, else a copy of its files in `into`, which is made.

        Raises `ArtifactMissing` when it holds no files.
        """
        paths = await self.list(folder)
        if not paths:
            raise ArtifactMissing(f"the artefact store has no files in {folder}")
        if self._is_local:
            return Path(self._full(folder))
        await asyncio.to_thread(self._copy, paths, folder, into)
        return into

    async def put_folder(self, source: Path, folder: str) -> dict[str, str]:
        """Copy the files directly in `source` into `folder`: file name -> SHA-256."""
        return await asyncio.to_thread(self._put_folder, source, folder)

    def _read(self, path: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(self._full(path)))
        except FileNotFoundError:
            raise ArtifactMissing(f"the artefact store has no file {path}") from None

    def _write(self, path: str, content: bytes) -> None:
        full = self._full(path)
        if not self._is_local:
            self._fs.pipe_file(full, content)  # an object store shows an object once it is whole
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _copy(self, paths: Sequence[str], folder: str, into: Path) -> None:
        for path in paths:
            target = into / PurePosixPath(path).relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._read(path))

    def _put_folder(self, source: Path, folder: str) -> dict[str, str]:
        digests = {}
        for file in sorted(source.iterdir()):
            content = file.read_bytes()
            self._write(f"{folder}/{file.name}", content)
            digests[file.name] = hashlib.sha256(content).hexdigest()
        return digests

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or not parts.parts:
            raise ValueError(f"{path!r} is no path inside the artefact store")
        return f"{self._root.rstrip('/')}/{parts}"


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
