"""Whether an API can teach: what it must say of itself, and what its answers must look like.

The probe is the first chunk of the API's own queries; what it answers counts for training like all else.
"""

import numpy as np
from numpy.typing import NDArray

from client.model import ModelInfo
from contracts.oip import Tensor
from contracts.zoo import parse_policy

IMAGES = 16  # of the probe: enough to see a fault, few enough to lose
USELESS_AFTER = 64  # images with one and the same answer, after which an API is asked no more
SAME = 1e-5  # difference of probabilities that counts as none
LEAST_SIDE, LARGEST_SIDE = 8, 1024  # pixels of an image
SLACK = 1e-2  # how far from 1 the probabilities of an unrounded answer may sum

_TYPES = {"FP32": "<f4", "FP64": "<f8"}


class BadApi(Exception):
    """The API cannot teach; the message says why, in a way that may be shown to anyone."""


def check_info(info: ModelInfo) -> None:
    """Whether an API with this metadata can be asked about query images. Raises `BadApi`."""
    channels, *sides = info.input_shape
    if channels != 3:
        raise BadApi(f"it takes images of {channels} channel, and query images have 3")
    if not LEAST_SIDE <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise BadApi(f"it takes images of {sides[0]}x{sides[1]} pixels: {LEAST_SIDE} to {LARGEST_SIDE} a side are made")


def check_same_size(info: ModelInfo, input_shape: tuple[int, int, int]) -> None:
    """For methods that make their images at one size as they go. Raises `BadApi`."""
    if info.input_shape != input_shape:
        raise BadApi(f"it takes images of shape {info.input_shape}, and the job's other APIs {input_shape}")


def read_probabilities(tensor: Tensor, *, images: int, classes: int, response_policy: str = "") -> NDArray[np.float32]:
    """An answer as float32 (images, classes), exactly as received. Raises `BadApi` where it holds no probabilities.

    Rows sum to 1 as closely as their rounding allows; of an API whose metadata states the policy `topk:k`, the k largest
    of all the classes hold at least k / classes.
    """
    answered = np.frombuffer(tensor.data, _TYPES[tensor.datatype]).reshape(tensor.shape)
    if answered.shape != (images, classes):
        raise BadApi(f"it answered shape {answered.shape} to {images} images of {classes} classes")
    if not np.isfinite(answered).all():
        raise BadApi("it answered NaN or infinity")
    if (answered < -SLACK).any() or (answered > 1 + SLACK).any():
        raise BadApi("it answered numbers outside [0, 1], which are no probabilities")
    sums = answered.sum(axis=1, dtype=np.float64)
    slack = SLACK + classes * _unit(answered) / 2
    least = _top(response_policy, classes) / classes
    short, over = float(sums.min()), float(sums.max())
    if short < least - slack or over > 1 + slack:
        wanted = "1" if least == 1 else f"{least:.3g} to 1"
        raise BadApi(f"its probabilities sum to {over if over > 1 + slack else short:.3g}, not {wanted}")
    return answered.astype(np.float32)


class Sameness:
    """Counts `images` for as long as all of an API's answers are the same one: then they teach nothing."""

    def __init__(self) -> None:
        self.images = 0
        self._first: NDArray[np.float32] | None = None
        self._differ = False

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """Answers to some images, float32 (n, classes)."""
        if self._first is None:
            self._first = probabilities[0]
        self._differ = self._differ or not np.allclose(probabilities, self._first, rtol=0, atol=SAME)
        self.images = 0 if self._differ else self.images + len(probabilities)


def _top(response_policy: str, classes: int) -> int:
    """How many classes an answer tells of by what the API states; all of them unless it states `topk:k`."""
    try:
        kind, number = parse_policy(response_policy)
    except ValueError:  # another server's word for it, or none
        return classes
    return min(number, classes) if kind == "topk" else classes


def _unit(answered: NDArray[np.floating]) -> float:
    """The unit that the answers are rounded to, 0 when they are not: 0.01 for two decimals."""
    for decimals in (1, 2, 3):
        if np.allclose(answered, answered.round(decimals), rtol=0, atol=1e-7):
            return float(10.0**-decimals)
    return 0.0
