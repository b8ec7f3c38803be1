"""The one error of data sets that are not there."""

from collections.abc import Sequence
from pathlib import Path


class DatasetMissing(Exception):
    """A data set, or a part of it, is not where it was looked for. The message says where that was and how to get it."""

    def __init__(self, name: str, looked: Sequence[Path | str], how: str) -> None:
        places = ", ".join(str(place) for place in looked) or "nowhere: no folder of data sets was given"
        super().__init__(f"data set {name} is missing. Looked in: {places}. {how}")
        self.name = name
        self.looked = tuple(str(place) for place in looked)
        self.how = how
