"""MobileViTv2, arXiv 2206.02680: MobileViT with separable attention, whose cost is linear in the number of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels.messages import shown
from mvit_kernels.reference import fold_patches, separable_attention, unfold_patches

from .layers import ConvNormAct, make_divisible
from .network import HybridNetwork, check_numbers, check_sizes

OddMaps = Literal["resize", "drop"]


@dataclass(frozen=True)
class MobileViTv2Config:
    """What makes one MobileViTv2 differ from another: all channels follow from one `width` (paper, table 5).

    `HybridNetwork` says how the stages are built. `depth_ir` and `depth_vit` multiply the numbers of `blocks` and `depths`: rounded to the
    nearest, halves up, and at least 1. `resolution` shapes no weight: the model takes images of any size.
    `odd_maps` says what a block does with a map of odd height or width: "resize" enlarges it by a row or column for good
    (ml-cvnets, timm); "drop" leaves its last row or column out of the attention, whose result there is zero (transformers).
    """

    width: float = 1.0
    resolution: int = 256  # side in pixels of the images that it is made for
    depth_ir: float = 1.0
    depth_vit: float = 1.0
    blocks: tuple[int, int] = (1, 2)  # inverted residuals, stages 1 and 2
    depths: tuple[int, int, int] = (2, 4, 3)  # attention layers, stages 3 to 5
    odd_maps: OddMaps = "resize"
    drop_rate: float = 0.0  # dropout before the classifier
    in_chans: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, blocks=2, depths=3)
        check_numbers(self, positive=("resolution", "in_chans"), rates=("drop_rate",))
        for name in ("width", "depth_ir", "depth_vit"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"MobileViTv2Config: expected {name} > 0 and finite, got {shown(value)}")
        if self.odd_maps not in get_args(OddMaps):
            raise ValueError(f"MobileViTv2Config: expected odd_maps in {get_args(OddMaps)}, got {shown(self.odd_maps)}")

    @property
    def stem_channels(self) -> int:
        return make_divisible(min(max(32 * self.width, 16), 64), minimum=16)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps, stages 1 to 5."""
        return make_divisible(64 * self.width, 16), *(make_divisible(c * self.width) for c in (128, 256, 384, 512))

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of the attention, stages 3 to 5."""
        return tuple(make_divisible(d * self.width) for d in (128, 192, 256))

    @property
    def block_counts(self) -> tuple[int, ...]:
        """Inverted residuals, stages 1 and 2."""
        return tuple(_multiplied(count, self.depth_ir) for count in self.blocks)

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """Attention layers, stages 3 to 5."""
        return tuple(_multiplied(count, self.depth_vit) for count in self.depths)


def _multiplied(count: int, factor: float) -> int:
    return max(1, math.floor(count * factor + 0.5))


VARIANTS = {f"mobilevitv2_{percent:03}": MobileViTv2Config(percent / 100) for percent in range(50, 201, 25)}


class SeparableAttention(nn.Module):
    """One query channel scores the N tokens of a phase; the mean of their keys by score gates all values (paper, eq. 3).

    (B, d, P, N) -> (B, d, P, N)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(separable_attention(self.qkv_proj(x)))


class ConvFeedForward(nn.Module):
    """The same two layers on every token, twice as wide inside. (B, d, P, N) -> (B, d, P, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 2 * dim, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


def layer_norm_2d(dim: int) -> nn.GroupNorm:
    """Normalise all channels and tokens of an image together, not each token by itself; scale and shift by channel."""
    return nn.GroupNorm(1, dim)


class SeparableTransformerLayer(nn.Module):
    """Pre-norm transformer layer with separable attention, without positions. (B, d, P, N) -> (B, d, P, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1 = layer_norm_2d(dim)
        self.attn = SeparableAttention(dim)
        self.norm2 = layer_norm_2d(dim)
        self.mlp = ConvFeedForward(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MobileViTv2Block(nn.Module):
    """A depthwise 3x3 shows every pixel its neighbours, separable attention then all pixels of its own phase.

    (B, C, H, W) -> (B, C, H, W); where `odd_maps` is "resize", odd sizes become even.
    """

    patch_size = (2, 2)

    def __init__(self, channels: int, dim: int, depth: int, *, odd_maps: OddMaps = "resize") -> None:
        super().__init__()
        self.odd_maps = odd_maps
        self.conv_kxk = ConvNormAct(channels, channels, 3, groups=channels)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(SeparableTransformerLayer(dim) for _ in range(depth)))
        self.norm = layer_norm_2d(dim)
        self.conv_proj = ConvNormAct(dim, channels, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        odd_rows, odd_columns = height % 2, width % 2
        if self.odd_maps == "resize" and (odd_rows or odd_columns):
            x = F.interpolate(x, (height + odd_rows, width + odd_columns), mode="bilinear", align_corners=True)

        x = self.conv_1x1(self.conv_kxk(x))
        if self.odd_maps == "drop" and (odd_rows or odd_columns):
            if min(height, width) == 1:
                raise ValueError(f"MobileViTv2Block: odd_maps='drop' leaves nothing of a map of {height} x {width}")
            y = self.global_representation(x[:, :, : height - odd_rows, : width - odd_columns])
            x = F.pad(y, (0, odd_columns, 0, odd_rows))
        else:
            x = self.global_representation(x)
        return self.conv_proj(x)

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        """Unfold, transformer, fold. (B, d, H, W) -> (B, d, H, W) with H and W even."""
        patches = unfold_patches(x, self.patch_size)
        patches = self.norm(self.transformer(patches))
        return fold_patches(patches, (x.shape[2], x.shape[3]), self.patch_size)


class MobileViTv2(HybridNetwork):
    """MobileViTv2 for classification, or as the backbone of another task."""

    def __init__(self, config: MobileViTv2Config, *, num_classes: int = 1000, features_only: bool = False) -> None:
        sizes = zip(config.channels[2:], config.dims, config.layer_counts, strict=True)
        super().__init__(
            in_chans=config.in_chans,
            stem_channels=config.stem_channels,
            channels=config.channels,
            blocks=config.block_counts,
            expand_ratio=2,
            transformer_blocks=[MobileViTv2Block(channels, dim, depth, odd_maps=config.odd_maps) for channels, dim, depth in sizes],
            final_channels=None,
            num_classes=num_classes,
            drop_rate=config.drop_rate,
            features_only=features_only,
        )
        self.config = config
