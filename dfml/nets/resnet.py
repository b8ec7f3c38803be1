"""ResNets for small images: 10 and 18, of basic blocks (He et al. 2016) behind a stem at full size, and 12.

The last is that of few-shot learning (Oreshkin et al. 2018; Lee et al. 2019, without its DropBlock).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, in, h, w) -> (n, out, h / stride, w / stride), rounded up."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride=stride)
        self.second = ConvNorm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, four stages of `width` times 1, 2, 4, 8 at strides 1, 2, 2, 2, global average: (n, 3, h, w) -> (n, 8 * width).

    `each`: basic blocks a stage; one gives ResNet-10, two ResNet-18.
    """

    def __init__(self, width: int, *, each: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 3)
        blocks, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            for position in range(each):
                blocks.append(BasicBlock(inputs, outputs, stride=2 if stage and not position else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.dim = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(F.relu(self.stem(x)))
        return out.mean((2, 3))


class ThreeConvolutions(nn.Module):
    """Three 3x3 convolutions beside a shortcut, then maxima of 2x2: (n, in, h, w) -> (n, out, h / 2, w / 2), rounded down."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3)
        self.second = ConvNorm(outputs, outputs, 3)
        self.third = ConvNorm(outputs, outputs, 3)
        self.shortcut = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.1)), 0.1)
        return F.max_pool2d(F.leaky_relu(self.third(out) + self.shortcut(x), 0.1), 2)


class ResNet12(nn.Module):
    """Four blocks of `width` times 1, 2.5, 5, 10, global average: (n, 3, h, w) -> (n, 10 * width).

    Raises ValueError for images of fewer than 16 pixels a side, of which nothing would be left.
    """

    def __init__(self, width: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = input_shape
        if min(sides) < 16:
            raise ValueError(f"images of {sides[0]}x{sides[1]}: resnet12 takes at least 16 pixels a side")
        blocks, inputs = [], channels
        for factor in (2, 5, 10, 20):
            blocks.append(ThreeConvolutions(inputs, width * factor // 2))
            inputs = width * factor // 2
        self.blocks = nn.Sequential(*blocks)
        self.dim = inputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out.mean((2, 3))
