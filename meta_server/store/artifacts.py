"""The artefact store: answers, checkpoints and meta-models as files, in a folder or at any fsspec URL.

A path is relative, with forward slashes. A write is whole or absent, and durable once it returns. Every call blocks: from
an event loop, make it in a thread.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem


class ArtifactMissing(FileNotFoundError):
    """The store has no such file."""


class ArtifactDamaged(OSError):
    """The file is not the one that was written."""


class Artifacts:
    """Files below `url`: an absolute folder, or `s3://bucket/prefix` and the like."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        remembered = {"use_listings_cache": False} if "://" in url else {}  # other processes write too
        self._fs, self._root = fsspec.core.url_to_fs(url, **remembered)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._copies: Path | None = None
        self._renames = Renames()

    def read(self, path: str) -> bytes:
        """The file's bytes. Raises `ArtifactMissing`."""
        try:
            return bytes(self._fs.cat_file(self._full(path)))
        except FileNotFoundError:
            raise ArtifactMissing(f"the artefact store has no file {path}") from None

    def open(self, path: str) -> BinaryIO:
        """The file, to be read piece by piece. Raises `ArtifactMissing`."""
        try:
            file: BinaryIO = self._fs.open(self._full(path), "rb")
        except FileNotFoundError:
            raise ArtifactMissing(f"the artefact store has no file {path}") from None
        return file

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return bool(self._fs.isfile(self._full(path)))

    def list(self, folder: str) -> list[str]:
        """Paths of all files below a folder, sorted."""
        found = self._fs.find(self._full(folder))
        return sorted(str(path).removeprefix(self._root).lstrip("/") for path in found)

    def modified(self, path: str) -> datetime:
        """When the file was written, in UTC. Raises `ArtifactMissing`."""
        try:
            when: datetime = self._fs.modified(self._full(path))
        except FileNotFoundError:
            raise ArtifactMissing(f"the artefact store has no file {path}") from None
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    def remove_file(self, path: str) -> None:
        """Remove a file, and the folders that this leaves empty; one that is gone already is no fault."""
        full = self._full(path)
        with suppress(FileNotFoundError):
            self._fs.rm_file(full)
        if self._is_local:
            with suppress(OSError):  # not empty
                for folder in Path(full).parents[: path.count("/")]:
                    folder.rmdir()

    def local(self, folder: str) -> Path:
        """The folder on this machine: itself if it is here, else a copy that is kept as long as this object.

        Raises `ArtifactMissing` when it holds no files.
        """
        paths = self.list(folder)
        if not paths:
            raise ArtifactMissing(f"the artefact store has no files in {folder}")
        if self._is_local:
            return Path(self._full(folder))
        if self._copies is None:
            self._copies = Path(tempfile.mkdtemp(prefix="metazoo-artifacts-"))
            weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)
        for path in paths:
            target = self._copies / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read(path))
        return self._copies / folder

    def write(self, path: str, content: bytes) -> None:
        """Write a file, whole."""
        full = self._full(path)
        if not self._is_local:
            self._fs.pipe_file(full, content)  # an object store shows an object once it is whole
            return
        target = Path(full)
        _make_folder(target.parent)
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
        self._renames.settle(target.parent)

    def keep(self, stem: str, suffix: str, content: bytes) -> str:
        """Write a file whose name tells its SHA-256, and return its path: `{stem}-{digest}{suffix}`."""
        path = f"{stem}-{hashlib.sha256(content).hexdigest()}{suffix}"
        self.write(path, content)
        return path

    def recall(self, path: str) -> bytes:
        """What `keep` wrote at `path`. Raises `ArtifactMissing`, `ArtifactDamaged`."""
        content = self.read(path)
        if hashlib.sha256(content).hexdigest() not in PurePosixPath(path).name:
            raise ArtifactDamaged(f"{path} in the artefact store was changed or damaged: put the proper file back")
        return content

    def put_folder(self, source: Path, folder: str) -> Mapping[str, str]:
        """Copy the files directly in `source` into `folder`: file name -> SHA-256."""
        digests = {}
        for file in sorted(source.iterdir()):
            content = file.read_bytes()
            self.write(f"{folder}/{file.name}", content)
            digests[file.name] = hashlib.sha256(content).hexdigest()
        return digests

    def remove(self, folder: str) -> None:
        """Delete a folder and all in it; one that is not there is no fault."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._full(folder), recursive=True)

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or not parts.parts:
            raise ValueError(f"{path!r} is no path inside the artefact store")
        return f"{self._root.rstrip('/')}/{parts}"


class Renames:
    """Makes renames durable. Threads that renamed in one folder while it was written to disk share the next write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: weakref.WeakValueDictionary[Path, _Folder] = weakref.WeakValueDictionary()

    def settle(self, folder: Path) -> None:
        """Once this returns, all renames in `folder` that were made before it was called are durable."""
        with self._lock:
            known = self._folders.setdefault(folder, _Folder())
            known.renames += 1
            mine = known.renames
        with known.writing:
            if known.durable >= mine:
                return
            covered = known.renames
            _sync_folder(folder)
            known.durable = covered


@dataclass(eq=False)
class _Folder:
    """How many renames there were in a folder, and how many of them are durable."""

    renames: int = 0
    durable: int = 0
    writing: threading.Lock = field(default_factory=threading.Lock)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
