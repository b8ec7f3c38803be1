"""Images as callers have them: paths, bytes of image files, PIL images, arrays. Nothing is imported before it is needed.

An array is (h, w), (h, w, channels) or (channels, h, w), uint8 or float in [0, 1]; a torch tensor on the CPU is one too.
"""

import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from client.errors import InvalidRequest
from contracts import oip
from contracts.problems import Fault

Image = str | os.PathLike[str] | bytes | Any
"""A path, the bytes of an image file, a PIL image, or an array."""


def to_file(image: Image, where: str) -> bytes:
    """The bytes of an image file. `where` names the image in `InvalidRequest`, which is raised when it is none."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return _read(Path(image), where)
    drawn = image if _is_pil(image) else _from_array(image, where)
    file = BytesIO()
    drawn.save(file, format="PNG")
    return file.getvalue()


def to_tensor(images: Iterable[Image], shape: tuple[int, int, int]) -> oip.Tensor:
    """Images resized to `shape` = (channels, height, width) as one UINT8 tensor. Needs Pillow."""
    from PIL import Image as pil
    from PIL import ImageOps

    channels, height, width = shape
    planes: list[bytes] = []
    for index, image in enumerate(images):
        where = f"images.{index}"
        drawn: Any = image
        if not _is_pil(image):
            array = not isinstance(image, str | os.PathLike | bytes)
            try:
                drawn = _from_array(image, where) if array else pil.open(BytesIO(to_file(image, where)))
            except (OSError, pil.DecompressionBombError) as error:
                raise _fault(where, f"is no image that can be read: {error}") from None
        drawn = ImageOps.exif_transpose(drawn).convert("RGB" if channels == 3 else "L")
        if drawn.size != (width, height):
            drawn = drawn.resize((width, height), pil.Resampling.BILINEAR)
        planes += [drawn.getchannel(channel).tobytes() for channel in range(channels)]
    return oip.Tensor("images", "UINT8", (len(planes) // channels, *shape), b"".join(planes))


def _is_pil(image: object) -> bool:
    return hasattr(image, "save") and hasattr(image, "getchannel")


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _fault(where, f"{path} cannot be read: {error.strerror}") from None


def _from_array(image: Any, where: str) -> Any:
    if not hasattr(image, "__array__"):
        raise _fault(where, f"must be a path, bytes, a PIL image or an array, not {type(image).__name__}")
    try:
        from PIL import Image as pil
    except ImportError:
        raise _fault(where, "is an array, which needs Pillow: install it, or pass the bytes of an image file") from None
    array: Any = image.__array__()
    if array.ndim == 3 and array.shape[2] not in {1, 3} and array.shape[0] in {1, 3}:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or array.shape[2:] not in {(), (3,)} or 0 in array.shape:
        raise _fault(where, f"has shape {array.shape}: it must be (h, w), (h, w, 3) or (3, h, w)")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails this as well
            raise _fault(where, "holds floats outside [0, 1]: scale it, or pass uint8")
        array = (array * 255).round().astype("uint8")
    if array.dtype != "uint8":
        raise _fault(where, f"holds {array.dtype}: it must be uint8, or float in [0, 1]")
    return pil.fromarray(array.copy())


def _fault(where: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{where}: {message}", fields=[Fault(field=where, message=message)])
