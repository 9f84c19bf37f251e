"""The skeleton that MobileViT v1 and v2 share: stem, five stages, and a classifier or a pyramid of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import nn

from mvit_kernels.messages import shown

from .layers import ClassifierHead, ConvNormAct, InvertedResidual


class FeatureInfo(NamedTuple):
    """Of each level of the feature pyramid: its channels, and the side in input pixels of one of its pixels."""

    channels: tuple[int, ...]
    reductions: tuple[int, ...]


class HybridNetwork(nn.Module):
    """Images (B, in_chans, H, W) in [0, 1] -> logits (B, num_classes).

    `num_classes=0` gives the pooled features (B, C) instead; `features_only=True` the list of the five maps that
    `feature_info` describes, and there is no head. A classifier calls `stages` as one module, and not `forward_features`.

    The stem halves the image. Stages 1 and 2 are inverted residuals, as many as `blocks` says. Stages 3 to 5 are one
    inverted residual and one of the `transformer_blocks`, which keep the number of channels. Stages 2 to 5 each halve the
    map. A last 1x1 convolution widens it to `final_channels`, unless that is None.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        stem_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        expand_ratio: float,
        transformer_blocks: Sequence[nn.Module],
        final_channels: int | None,
        num_classes: int,
        drop_rate: float,
        features_only: bool,
    ) -> None:
        super().__init__()
        check_classes(self, num_classes)
        self.stem = ConvNormAct(in_chans, stem_channels, 3, stride=2)

        stages = []
        stage_in = stem_channels
        for stage_out, stride, count in zip(channels, (1, 2, 2, 2, 2), (*blocks, 1, 1, 1), strict=True):
            first = InvertedResidual(stage_in, stage_out, stride=stride, expand_ratio=expand_ratio)
            rest = (InvertedResidual(stage_out, stage_out, stride=1, expand_ratio=expand_ratio) for _ in range(count - 1))
            stages.append(nn.Sequential(first, *rest))
            stage_in = stage_out
        for stage, block in zip(stages[2:], transformer_blocks, strict=True):
            stage.append(block)
        self.stages = nn.Sequential(*stages)

        self.final_conv = ConvNormAct(channels[-1], final_channels) if final_channels else nn.Identity()
        num_features = final_channels or channels[-1]
        self.head = None if features_only else ClassifierHead(num_features, num_classes, drop_rate)
        self.feature_info = FeatureInfo((*channels[:-1], num_features), (2, 4, 8, 16, 32))
        self.apply(_init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        in_chans = self.stem.conv.in_channels
        if x.ndim != 4 or x.shape[1] != in_chans:
            raise ValueError(f"{type(self).__name__}: expected images (B, {in_chans}, H, W), got {tuple(x.shape)}")
        if self.head is None:
            return self.forward_features(x)
        return self.head(self.final_conv(self.stages(self.stem(x))))

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The five maps of the pyramid, finest first."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        features[-1] = self.final_conv(x)
        return features


def check_sizes(config: object, **lengths: int) -> None:
    """Raise ValueError unless each named field of `config` holds that many positive integers."""
    for name, length in lengths.items():
        value = getattr(config, name)
        if not isinstance(value, tuple | list) or len(value) != length or not all(isinstance(v, int) and v > 0 for v in value):
            kind = type(config).__name__
            raise ValueError(f"{kind}: expected {name} to be {length} positive integers, got {shown(value)}")


def check_numbers(config: object, *, positive: Sequence[str], rates: Sequence[str]) -> None:
    """Raise ValueError unless the first fields are positive integers, and the others chances."""
    kind = type(config).__name__
    for name in positive:
        if not isinstance(value := getattr(config, name), Integral) or value < 1:
            raise ValueError(f"{kind}: expected {name} to be a positive integer, got {shown(value)}")
    for name in rates:
        if not isinstance(value := getattr(config, name), Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"{kind}: expected {name} to be from 0 to 1, got {shown(value)}")


def check_classes(network: nn.Module, num_classes: int) -> None:
    """Raise ValueError for what is no number of classes."""
    if not isinstance(num_classes, Integral) or num_classes < 0:
        raise ValueError(f"{type(network).__name__}: expected num_classes >= 0, got {shown(num_classes)}")


def _init_weights(module: nn.Module) -> None:
    # BatchNorm, LayerNorm and GroupNorm already start as the identity.
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
