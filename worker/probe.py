"""Whether an API can teach: what it must say of itself, and what its answers must look like.

The probe is the first chunk of the API's own queries; what it answers counts for training like all else.
"""

import numpy as np
from numpy.typing import NDArray

from client.model import ModelInfo
from contracts.oip import Tensor

IMAGES = 16  # of the probe: enough to see a fault, few enough to lose
SLACK = 1e-2  # how far from 1 the probabilities of an unrounded answer may sum

_TYPES = {"FP32": "<f4", "FP64": "<f8"}


class BadApi(Exception):
    """The API cannot teach; the message says why, in a way that may be shown to anyone."""


def check_info(info: ModelInfo, input_shape: tuple[int, int, int]) -> None:
    """Whether an API with this metadata fits the job's input shape. Raises `BadApi`."""
    if info.input_shape[0] != 3:
        raise BadApi(f"it takes images of {info.input_shape[0]} channel, and query images have 3")
    if info.input_shape != input_shape:
        raise BadApi(f"it takes images of shape {info.input_shape}, and the job's other APIs {input_shape}")


def read_probabilities(tensor: Tensor, *, images: int, classes: int) -> NDArray[np.float32]:
    """An answer as float32 (images, classes), exactly as received. Raises `BadApi` where it holds no probabilities."""
    answered = np.frombuffer(tensor.data, _TYPES[tensor.datatype]).reshape(tensor.shape)
    if answered.shape != (images, classes):
        raise BadApi(f"it answered shape {answered.shape} to {images} images of {classes} classes")
    if not np.isfinite(answered).all():
        raise BadApi("it answered NaN or infinity")
    if (answered < -SLACK).any() or (answered > 1 + SLACK).any():
        raise BadApi("it answered numbers outside [0, 1], which are no probabilities")
    sums = answered.sum(axis=1, dtype=np.float64)
    furthest = float(sums[np.abs(sums - 1).argmax()])
    if abs(furthest - 1) > SLACK + classes * _unit(answered) / 2:
        raise BadApi(f"its probabilities sum to {furthest:.3g}, not 1")
    return answered.astype(np.float32)


def _unit(answered: NDArray[np.floating]) -> float:
    """The unit that the answers are rounded to, 0 when they are not: 0.01 for two decimals."""
    for decimals in (1, 2, 3):
        if np.allclose(answered, answered.round(decimals), rtol=0, atol=1e-7):
            return float(10.0**-decimals)
    return 0.0
