"""Many small images on one sheet, as PNG. numpy and Pillow only."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GAP = 2  # pixels between images, in white


def sheet(images: NDArray[np.uint8], columns: int) -> bytes:
    """uint8 (n, 3, h, w), n >= 1, row after row of `columns`, as the bytes of a PNG. Places left over stay white.

    Raises ValueError on another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images) or columns < 1:
        raise ValueError(
            f"expected uint8 (n, 3, h, w) and a column or more, got {images.dtype} {images.shape}, {columns}"
        )
    n, _, height, width = images.shape
    rows, columns = -(-n // columns), min(columns, n)
    canvas = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "PNG", optimize=True)
    return out.getvalue()
