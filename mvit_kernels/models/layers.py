"""The convolutional layers that MobileViT v1 and v2 share."""

from __future__ import annotations

import torch
from torch import nn


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """`value` rounded to a multiple of `divisor`: at least `minimum` (by default `divisor`), at most 10 % below `value`."""
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvNormAct(nn.Module):
    """Convolution, zero-padded and without bias -> BatchNorm -> SiLU, or nothing where `act` is False.

    (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """MobileNetv2's block (arXiv 1801.04381, section 3.3): a 1x1 widens, a 3x3 filters each channel, a linear 1x1 narrows.

    (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride)); the input is added if it has the output's shape.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * expand_ratio))
        self.conv1_1x1 = ConvNormAct(in_channels, hidden)
        self.conv2_kxk = ConvNormAct(hidden, hidden, 3, stride=stride, groups=hidden)
        self.conv3_1x1 = ConvNormAct(hidden, out_channels, act=False)
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.has_skip else y


class ClassifierHead(nn.Module):
    """Global mean -> dropout -> linear. (B, C, H, W) -> (B, num_classes), or the means (B, C) if `num_classes` is 0."""

    def __init__(self, in_channels: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(in_channels, num_classes) if num_classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(x.mean(dim=(2, 3))))
