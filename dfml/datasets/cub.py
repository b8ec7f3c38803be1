"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, 41 to 60 photos each, here 3x84x84.

Read from the layout of the public download, unpacked: `CUB_200_2011/images/<class>/*.jpg`. The split is that of Chen et al.
(2019, arXiv:1904.04232): of the classes in order, every second one trains, the others validate and test in turn, 100/50/50.
Photos are squeezed to a square, not cropped to the bounding boxes.
"""

from pathlib import Path

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import Files, PictureSet, alternate, grouped, indexed
from dfml.datasets.sources import SOURCES

PLACES = ("CUB_200_2011", "cub")
SIDE = 84


def find(root: Path) -> PictureSet:
    """The data set in the folder of data sets. Raises DatasetMissing."""
    places = [(root / place).resolve() for place in PLACES]
    for path in places:
        if (path / "images").is_dir():
            files = Files(((path, "images"),))
            found = grouped(files.names())
            return PictureSet("cub", files, indexed(alternate(list(found)), found), (3, SIDE, SIDE))
    raise DatasetMissing("cub", places, SOURCES["cub"].how)
