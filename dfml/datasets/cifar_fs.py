"""CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): the 100 classes of CIFAR-100 split 64/16/20, images 3x32x32.

Read from the layout of the public download, as a zip file or a folder:
`cifar100/data/<class>/*.png` and `cifar100/splits/bertinetto/{train,val,test}.txt`.
"""

import zipfile
from pathlib import Path

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import Files, PictureSet, grouped, indexed
from dfml.datasets.sources import SOURCES, SPLITS

PLACES = ("cifar-fs.zip", "cifar-fs", "cifar100", ".")
_MARK = "splits/bertinetto/train.txt"


def find(root: Path) -> PictureSet:
    """The data set in the folder of data sets. Raises DatasetMissing."""
    places = [(root / place).resolve() for place in PLACES]
    for path in places:
        if path.is_dir():
            for base in ("", "cifar100/"):
                if (path / base / _MARK).is_file():
                    return _of(Files(((path, base),)))
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                marks = [name for name in archive.namelist() if name.endswith(_MARK)]
            if not marks:
                raise DatasetMissing("cifar-fs", [path], f"It holds no {_MARK}. {SOURCES['cifar-fs'].how}")
            return _of(Files(((path, marks[0].removesuffix(_MARK)),)))
    raise DatasetMissing("cifar-fs", places, SOURCES["cifar-fs"].how)


def _of(files: Files) -> PictureSet:
    splits = {}
    with files.reading() as reader:
        for split in SPLITS:
            try:
                splits[split] = reader.read(f"splits/bertinetto/{split}.txt").decode().split()
            except FileNotFoundError as error:
                raise DatasetMissing("cifar-fs", [str(error)], SOURCES["cifar-fs"].how) from None
    found = grouped([name for name in files.names() if name.startswith("data/")])
    return PictureSet("cifar-fs", files, indexed(splits, found), (3, 32, 32), resize=False)
