"""Image files that anyone may have sent, as tensors: their size is known, and refused, before pixels are unpacked."""

import torch
from PIL import Image
from torch import Tensor

from dfml.picture_files import FORMATS, MOST_PIXELS, BadPicture, opened, pixels

__all__ = ["FORMATS", "MOST_PIXELS", "BadPicture", "drawn", "opened"]


def drawn(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """The image turned upright and resized (bilinear) to `shape` = (c, h, w), uint8. Raises `BadPicture`."""
    return torch.from_numpy(pixels(image, shape))
