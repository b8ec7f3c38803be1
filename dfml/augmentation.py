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


def warp(images: Tensor, *, flip: bool, shift: int, scale: float, generator: torch.Generator) -> Tensor:
    """uint8 (n, 3, h, w) -> float in [0, 1]: each image by itself flipped or not, stretched and shifted, reflected at edges.

    Height and width are each divided by U(1 - scale, 1 + scale), then the image is moved by up to `shift` pixels either way
    along both axes, all bilinear. scale: in [0, 1). Drawn on the CPU, so that a generator means the same on any device.
    """
    x = images.float() / 255
    n, _, height, width = x.shape
    shift = min(shift, min(height, width) - 1)
    flipped = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    stretch = 1 + scale * (2 * torch.rand(n, 2, generator=generator) - 1)
    moved = (2 * torch.rand(n, 2, generator=generator) - 1) * shift * 2 / torch.tensor([width, height])
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = stretch[:, 0] * flipped, stretch[:, 1], moved
    grid = F.affine_grid(place.to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
