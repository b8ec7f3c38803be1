"""Few-shot data sets: classes split into train, val and test, with the same number of images in each class of a split.

They serve teachers' training and evaluation alone: methods never see them.
"""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from dfml.datasets.cifar_fs import CifarFs
from dfml.datasets.glyphs import Glyphs
from dfml.datasets.missing import DatasetMissing

__all__ = ["NAMES", "Dataset", "DatasetMissing", "open_dataset"]

NAMES: tuple[str, ...] = ("glyphs", "cifar-fs")


class Dataset(Protocol):
    """Labelled images of classes that no two splits share."""

    @property
    def name(self) -> str:
        """As `open_dataset` takes it."""

    def classes(self, split: str) -> tuple[str, ...]:
        """Class names of `train`, `val` or `test`, in a fixed order. Raises ValueError on another split."""

    def images(self, split: str) -> Tensor:
        """uint8 (classes, per_class, 3, h, w), classes as in `classes`. Kept in memory: not to be written to."""


def open_dataset(name: str, root: Path | None) -> Dataset:
    """The data set called `name`; `root` is the folder of data sets (`METAZOO_DATA`), which `glyphs` does not need.

    Raises ValueError on an unknown name, and DatasetMissing, which says where it was looked for and how to get it.
    """
    if name == "glyphs":
        return Glyphs()
    if name == "cifar-fs":
        return CifarFs.find(root)
    raise ValueError(f"data set {name!r} is unknown: there are {', '.join(NAMES)}")
