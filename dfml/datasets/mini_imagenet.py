"""mini-ImageNet (Vinyals et al. 2016) with the split of Ravi and Larochelle (2017): 64/16/20 classes of 600, here 3x84x84.

Read from the usual layout: `mini-imagenet/images/*.jpg`, flat or in a folder a class, and `train.csv`, `val.csv`, `test.csv`
beside it, with the columns `filename,label`; the files alone say which class is in which split.
"""

import csv
from pathlib import Path

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import Files, PictureSet
from dfml.datasets.sources import SOURCES, SPLITS

PLACES = ("mini-imagenet", "mini_imagenet", "miniImagenet", "miniimagenet")
SIDE = 84


def find(root: Path) -> PictureSet:
    """The data set in the folder of data sets. Raises DatasetMissing, and ValueError on split files that are none."""
    places = [(root / place).resolve() for place in PLACES]
    for path in places:
        if all((path / f"{split}.csv").is_file() for split in SPLITS) and (path / "images").is_dir():
            files = Files(((path, "images"),))
            held = {Path(name).name: name for name in files.names()}
            return PictureSet(
                "mini-imagenet",
                files,
                {split: _read(path / f"{split}.csv", held) for split in SPLITS},
                (3, SIDE, SIDE),
            )
    raise DatasetMissing("mini-imagenet", places, SOURCES["mini-imagenet"].how)


def _read(path: Path, held: dict[str, str]) -> dict[str, list[str]]:
    """Class -> its files that are there, in the order of the split file. Raises ValueError."""
    found: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if not {"filename", "label"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: its first line must name the columns filename,label; get it again")
        for row in rows:
            files = found.setdefault(row["label"], [])
            if row["filename"] in held:
                files.append(held[row["filename"]])
    return found
