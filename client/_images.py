"""Images as callers have them: paths, bytes of image files, PIL images, arrays. Nothing is imported before it is needed.

An array is (h, w), (h, w, channels) or (channels, h, w), uint8 or float in [0, 1]; a torch tensor on the CPU is one too.
"""

import os
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from client.errors import InvalidRequest
from contracts import oip
from contracts.problems import Fault

Image = str | os.PathLike[str] | bytes | Any
"""A path, the bytes of an image file, a PIL image, or an array."""


def to_files(images: Iterable[Image], where: str) -> list[bytes]:
    """Each image as the bytes of an image file. Raises `InvalidRequest` naming, as `where`.index, each that is none."""
    return _each(images, where, _to_file)


def to_tensor(images: Iterable[Image], shape: tuple[int, int, int]) -> oip.Tensor:
    """Images resized to `shape` = (channels, height, width) as one UINT8 tensor. Needs Pillow.

    Raises `InvalidRequest` naming, as `images`.index, each that is none.
    """
    planes = _each(images, "images", lambda image: _planes(image, shape))
    return oip.Tensor("images", "UINT8", (len(planes), *shape), b"".join(planes))


class _NoImage(Exception):
    """What is wrong with an image."""


def _each(images: Iterable[Image], where: str, turn: Callable[[Image], bytes]) -> list[bytes]:
    turned: list[bytes] = []
    found: list[Fault] = []
    for index, image in enumerate(images):
        try:
            turned.append(turn(image))
        except _NoImage as error:
            found.append(Fault(field=f"{where}.{index}", message=str(error)))
    if found:
        raise InvalidRequest("; ".join(f"{fault.field}: {fault.message}" for fault in found), fields=found)
    return turned


def _to_file(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return _read(Path(image))
    drawn = image if _is_pil(image) else _from_array(image)
    file = BytesIO()
    drawn.save(file, format="PNG")
    return file.getvalue()


def _planes(image: Image, shape: tuple[int, int, int]) -> bytes:
    """One image as (channels, height, width) bytes."""
    from PIL import Image as pil
    from PIL import ImageOps

    channels, height, width = shape
    drawn: Any = image
    try:
        if isinstance(image, str | os.PathLike | bytes):
            drawn = pil.open(BytesIO(_to_file(image)))
        elif not _is_pil(image):
            drawn = _from_array(image)
        drawn = ImageOps.exif_transpose(drawn).convert("RGB" if channels == 3 else "L")
    except (OSError, pil.DecompressionBombError) as error:
        raise _NoImage(f"is no image that can be read: {error}") from None
    if drawn.size != (width, height):
        drawn = drawn.resize((width, height), pil.Resampling.BILINEAR)
    return b"".join(drawn.getchannel(channel).tobytes() for channel in range(channels))


def _is_pil(image: object) -> bool:
    return hasattr(image, "save") and hasattr(image, "getchannel")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _NoImage(f"{path} cannot be read: {error.strerror}") from None


def _from_array(image: Any) -> Any:
    if not hasattr(image, "__array__"):
        raise _NoImage(f"must be a path, bytes, a PIL image or an array, not {type(image).__name__}")
    try:
        from PIL import Image as pil
    except ImportError:
        raise _NoImage("is an array, which needs Pillow: install it, or pass the bytes of an image file") from None
    array: Any = image.__array__()
    if array.ndim == 3 and array.shape[2] not in {1, 3} and array.shape[0] in {1, 3}:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in {2, 3} or array.shape[2:] not in {(), (3,)} or 0 in array.shape:
        raise _NoImage(f"has shape {array.shape}: it must be (h, w), (h, w, 3) or (3, h, w)")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # NaN fails this as well
            raise _NoImage("holds floats outside [0, 1]: scale it, or pass uint8")
        array = (array * 255).round().astype("uint8")
    if array.dtype != "uint8":
        raise _NoImage(f"holds {array.dtype}: it must be uint8, or float in [0, 1]")
    return pil.fromarray(array.copy())
