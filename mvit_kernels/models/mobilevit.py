"""MobileViT (v1), arXiv 2110.02178: convolutions for what is near, transformers over each pixel phase for what is far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels.messages import shown
from mvit_kernels.reference import fold_patches, unfold_patches

from .layers import ConvNormAct
from .network import HybridNetwork, check_numbers, check_sizes


@dataclass(frozen=True)
class MobileViTConfig:
    """What makes one MobileViT differ from another (paper, table 4); `HybridNetwork` says how the stages are built."""

    channels: tuple[int, int, int, int, int]  # of the maps, stages 1 to 5
    dims: tuple[int, int, int]  # width of the transformers, stages 3 to 5
    final_channels: int | None  # of the last 1x1 convolution, which dense-prediction backbones go without (None)
    expand_ratio: float  # of the inverted residuals
    proj_drop_rate: float  # dropout on the branches of the transformers
    drop_rate: float = 0.1  # dropout before the classifier
    blocks: tuple[int, int] = (1, 3)  # inverted residuals, stages 1 and 2
    depths: tuple[int, int, int] = (2, 4, 3)  # transformer layers, stages 3 to 5
    patch_sizes: tuple[int, int, int] = (2, 2, 2)  # stages 3 to 5
    num_heads: int = 4
    stem_channels: int = 16
    in_chans: int = 3

    def __post_init__(self) -> None:
        check_sizes(self, channels=5, dims=3, blocks=2, depths=3, patch_sizes=3)
        last = () if self.final_channels is None else ("final_channels",)
        check_numbers(self, positive=("num_heads", "stem_channels", "in_chans", *last), rates=("proj_drop_rate", "drop_rate"))
        if not isinstance(self.expand_ratio, int | float) or not 0 < self.expand_ratio < math.inf:
            raise ValueError(f"MobileViTConfig: expected expand_ratio > 0 and finite, got {shown(self.expand_ratio)}")
        if any(dim % self.num_heads for dim in self.dims):
            raise ValueError(f"MobileViTConfig: expected dims to be multiples of {self.num_heads} heads, got {self.dims}")


VARIANTS = {
    "mobilevit_xxs": MobileViTConfig(
        channels=(16, 24, 48, 64, 80), dims=(64, 80, 96), final_channels=320, expand_ratio=2, proj_drop_rate=0.05
    ),
    "mobilevit_xs": MobileViTConfig(
        channels=(32, 48, 64, 80, 96), dims=(96, 120, 144), final_channels=384, expand_ratio=4, proj_drop_rate=0.1
    ),
    "mobilevit_s": MobileViTConfig(
        channels=(32, 64, 96, 128, 160), dims=(144, 192, 240), final_channels=640, expand_ratio=4, proj_drop_rate=0.1
    ),
}


class MultiHeadAttention(nn.Module):
    """Softmax attention of each token over the N tokens of its sequence. (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        # Rows of qkv: all heads of q, then of k, then of v.
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(batch, length, dim))


class FeedForward(nn.Module):
    """The same two layers on every token, twice as wide inside. (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer, without positions. (B, N, d) -> (B, N, d)."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MultiHeadAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class MobileViTBlock(nn.Module):
    """A 3x3 shows every pixel its neighbours, a transformer then all pixels of its own phase (paper, section 3.1, figure 1b).

    (B, C, H, W) -> (B, C, H, W). A map that doesn't divide into patches is resized up for the transformer and back.
    """

    def __init__(self, channels: int, dim: int, depth: int, *, num_heads: int = 4, patch_size: int = 2, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.conv_kxk = ConvNormAct(channels, channels, 3)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(*(TransformerLayer(dim, num_heads, drop_rate) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = ConvNormAct(dim, channels)
        self.conv_fusion = ConvNormAct(2 * channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_1x1(self.conv_kxk(x))
        y = self.conv_proj(self.global_representation(y))
        return self.conv_fusion(torch.cat((x, y), dim=1))

    def global_representation(self, x: torch.Tensor) -> torch.Tensor:
        """Unfold, transformer, fold. (B, d, H, W) -> (B, d, H, W)."""
        size = x.shape[2], x.shape[3]
        whole = _round_up(size[0], self.patch_size[0]), _round_up(size[1], self.patch_size[1])
        if whole != size:
            x = F.interpolate(x, whole, mode="bilinear", align_corners=False)

        patches = unfold_patches(x, self.patch_size)
        batch, dim, phases, length = patches.shape
        tokens = patches.permute(0, 2, 3, 1).reshape(batch * phases, length, dim)
        tokens = self.norm(self.transformer(tokens))
        patches = tokens.reshape(batch, phases, length, dim).permute(0, 3, 1, 2)
        x = fold_patches(patches, whole, self.patch_size)

        if whole != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x


class MobileViT(HybridNetwork):
    """MobileViT for classification, or as the backbone of another task."""

    def __init__(self, config: MobileViTConfig, *, num_classes: int = 1000, features_only: bool = False) -> None:
        sizes = zip(config.channels[2:], config.dims, config.depths, config.patch_sizes, strict=True)
        super().__init__(
            in_chans=config.in_chans,
            stem_channels=config.stem_channels,
            channels=config.channels,
            blocks=config.blocks,
            expand_ratio=config.expand_ratio,
            transformer_blocks=[
                MobileViTBlock(
                    channels,
                    dim,
                    depth,
                    num_heads=config.num_heads,
                    patch_size=patch_size,
                    drop_rate=config.proj_drop_rate,
                )
                for channels, dim, depth, patch_size in sizes
            ],
            final_channels=config.final_channels,
            num_classes=num_classes,
            drop_rate=config.drop_rate,
            features_only=features_only,
        )
        self.config = config


def _round_up(size: int, patch: int) -> int:
    return math.ceil(size / patch) * patch
