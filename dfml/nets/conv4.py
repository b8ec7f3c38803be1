"""Conv4: the four-block network of the few-shot literature (Vinyals et al. 2016, Snell et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """conv3x3 - batch norm - ReLU - max pool 2: (n, in, h, w) -> (n, out, h // 2, w // 2).

    Computed with the pool before the ReLU: both are monotone, so values and gradients are the same to the bit, on a quarter
    of the numbers.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(self.norm(self.conv(x)), 2))


class Conv4(nn.Module):
    """Four blocks, then flattened channel-major: (n, 3, h, w) -> (n, width * (h // 16) * (w // 16)).

    `input_shape` is (3, h, w), at least 16 pixels a side. `conv_bias` is a redundant bias before each batch norm, which some
    published weights have.
    """

    def __init__(self, width: int, input_shape: tuple[int, int, int], *, conv_bias: bool = False) -> None:
        super().__init__()
        channels, height, shown = input_shape
        if min(height, shown) < 16:
            raise ValueError(f"Conv4 halves an image four times: {height}x{shown} is too small, give 16 pixels a side")
        widths = [channels, width, width, width, width]
        self.blocks = nn.Sequential(
            *(Block(widths[k], widths[k + 1], bias=conv_bias) for k in range(4)),
        )
        self.dim = width * (height // 16) * (shown // 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.blocks(x), 1)
