"""Image files that anyone may have sent: their size is known, and refused, before pixels are unpacked.

numpy and Pillow only.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MOST_PIXELS = 40_000_000  # of one image, before it is resized
FORMATS = ("PNG", "JPEG", "WEBP")

# What Pillow raises for files that are damaged or none.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error)


class BadPicture(ValueError):
    """The file cannot be used; the message says why, to whoever sent it."""


def opened(file: bytes) -> Image.Image:
    """The image in a PNG, JPEG or WebP file; nothing but its head is read. Raises `BadPicture`."""
    try:
        image: Image.Image = Image.open(BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadPicture(f"it has more than {MOST_PIXELS} pixels") from None
    except _BROKEN:
        raise BadPicture("it is no PNG, JPEG or WebP file") from None
    if image.width * image.height > MOST_PIXELS:
        raise BadPicture(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}")
    return image


def pixels(image: Image.Image, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image turned upright and resized (bilinear) to `shape` = (c, h, w), uint8. Raises `BadPicture`."""
    channels, height, width = shape
    try:
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        content = bytearray(upright.resize((width, height), Image.Resampling.BILINEAR).tobytes())
    except _BROKEN:
        raise BadPicture("its pixels are damaged or missing") from None
    return np.frombuffer(content, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
