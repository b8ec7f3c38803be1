"""Random changes to training images that leave their label, or an API's answer, about what it was."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, *, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """uint8 (n, 3, h, w) -> float in [0, 1]: each image flipped or not, all shifted by up to `shift` pixels, reflected.

    A shift beyond the image is cut to what reflection can fill. One shift a batch costs an image copy and no gather; over
    an epoch every image meets every shift.
    """
    x = images.float() / 255
    height, width = x.shape[2:]
    if flip:
        flipped = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
        x = torch.where(flipped.to(x.device), x.flip(3), x)
    shift = min(shift, min(height, width) - 1)
    if shift:
        down, across = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
        x = F.pad(x, (shift, shift, shift, shift), mode="reflect")[..., down : down + height, across : across + width]
    return x
