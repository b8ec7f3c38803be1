"""Omniglot (Lake et al. 2015): 1,623 characters of 50 alphabets, 20 drawings each, 105x105, here 3x28x28 as is usual.

Read from the layout of the public download, as zip files or folders:
`images_background/<alphabet>/<character>/*.png` and `images_evaluation/…`. A class is a character, `Greek/character01`.

The split is that of Vinyals et al. (2016), 1028/172/423 characters, which Snell et al. (2017) publish as lists
(github.com/jakesnell/prototypical-networks, data/omniglot/splits/vinyals) and which is a rule: five alphabets validate;
in alphabetical order, all from the 42nd character of Gurmukhi in `images_evaluation` on is for testing. Rotated characters
are no classes of their own here.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import Files, PictureSet, grouped, indexed
from dfml.datasets.sources import SOURCES

WHOLE = ("images_background", "images_evaluation")
SMALL = ("images_background_small1", "images_background_small2")
VALIDATE = frozenset({"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"})
FIRST_TEST = "Gurmukhi/character42"
SIDE = 28


def find(root: Path) -> PictureSet:
    """The whole data set in the folder of data sets. Raises DatasetMissing."""
    background, evaluation = _place("omniglot", root, WHOLE)
    files = Files((background, evaluation))
    tested = {name for name in grouped(Files((evaluation,)).names(), depth=2) if name >= FIRST_TEST}
    return _of("omniglot", files, tested)


def find_small(root: Path) -> PictureSet:
    """The two small background sets together: their characters as the whole data set splits them, so none is for testing."""
    return _of("omniglot-small", Files(_place("omniglot-small", root, SMALL)), set())


def _place(name: str, root: Path, parts: Sequence[str]) -> tuple[tuple[Path, str], ...]:
    """Each part as a folder or a zip file, in the folder of data sets or in `omniglot` below it."""
    found, looked = [], []
    for part in parts:
        places = [folder / f"{part}{ending}" for folder in (root, root / "omniglot") for ending in ("", ".zip")]
        looked += places
        found += [
            (path.resolve(), "" if path.is_dir() else f"{part}/")
            for path in places
            if path.is_dir() or zipfile.is_zipfile(path)
        ][:1]
    if len(found) < len(parts):
        raise DatasetMissing(name, looked, SOURCES[name].how)
    return tuple(found)


def _of(name: str, files: Files, tested: set[str]) -> PictureSet:
    found = grouped(files.names(), depth=2)
    validate = [each for each in found if each.split("/")[0] in VALIDATE]
    held = {*tested, *validate}
    splits = {"train": [each for each in found if each not in held], "val": validate, "test": sorted(tested)}
    return PictureSet(name, files, indexed(splits, found), (3, SIDE, SIDE))
