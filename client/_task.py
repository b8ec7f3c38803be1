"""A new task as a person gives it: labelled images, and how they are learned."""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from client._images import Image
from contracts.adaptation import Calibration, Method

Support = Iterable[tuple[Image, str]]
"""Images with their labels. An image is a path, the bytes of an image file, a PIL image or an array."""


class TaskOptions(TypedDict, total=False):
    """How a task is learned; see `contracts.adaptation.Task`."""

    method: Method
    steps: int
    rate: float
    calibration: Calibration | Mapping[str, Any]
    seed: int


class AdaptOptions(TaskOptions, total=False):
    """And what becomes of it; see `contracts.adaptation.AdaptRequest`."""

    name: str
    ttl: int
    keep_support: bool
