"""Image files that anyone may have sent, as tensors; how they are opened and refused is in `picture_files`."""

import torch
from PIL import Image
from torch import Tensor

from dfml.picture_files import pixels


def drawn(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """The image turned upright and resized (bilinear) to `shape` = (c, h, w), uint8. Raises `BadPicture`."""
    return torch.from_numpy(pixels(image, shape))
