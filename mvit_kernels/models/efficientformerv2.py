"""EfficientFormerV2, arXiv 2212.08059: inverted residuals everywhere, attention with talking heads on the two coarsest maps."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from .distilled import DistilledNetwork, DropPath, LayerScale, PositionBias, drop_path_rates
from .network import check_numbers, check_sizes


@dataclass(frozen=True)
class EfficientFormerV2Config:
    """What makes one EfficientFormerV2 differ from another (paper, appendix)."""

    channels: tuple[int, int, int, int]  # of the maps, stages 1 to 4
    mlp_ratios: tuple[tuple[int, ...], ...]  # how much wider each block of each stage is inside; as many as there are blocks
    attention_blocks: int  # how many of the blocks of stages 3 and 4, from the end, have attention
    image_size: int = 224  # side of the images for which the attention has positions
    proj_drop_rate: float = 0.0  # dropout inside of the MLPs
    drop_path_rate: float = 0.0  # chance that an image skips a branch of the last block; smaller before
    drop_rate: float = 0.0  # dropout before the classifier
    in_chans: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, channels=4)
        check_numbers(self, positive=("image_size", "in_chans"), rates=("proj_drop_rate", "drop_path_rate", "drop_rate"))
        if len(self.mlp_ratios) != 4 or not all(
            ratios and all(isinstance(ratio, int) and ratio > 0 for ratio in ratios) for ratios in self.mlp_ratios
        ):
            raise ValueError(f"EfficientFormerV2Config: expected mlp_ratios to be 4 tuples of positive integers, got {self.mlp_ratios}")
        blocks = min(self.depths[2:])
        if not 0 <= self.attention_blocks <= blocks:
            expected = f"0 to {blocks}, the blocks of stage 3 or 4"
            raise ValueError(f"EfficientFormerV2Config: expected attention_blocks to be {expected}, got {self.attention_blocks}")
        # The attention of stage 3 looks at every second pixel and is then enlarged twofold.
        if math.ceil(self.image_size / 16) % 2:
            raise ValueError(
                "EfficientFormerV2Config: expected image_size whose 16th part, rounded up, is even, such as 192, 224 or 256;"
                f" got {self.image_size}"
            )

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks, stages 1 to 4."""
        return tuple(len(ratios) for ratios in self.mlp_ratios)


VARIANTS = {
    "efficientformerv2_s0": EfficientFormerV2Config(
        channels=(32, 48, 96, 176),
        mlp_ratios=((4,) * 2, (4,) * 2, (4, 3, 3, 3, 4, 4), (4, 3, 3, 4)),
        attention_blocks=2,
    ),
    "efficientformerv2_s1": EfficientFormerV2Config(
        channels=(32, 48, 120, 224),
        mlp_ratios=((4,) * 3, (4,) * 3, (4, 4, 3, 3, 3, 3, 4, 4, 4), (4, 4, 3, 3, 4, 4)),
        attention_blocks=2,
    ),
    "efficientformerv2_s2": EfficientFormerV2Config(
        channels=(32, 64, 144, 288),
        mlp_ratios=((4,) * 4, (4,) * 4, (4, 4, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4), (4, 4, 3, 3, 3, 3, 4, 4)),
        attention_blocks=4,
        drop_path_rate=0.02,
    ),
    "efficientformerv2_l": EfficientFormerV2Config(
        channels=(40, 80, 192, 384),
        mlp_ratios=((4,) * 5, (4,) * 5, (4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4), (4, 4, 4, 3, 3, 3, 3, 4, 4, 4)),
        attention_blocks=6,
        drop_path_rate=0.1,
    ),
}


class ConvNorm(nn.Module):
    """Convolution, zero-padded and with bias -> BatchNorm -> GELU where `act` is True.

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
        act: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class ConvMlp(nn.Module):
    """An inverted residual's layers: a 1x1 widens, a 3x3 filters each channel, a 1x1 narrows. (B, C, H, W) -> the same."""

    def __init__(self, channels: int, ratio: int, drop_rate: float) -> None:
        super().__init__()
        hidden = ratio * channels
        self.fc1 = ConvNorm(channels, hidden, act=True)
        self.mid = ConvNorm(hidden, hidden, 3, groups=hidden, act=True)
        self.fc2 = ConvNorm(hidden, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.mid(self.fc1(x)))))


class Attention(PositionBias):
    """Softmax attention with talking heads over all pixels, and a depthwise 3x3 on its values (paper, section 3.2).

    (B, C, H, W) -> the same. With stride 2, it looks at every second pixel in height and width only, and what it gives is
    enlarged. side: of the map on which the attention itself works. Talking heads are 1x1 convolutions over the heads, one
    on the scores and one on the weights.
    """

    heads, key_dim, value_dim = 8, 32, 128

    def __init__(self, channels: int, side: int, *, stride: int) -> None:
        super().__init__(self.heads, side, persistent=False)
        values = self.heads * self.value_dim
        self.stride_conv = ConvNorm(channels, channels, 3, stride=stride, groups=channels) if stride > 1 else nn.Identity()
        self.upsample = nn.Upsample(scale_factor=stride, mode="bilinear") if stride > 1 else nn.Identity()
        self.q = ConvNorm(channels, self.heads * self.key_dim)
        self.k = ConvNorm(channels, self.heads * self.key_dim)
        self.v = ConvNorm(channels, values)
        self.v_local = ConvNorm(values, values, 3, groups=values)
        self.talking_head1 = nn.Conv2d(self.heads, self.heads, 1)
        self.talking_head2 = nn.Conv2d(self.heads, self.heads, 1)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stride_conv(x)
        value = self.v(x)
        query, key = (_split_heads(projected, self.heads) for projected in (self.q(x), self.k(x)))  # (B, heads, dim, N)
        scores = query.transpose(2, 3) @ key * self.key_dim**-0.5 + self.position_bias()
        weights = self.talking_head2(self.talking_head1(scores).softmax(dim=3))
        y = _merge_heads(weights @ _split_heads(value, self.heads).transpose(2, 3), x.shape[2:]) + self.v_local(value)
        return self.proj(self.act(self.upsample(y)))


class LocalGlobalQuery(nn.Module):
    """Every second pixel, plus a depthwise 3x3 around it, then a 1x1. (B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels)
        self.proj = ConvNorm(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.local(x) + x[:, :, ::2, ::2])


class AttentionDownsample(PositionBias):
    """Attention from every second pixel to all (paper, section 3.2). (B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2)).

    side: of the input map.
    """

    heads, key_dim, value_dim = 8, 16, 64

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(self.heads, side, stride=2, persistent=False)
        values = self.heads * self.value_dim
        self.q = LocalGlobalQuery(in_channels, self.heads * self.key_dim)
        self.k = ConvNorm(in_channels, self.heads * self.key_dim)
        self.v = ConvNorm(in_channels, values)
        self.v_local = ConvNorm(values, values, 3, stride=2, groups=values)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.v(x)
        local = self.v_local(value)
        query, key = (_split_heads(projected, self.heads) for projected in (self.q(x), self.k(x)))  # (B, heads, dim, N)
        scores = query.transpose(2, 3) @ key * self.key_dim**-0.5 + self.position_bias()
        y = scores.softmax(dim=3) @ _split_heads(value, self.heads).transpose(2, 3)
        return self.proj(self.act(_merge_heads(y, local.shape[2:]) + local))


class Downsample(nn.Module):
    """A halving convolution, plus attention where `attention_side` is the input map's. (B, C_in, H, W) -> (B, C_out, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int, attention_side: int | None) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, 3, stride=2)
        self.attn = AttentionDownsample(in_channels, out_channels, attention_side) if attention_side else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return y if self.attn is None else self.attn(x) + y


class EfficientFormerV2Block(nn.Module):
    """Attention, in some blocks, then an MLP, each added to its input. (B, C, H, W) -> the same."""

    def __init__(self, channels: int, ratio: int, attention: nn.Module | None, *, proj_drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        self.token_mixer = attention
        self.ls1 = LayerScale(channels, axis=1) if attention else None
        self.mlp = ConvMlp(channels, ratio, proj_drop_rate)
        self.ls2 = LayerScale(channels, axis=1)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.token_mixer is not None and self.ls1 is not None:
            x = x + self.drop_path(self.ls1(self.token_mixer(x)))
        return x + self.drop_path(self.ls2(self.mlp(x)))


class EfficientFormerV2(DistilledNetwork):
    """EfficientFormerV2 for classification, or as the backbone of another task."""

    def __init__(self, config: EfficientFormerV2Config, *, num_classes: int = 1000, features_only: bool = False) -> None:
        side = math.ceil(config.image_size / 32)  # of the map under every attention: stage 3's has stride 2
        rates = drop_path_rates(config.drop_path_rate, config.depths)
        stages = []
        for index, (channels, ratios) in enumerate(zip(config.channels, config.mlp_ratios, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = Downsample(config.channels[index - 1], channels, 2 * side if index == 3 else None)
            first_attention = len(ratios) - config.attention_blocks if index >= 2 else len(ratios)
            blocks = [
                EfficientFormerV2Block(
                    channels,
                    ratio,
                    Attention(channels, side, stride=2 if index == 2 else 1) if block >= first_attention else None,
                    proj_drop_rate=config.proj_drop_rate,
                    drop_path_rate=rates[index][block],
                )
                for block, ratio in enumerate(ratios)
            ]
            stages.append(nn.Sequential(OrderedDict(downsample=downsample, blocks=nn.Sequential(*blocks))))
        super().__init__(
            stem=nn.Sequential(
                OrderedDict(
                    conv1=ConvNorm(config.in_chans, config.channels[0] // 2, 3, stride=2, act=True),
                    conv2=ConvNorm(config.channels[0] // 2, config.channels[0], 3, stride=2, act=True),
                )
            ),
            stages=stages,
            norm=nn.BatchNorm2d(config.channels[-1]),
            channels=config.channels,
            in_chans=config.in_chans,
            image_size=config.image_size,
            coarsest=16,
            num_classes=num_classes,
            drop_rate=config.drop_rate,
            features_only=features_only,
        )
        self.config = config


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads dim, H, W) -> (B, heads, dim, H W)"""
    return x.flatten(2).unflatten(1, (heads, -1))


def _merge_heads(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """(B, heads, H W, dim) -> (B, heads dim, H, W)"""
    return x.transpose(2, 3).flatten(1, 2).unflatten(2, size)
