"""Few-shot data sets: classes split into train, val and test, with the same number of images in each class of a split.

They serve teachers' training and evaluation alone: methods never see them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

from torch import Tensor

from dfml.datasets import cifar_fs, cub, image_folder, mini_imagenet, omniglot
from dfml.datasets.glyphs import Glyphs
from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import PictureSet
from dfml.datasets.resized import Resized
from dfml.datasets.sources import SOURCES, SPLITS

__all__ = ["NAMES", "SOURCES", "SPLITS", "Dataset", "DatasetMissing", "names_under", "open_dataset"]

NAMES: tuple[str, ...] = tuple(SOURCES)
"""All but image folders, which are called `folder:NAME`."""

SMALLEST_SIDE, LARGEST_SIDE = 8, 512


class Dataset(Protocol):
    """Labelled images of classes that no two splits share."""

    @property
    def name(self) -> str:
        """As `open_dataset` takes it."""

    def classes(self, split: str) -> tuple[str, ...]:
        """Class names of `train`, `val` or `test`, in a fixed order. Raises ValueError on another split."""

    def images(self, split: str, classes: Sequence[str] | None = None) -> Tensor:
        """uint8 (classes, per_class, 3, h, w), of the classes named, or of all as in `classes`. Not to be written to.

        per_class is the same whichever classes are named.
        """


_FINDERS: dict[str, Callable[[Path], PictureSet]] = {
    "cifar-fs": cifar_fs.find,
    "omniglot": omniglot.find,
    "omniglot-small": omniglot.find_small,
    "mini-imagenet": mini_imagenet.find,
    "cub": cub.find,
}
_OPENED: dict[tuple[str, Path], PictureSet] = {}
"""One object a data set and process: its images are read once."""


def open_dataset(name: str, root: Path | None, *, side: int | None = None) -> Dataset:
    """The data set called `name`; `root` is the folder of data sets (`METAZOO_DATA`), which `glyphs` does not need.

    side: pixels that its images shall have instead of its own, 8 to 512.
    Raises ValueError on an unknown name or a broken layout, and DatasetMissing, which says where it was looked for and how
    to get it.
    """
    if side is None:
        return _native(name, root)
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise ValueError(f"images of {side} pixels a side: give {SMALLEST_SIDE} to {LARGEST_SIDE}")
    return Resized(_native(name, root), side)


def names_under(root: Path | None) -> tuple[str, ...]:
    """Names that `open_dataset` may be asked for: those known, there or not, and the image folders that are there."""
    return NAMES + tuple(image_folder.present(root) if root is not None and root.is_dir() else ())


def _native(name: str, root: Path | None) -> Dataset:
    if name == "glyphs":
        return Glyphs()
    find = _FINDERS.get(name)
    if find is None and not name.startswith(image_folder.PREFIX):
        raise ValueError(
            f"data set {name!r} is unknown: there are {', '.join(NAMES)}, and folder:NAME for a folder of images"
        )
    if root is None:
        raise DatasetMissing(name, [], SOURCES[name].how if name in SOURCES else "Set METAZOO_DATA to where it lies.")
    key = (name, root.resolve())
    if key not in _OPENED:
        try:
            _OPENED[key] = find(root) if find else image_folder.find(name.removeprefix(image_folder.PREFIX), root)
        except BadZipFile as error:
            raise ValueError(f"data set {name}: a zip file of it is damaged ({error}): get it again") from error
    return _OPENED[key]
