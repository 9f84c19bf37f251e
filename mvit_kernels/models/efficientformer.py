"""EfficientFormer (V1), arXiv 2206.01191: pooling and 1x1 convolutions on maps, then attention over the tokens of the last one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .distilled import DistilledNetwork, DropPath, LayerScale, PositionBias, drop_path_rates
from .network import check_numbers, check_sizes


@dataclass(frozen=True)
class EfficientFormerConfig:
    """What makes one EfficientFormer differ from another (paper, appendix)."""

    channels: tuple[int, int, int, int]  # of the maps, stages 1 to 4
    depths: tuple[int, int, int, int]  # blocks, stages 1 to 4
    attention_blocks: int  # how many of the last stage's blocks, from the end, have attention
    image_size: int = 224  # side of the images for which the attention has positions
    proj_drop_rate: float = 0.0  # dropout inside of the MLPs
    drop_path_rate: float = 0.0  # chance that an image skips a branch of the last block; smaller before
    drop_rate: float = 0.0  # dropout before the classifier
    in_chans: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, channels=4, depths=4)
        check_numbers(self, positive=("image_size", "in_chans"), rates=("proj_drop_rate", "drop_path_rate", "drop_rate"))
        if not 0 <= self.attention_blocks <= self.depths[-1]:
            expected = f"0 to {self.depths[-1]}, the blocks of the last stage"
            raise ValueError(f"EfficientFormerConfig: expected attention_blocks to be {expected}, got {self.attention_blocks}")


VARIANTS = {
    "efficientformer_l1": EfficientFormerConfig(channels=(48, 96, 224, 448), depths=(3, 2, 6, 4), attention_blocks=1),
    "efficientformer_l3": EfficientFormerConfig(channels=(64, 128, 320, 512), depths=(4, 4, 12, 6), attention_blocks=4),
    "efficientformer_l7": EfficientFormerConfig(channels=(96, 192, 384, 768), depths=(6, 6, 18, 8), attention_blocks=8),
}


class Pooling(nn.Module):
    """How the mean of a pixel's neighbourhood differs from it; at the border, of those that exist. (B, C, H, W) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x) - x


class ConvMlp(nn.Module):
    """The same two layers on every pixel, four times as wide inside. (B, C, H, W) -> the same."""

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.norm1 = nn.BatchNorm2d(4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.act(self.norm1(self.fc1(x))))
        return self.drop(self.norm2(self.fc2(x)))


class PoolingBlock(nn.Module):
    """Pooling, then an MLP, each added to its input (paper, "MB4D"). (B, C, H, W) -> the same."""

    def __init__(self, channels: int, *, proj_drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        self.token_mixer = Pooling()
        self.ls1 = LayerScale(channels, axis=1)
        self.mlp = ConvMlp(channels, proj_drop_rate)
        self.ls2 = LayerScale(channels, axis=1)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.ls1(self.token_mixer(x)))
        return x + self.drop_path(self.ls2(self.mlp(x)))


class Tokens(nn.Module):
    """A map as a sequence, row by row. (B, C, H, W) -> (B, H W, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class Attention(PositionBias):
    """Softmax attention with position bias over the pixels of a square map. (B, N, C) -> (B, N, C).

    8 heads, whatever C is; their values are four times as wide as their queries and keys.
    """

    heads, key_dim, value_dim = 8, 32, 128

    def __init__(self, channels: int, side: int) -> None:
        super().__init__(self.heads, side, persistent=True)
        self.qkv = nn.Linear(channels, self.heads * (2 * self.key_dim + self.value_dim))
        self.proj = nn.Linear(self.heads * self.value_dim, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Rows of qkv: q, k and v of the first head, then of the second, ...
        qkv = self.qkv(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        query, key, value = qkv.split((self.key_dim, self.key_dim, self.value_dim), dim=3)
        scores = query @ key.transpose(2, 3) * self.key_dim**-0.5 + self.position_bias()
        y = scores.softmax(dim=3) @ value
        return self.proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The same two layers on every token, four times as wide inside. (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class AttentionBlock(nn.Module):
    """Pre-norm transformer layer (paper, "MB3D"). (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, side: int, *, proj_drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixer = Attention(channels, side)
        self.ls1 = LayerScale(channels, axis=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, proj_drop_rate)
        self.ls2 = LayerScale(channels, axis=2)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.ls1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Stage(nn.Module):
    """Halving convolution, unless this is the first stage, and blocks. (B, C_in, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)).

    With attention blocks, the map is made a sequence before them, and a map again behind.
    """

    def __init__(self, downsample: nn.Module, pooling: Sequence[nn.Module], attention: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*pooling, *([Tokens(), *attention] if attention else []))
        self.has_attention = bool(attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        y = self.blocks(x)
        return y.transpose(1, 2).unflatten(2, x.shape[2:]) if self.has_attention else y


class EfficientFormer(DistilledNetwork):
    """EfficientFormer for classification, or as the backbone of another task."""

    def __init__(self, config: EfficientFormerConfig, *, num_classes: int = 1000, features_only: bool = False) -> None:
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = []
        for index, (channels, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
            last = index == len(config.channels) - 1
            pooling_blocks = depth - config.attention_blocks if last else depth
            downsample = nn.Identity() if index == 0 else _halve(config.channels[index - 1], channels)
            pooling = [
                PoolingBlock(channels, proj_drop_rate=config.proj_drop_rate, drop_path_rate=rate) for rate in rates[index][:pooling_blocks]
            ]
            attention = [
                AttentionBlock(channels, math.ceil(config.image_size / 32), proj_drop_rate=config.proj_drop_rate, drop_path_rate=rate)
                for rate in rates[index][pooling_blocks:]
            ]
            stages.append(Stage(downsample, pooling, attention))
        super().__init__(
            stem=_stem(config.in_chans, config.channels[0]),
            stages=stages,
            norm=nn.LayerNorm(config.channels[-1]),
            channels=config.channels,
            in_chans=config.in_chans,
            image_size=config.image_size,
            coarsest=32,
            num_classes=num_classes,
            drop_rate=config.drop_rate,
            features_only=features_only,
        )
        self.config = config

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.flatten(2).transpose(1, 2)).mean(dim=1)


def _stem(in_chans: int, channels: int) -> nn.Sequential:
    """(B, in_chans, H, W) -> (B, channels, ceil(H / 4), ceil(W / 4))"""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_chans, channels // 2, 3, stride=2, padding=1),
            norm1=nn.BatchNorm2d(channels // 2),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            norm2=nn.BatchNorm2d(channels),
            act2=nn.ReLU(),
        )
    )


def _halve(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))
