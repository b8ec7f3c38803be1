"""CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): the 100 classes of CIFAR-100 split 64/16/20, images 3x32x32.

Read from the layout of the public download, as a zip file or a folder:
`cifar100/data/<class>/*.png` and `cifar100/splits/bertinetto/{train,val,test}.txt`.
"""

import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfml.datasets.missing import DatasetMissing

SPLITS = ("train", "val", "test")
HOW = (
    "Get cifar-fs.zip (the data set of Bertinetto et al., https://github.com/bertinetto/r2d2, linked in its README) and put "
    "it, or its folder cifar100, into the folder that METAZOO_DATA names."
)
_PLACES = ("cifar-fs.zip", "cifar-fs", "cifar100", ".")


@dataclass(frozen=True)
class CifarFs:
    """`path`: the zip file, or the folder that holds `data` and `splits`, at whatever depth."""

    path: Path
    name: str = "cifar-fs"
    _held: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def find(cls, root: Path | None) -> "CifarFs":
        """The data set under the folder of data sets, opened once a process. Raises DatasetMissing."""
        places = [] if root is None else [(root / place).resolve() for place in _PLACES]
        for place in places:
            if zipfile.is_zipfile(place) or _base(place) is not None:
                return _opened(place)
        raise DatasetMissing("cifar-fs", places, HOW)

    def classes(self, split: str) -> tuple[str, ...]:
        """Class names in the order of the split's file."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown: there are {', '.join(SPLITS)}")
        with _reader(self.path) as reader:
            return tuple(reader.read(f"splits/bertinetto/{split}.txt").decode().split())

    def images(self, split: str) -> Tensor:
        """uint8 (classes, per_class, 3, 32, 32); the least per_class of the split's classes, in order of file names."""
        with self._lock:
            if split not in self._held:
                self._held[split] = self._read(split)
            return self._held[split]

    def _read(self, split: str) -> Tensor:
        names = self.classes(split)
        with _reader(self.path) as reader:
            files = reader.images()
            empty = [name for name in names if name not in files]
            if empty:
                missing = f"images of {len(empty)} of the {len(names)} {split} classes ({', '.join(empty[:3])}…)"
                raise DatasetMissing("cifar-fs", [self.path], f"There are no {missing}. {HOW}")
            per_class = min(len(files[name]) for name in names)
            held = np.stack([np.stack([reader.decode(file) for file in files[name][:per_class]]) for name in names])
        return torch.from_numpy(held).permute(0, 1, 4, 2, 3).contiguous()


class _Reader:
    """Files below the folder that holds `data` and `splits`, of a zip file or of a folder."""

    def __init__(self, source: zipfile.ZipFile | Path, base: str, names: list[str]) -> None:
        self._source = source
        self._base = base
        self._names = names

    def read(self, name: str) -> bytes:
        if isinstance(self._source, Path):
            path = self._source / self._base / name
            if not path.is_file():
                raise DatasetMissing("cifar-fs", [path], HOW)
            return path.read_bytes()
        try:
            return self._source.read(self._base + name)
        except KeyError:
            raise DatasetMissing("cifar-fs", [f"{self._source.filename}/{self._base}{name}"], HOW) from None

    def images(self) -> dict[str, list[str]]:
        """Class -> its image files, sorted."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._names):
            if name.endswith(".png"):
                found.setdefault(PurePosixPath(name).parent.name, []).append(name)
        return found

    def decode(self, name: str) -> np.typing.NDArray[np.uint8]:
        """uint8 (32, 32, 3)."""
        with Image.open(io.BytesIO(self.read(name))) as image:
            pixels: np.typing.NDArray[np.uint8] = np.asarray(image.convert("RGB"))
        if pixels.shape != (32, 32, 3):
            raise ValueError(f"{name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, CIFAR-FS is 32x32: get it again")
        return pixels


@contextmanager
def _reader(path: Path) -> Iterator[_Reader]:
    if path.is_dir():
        base = _base(path)
        if base is None:
            raise DatasetMissing("cifar-fs", [path], HOW)
        data = path / base
        yield _Reader(path, base, [file.relative_to(data).as_posix() for file in (data / "data").glob("*/*.png")])
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        marks = [name for name in names if name.endswith("splits/bertinetto/train.txt")]
        if not marks:
            raise DatasetMissing("cifar-fs", [path], f"It holds no splits/bertinetto/train.txt. {HOW}")
        base = marks[0].removesuffix("splits/bertinetto/train.txt")
        yield _Reader(archive, base, [name.removeprefix(base) for name in names if name.startswith(base + "data/")])


def _base(folder: Path) -> str | None:
    """Where `splits` is below the folder: here, or one folder down."""
    for base in (".", "cifar100"):
        if (folder / base / "splits" / "bertinetto" / "train.txt").is_file():
            return base
    return None


_OPENED: dict[Path, CifarFs] = {}


def _opened(path: Path) -> CifarFs:
    """One object a path and process: its images are read once."""
    return _OPENED.setdefault(path, CifarFs(path))
