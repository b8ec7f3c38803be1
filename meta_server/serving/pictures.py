"""Images that callers sent, as tensors."""

from base64 import b64decode
from collections.abc import Sequence

import torch
from torch import Tensor

from contracts.problems import Fault, ProblemError
from dfml.picture_files import opened
from dfml.pictures import drawn


def decoded(shape: tuple[int, int, int], **sent: Sequence[str]) -> list[Tensor]:
    """base64 image files as uint8 (n, c, h, w), resized to `shape` = (c, h, w); one tensor for each field of `sent`.

    Raises a 422 `ProblemError` that names every image that cannot be used: its field, `__` for a dot, and its index.
    """
    found: list[Fault] = []
    tensors = []
    for field, images in sent.items():
        usable = []
        for index, text in enumerate(images):
            try:
                usable.append(drawn(opened(b64decode(text, validate=True)), shape))
            except ValueError as error:  # no base64, or a `BadPicture`
                place = f"{field.replace('__', '.')}.{index}"
                found.append(Fault(field=place, message=f"is no base64 PNG, JPEG or WebP file: {error}"))
        tensors.append(torch.stack(usable) if usable else torch.zeros((0, *shape), dtype=torch.uint8))
    if found:
        raise ProblemError("invalid-request", f"{len(found)} of the images cannot be used", errors=found)
    return tensors
