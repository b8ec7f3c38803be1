"""Room for images that may be more than memory holds: beyond a limit they lie in a file without a name.

The system keeps in memory what of the file is in use and writes the rest to disk; the file is gone with the tensor. It lies
where `TMPDIR` says, which must be a disk for this to be of use.
"""

import math
import os
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

IN_MEMORY = 2**30
"""Bytes of a set of images that are kept in memory."""


def room(shape: tuple[int, ...], *, beside: int = 0) -> Tensor:
    """An uint8 tensor on the CPU, its values not set; in a file once it and the `beside` bytes there already are too many.

    Raises OSError where the disk has no room: it is taken here, not when it is written to.
    """
    size = math.prod(shape)
    if size + beside <= IN_MEMORY or not size:
        return torch.empty(shape, dtype=torch.uint8)
    with NamedTemporaryFile(prefix="metazoo-images-") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # elsewhere than on Linux a full disk is met when it is written to
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(shape)


def chosen(images: Tensor, kept: Tensor) -> Tensor:
    """The images, uint8 (n, …), whose entry of `kept`, bool (n,), is true: themselves where all are, else a copy."""
    if bool(kept.all()):
        return images
    indices = kept.nonzero().flatten()
    taken = room((len(indices), *images.shape[1:]))
    return torch.index_select(images, 0, indices, out=taken)
