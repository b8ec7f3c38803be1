"""ResNet-10 for small images: four basic blocks (He et al. 2016) behind a stem at full size."""

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


class ResNet10(nn.Module):
    """Stem, blocks of `width` times 1, 2, 4, 8 with strides 1, 2, 2, 2, global average: (n, 3, h, w) -> (n, 8 * width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 3)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(BasicBlock(widths[k], widths[k + 1], stride=1 if k == 0 else 2) for k in range(4)),
        )
        self.dim = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(F.relu(self.stem(x)))
        return out.mean((2, 3))
