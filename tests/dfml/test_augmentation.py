"""What `warp` does to an image, against what it would be by hand."""

import torch
from torch import Tensor

from dfml.augmentation import warp


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_is_nothing_done(images: Tensor) -> None:
    shown = warp(images, flip=False, shift=0, scale=0.0, generator=drawn())
    assert torch.allclose(shown, images.float() / 255, atol=1e-5)


def test_each_image_is_flipped_or_not_by_itself(images: Tensor) -> None:
    shown = warp(images, flip=True, shift=0, scale=0.0, generator=drawn())
    plain = images.float() / 255
    same, mirrored = ((shown - other).flatten(1).abs().amax(1) < 1e-4 for other in (plain, plain.flip(3)))
    assert bool((same ^ mirrored).all())
    assert 0 < int(mirrored.sum()) < len(images)


def test_a_ramp_stays_a_ramp_as_steep_and_as_far_off_as_was_drawn() -> None:
    """Away from the edges: stretched by up to a quarter, moved by up to 3 pixels of 33, along each axis by itself."""
    place = torch.arange(33.0)
    ramp = torch.stack([place.expand(33, 33), place[:, None].expand(33, 33), place.expand(33, 33)])
    images = (ramp * 4 + 60).to(torch.uint8).expand(200, 3, 33, 33)
    shown = (warp(images, flip=False, shift=3, scale=0.25, generator=drawn()) * 255 - 60) / 4
    middle = shown[:, :, 8:25, 8:25]
    across, down = middle[:, 0, 8], middle[:, 1, :, 8]
    for lines in (across, down):
        steps = lines.diff(dim=1)
        assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-3)
        slope, moved = steps[:, 0], lines[:, 8] - 16
        for value, low, high in ((slope, 0.75, 1.25), (moved, -3, 3)):
            assert low - 1e-3 < value.min() < low + 0.1 * (high - low)
            assert high + 1e-3 > value.max() > high - 0.1 * (high - low)
    assert torch.corrcoef(torch.stack([across.diff(dim=1)[:, 0], down.diff(dim=1)[:, 0]]))[0, 1].abs() < 0.2
    assert torch.allclose(middle[:, 0, 0], middle[:, 0, -1], atol=1e-3)  # rows are all alike: no shear


def test_it_stays_an_image_and_follows_its_generator(images: Tensor) -> None:
    one, same, other = (warp(images, flip=True, shift=16, scale=0.9, generator=drawn(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1
