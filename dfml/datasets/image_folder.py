"""Any folder of images: `<class>/*.png`, or `train/<class>/*.png` beside `val` and `test`; PNG, JPEG or WebP, here 3x84x84.

It is called `folder:NAME` after its name in the folder of data sets. Without folders for the splits the classes are split as
CUB's are: in alphabetical order every second one trains, the others validate and test in turn.
"""

import re
from pathlib import Path

from dfml.datasets.missing import DatasetMissing
from dfml.datasets.pictured import SUFFIXES, Files, PictureSet, alternate, grouped, indexed
from dfml.datasets.sources import SPLITS

PREFIX = "folder:"
SIDE = 84
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,80}")  # no way out of the folder of data sets


def find(name: str, root: Path) -> PictureSet:
    """The image folder `root`/`name`. Raises DatasetMissing, and ValueError on a name that is none or a class in two splits."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{PREFIX}{name}: give the plain name of a folder in the folder of data sets")
    path = (root / name).resolve()
    files = Files(((path, ""),))
    names = files.names() if path.is_dir() else []
    parts = {split: grouped([file for file in names if file.startswith(f"{split}/")]) for split in SPLITS}
    if any(parts.values()):
        return PictureSet(f"{PREFIX}{name}", files, _apart(path, parts), (3, SIDE, SIDE))
    found = {each: held for each, held in grouped(names).items() if held[0].count("/") == 1}
    if not found:
        raise DatasetMissing(
            f"{PREFIX}{name}",
            [path],
            "Put images there as CLASS/IMAGE.png, or as train/CLASS/IMAGE.png, val/… and test/….",
        )
    return PictureSet(f"{PREFIX}{name}", files, indexed(alternate(list(found)), found), (3, SIDE, SIDE))


def present(root: Path) -> list[str]:
    """Names of the folders there that hold classes of images, `folder:` included."""
    return sorted(f"{PREFIX}{path.name}" for path in root.iterdir() if path.is_dir() and _holds_classes(path))


def _holds_classes(path: Path) -> bool:
    """Whether images lie in two folders or more, at the depth of classes."""
    if not _NAME.fullmatch(path.name):
        return False
    tops = [path / split for split in SPLITS if (path / split).is_dir()] or [path]
    return len({file.parent for top in tops for file in top.glob("*/*") if file.suffix.lower() in SUFFIXES}) > 1


def _apart(path: Path, parts: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted(parts[one].keys() & parts[other].keys()):
            raise ValueError(
                f"{path}: {', '.join(shared[:3])} is both in {one} and in {other}: splits of a few-shot data set share no class"
            )
    return parts
