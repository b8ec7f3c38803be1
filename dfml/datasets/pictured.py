"""Data sets of image files: an index of which files are which class's, and the files themselves, in a folder or in zips."""

import os
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.sources import SOURCES, SPLITS, check_split
from dfml.picture_files import opened
from dfml.pictures import drawn

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_FILE = 50 * 2**20  # bytes of one image file, unpacked

Index = Mapping[str, Mapping[str, Sequence[str]]]
"""Split -> class -> its image files, each in a fixed order."""


@dataclass(frozen=True)
class Files:
    """The files below some places, folders or zip archives, under names relative to the place; the first place wins.

    places: (folder or zip file, what to leave off the front of its names).
    """

    places: tuple[tuple[Path, str], ...]

    def names(self) -> list[str]:
        """Every image file, sorted."""
        found: set[str] = set()
        with self._archives() as archives:
            for (path, base), archive in zip(self.places, archives, strict=True):
                held: Iterable[str]
                if archive is None:
                    held = _below(path / base)
                else:
                    held = (name.removeprefix(base) for name in archive.namelist() if name.startswith(base))
                found.update(name for name in held if name.lower().endswith(SUFFIXES))
        return sorted(found)

    @contextmanager
    def reading(self) -> Iterator["Reader"]:
        """Archives stay open for as long as this lasts: opening one means reading its whole directory."""
        with self._archives() as archives:
            yield Reader([(path, base, archive) for (path, base), archive in zip(self.places, archives, strict=True)])

    @contextmanager
    def _archives(self) -> Iterator[list[zipfile.ZipFile | None]]:
        with ExitStack() as stack:
            yield [None if path.is_dir() else stack.enter_context(zipfile.ZipFile(path)) for path, _ in self.places]


@dataclass(frozen=True)
class Reader:
    """Reads files by their names. Made by `Files.reading`."""

    places: list[tuple[Path, str, zipfile.ZipFile | None]]

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError, ValueError where the file is too large, and zipfile.BadZipFile where it is damaged."""
        for path, base, archive in self.places:
            if archive is None and (path / base / name).is_file():
                size = (path / base / name).stat().st_size
            elif archive is not None and base + name in archive.NameToInfo:
                size = archive.NameToInfo[base + name].file_size
            else:
                continue
            if size > LARGEST_FILE:
                raise ValueError(f"{name} in {path} has {size} bytes: more than {LARGEST_FILE} for an image")
            return (path / base / name).read_bytes() if archive is None else archive.read(base + name)
        raise FileNotFoundError(f"{name} is not in {', '.join(str(path) for path, _, _ in self.places)}")


@dataclass(frozen=True)
class PictureSet:
    """Classes of image files, decoded to uint8 RGB of one `shape` = (3, h, w).

    Images of another size are resized (bilinear), or refused where `resize` is off: then they should all have it.
    """

    name: str
    files: Files
    index: Index
    shape: tuple[int, int, int]
    resize: bool = True
    _held: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False, compare=False)
    _whole: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def classes(self, split: str) -> tuple[str, ...]:
        """Class names in the order of the index."""
        check_split(split)
        return tuple(self.index[split])

    def per_class(self, split: str) -> int:
        """Images of each class: as many as the smallest has."""
        return min((len(files) for files in self.index[split].values()), default=0)

    def images(self, split: str, classes: Sequence[str] | None = None) -> Tensor:
        """uint8 (classes, per_class, *shape), in order of file names; of the classes named, or of all.

        Read once, then kept. Raises DatasetMissing where a class has no files, ValueError where one cannot be used.
        """
        names = self.classes(split)
        empty = [name for name in names if not self.index[split][name]]
        if empty or not names:
            missing = f"images of {len(empty)} of the {len(names)} {split} classes ({', '.join(empty[:3])}…)"
            said = f"There are no {missing}." if empty else f"It has no {split} classes."
            raise DatasetMissing(self.name, [path for path, _ in self.files.places], f"{said} {how_of(self.name)}")
        with self._lock:
            if classes is not None:
                whole = self._whole.get(split)
                if whole is not None:
                    return whole[[names.index(name) for name in classes]]
                self._read(split, classes)
                return torch.stack([self._held[split, name] for name in classes])
            if split not in self._whole:
                self._read(split, names)
                self._whole[split] = torch.stack([self._held.pop((split, name)) for name in names])
            return self._whole[split]

    def faults(self, split: str) -> list[str]:
        """What is wrong with a split, found by reading one image of each class; empty where nothing is."""
        found = []
        with self.files.reading() as reader:
            for name, files in self.index[split].items():
                try:
                    if files:
                        self._decode(reader, files[0])
                    else:
                        found.append(f"{name}: there are no images of it")
                except ValueError as error:
                    found.append(str(error))
        return found

    def _read(self, split: str, classes: Sequence[str]) -> None:
        count = self.per_class(split)
        with self.files.reading() as reader:
            for name in classes:
                if (split, name) not in self._held:
                    files = self.index[split][name][:count]
                    self._held[split, name] = torch.stack([self._decode(reader, file) for file in files])

    def _decode(self, reader: Reader, name: str) -> Tensor:
        _, height, width = self.shape
        try:
            image = opened(reader.read(name))
            own = image.size
            image.draft("RGB", (2 * width, 2 * height))  # JPEGs unpack to no more than resizing needs
            pixels = drawn(image, self.shape)
        except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.name}: {name}: {error}") from error
        if not self.resize and own != (width, height):
            raise ValueError(
                f"{self.name}: {name} is {own[0]}x{own[1]} pixels, {self.name} is {width}x{height}: get it again"
            )
        return pixels


def _below(top: Path) -> Iterator[str]:
    for folder, _, files in os.walk(top):
        inner = Path(folder).relative_to(top)
        yield from ((inner / file).as_posix() for file in files)


def grouped(names: Sequence[str], *, depth: int = 1) -> dict[str, list[str]]:
    """Image files by the last `depth` folders above them: class -> files, both in the order of `names`."""
    found: dict[str, list[str]] = {}
    for name in names:
        folders = name.split("/")[:-1]
        if len(folders) >= depth:
            found.setdefault("/".join(folders[-depth:]), []).append(name)
    return found


def alternate(names: Sequence[str]) -> dict[str, list[str]]:
    """Chen et al. (2019, arXiv:1904.04232) for CUB: every second class trains, the others validate and test in turn."""
    ordered = sorted(names)
    return {"train": ordered[::2], "val": ordered[1::4], "test": ordered[3::4]}


def indexed(splits: Mapping[str, Sequence[str]], files: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """An index from the names of each split's classes and the files of each class; a class without files has none."""
    return {split: {name: sorted(files.get(name, ())) for name in splits[split]} for split in SPLITS}


def how_of(name: str) -> str:
    """How to get a data set, in a sentence or two."""
    return SOURCES[name].how if name in SOURCES else "Put its images there."
