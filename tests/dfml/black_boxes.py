"""APIs that one can check by hand, and the options that ask little of them."""

import torch
from torch import Tensor

from contracts.methods import BidfMkdOptions
from dfml.recovery import Recovery
from dfml.teachers import check_images
from dfml.visits import Plan

SMALL = BidfMkdOptions(
    images_per_class=2,
    iterations=2,
    directions=2,
    antithetic=True,
    frequencies=4,
    latent=6,
    generator_width=4,
    updates=4,
    tasks=2,
    inner_steps=2,
    replay_steps=2,
    ways=3,
    diversity=0.0,
)


class Painted:
    """A teacher that one can check by hand: class k is the one whose colour channel is brightest, sharply."""

    ways, input_shape = 3, (3, 8, 8)

    def __init__(self, *, decimals: int | None = None, sharpness: float = 20.0) -> None:
        self.queries = 0
        self.decimals, self.sharpness = decimals, sharpness

    def predict(self, images: Tensor) -> Tensor:
        check_images(images, self.input_shape)
        self.queries += len(images)
        answers = (images.mean((2, 3)) * self.sharpness).softmax(-1)
        return answers if self.decimals is None else answers.round(decimals=self.decimals)


class Wide(Painted):
    """Large enough for a surrogate. `rounded`: whether all it was shown had 8 bits."""

    input_shape = (3, 16, 16)
    rounded = True

    def predict(self, images: Tensor) -> Tensor:
        self.rounded &= torch.allclose((images * 255).round() / 255, images, atol=1e-6)
        return super().predict(images)


def recovery(teacher: object, options: BidfMkdOptions, *, seed: int = 0, unit: float | None = None) -> Recovery:
    planned = Plan((0,), options.images_per_class or 2, options.iterations or 2, 0)
    generator = torch.Generator().manual_seed(seed)
    return Recovery(teacher, options, planned, unit, generator, torch.device("cpu"))  # type: ignore[arg-type]
