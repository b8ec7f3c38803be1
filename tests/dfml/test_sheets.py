import io

import numpy as np
import pytest
from PIL import Image

from dfml.sheets import sheet


def test_images_lie_row_after_row() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((1, 3, 4, 6), 50, np.uint8)
    with Image.open(io.BytesIO(sheet(images, 3))) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (4 + 2 + 4, 3 * 6 + 2 * 2, 3)
    assert [pixels[0, 0, 0], pixels[0, 8, 0], pixels[6, 8, 0], pixels[6, 16, 0]] == [0, 50, 200, 255]
    with pytest.raises(ValueError, match="expected uint8"):
        sheet(images.astype(np.float64), 3)
