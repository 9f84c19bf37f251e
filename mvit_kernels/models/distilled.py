"""What EfficientFormer V1 and V2 share: their skeleton, the classifier of two heads, and small layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .network import FeatureInfo, check_classes


class LayerScale(nn.Module):
    """A learned factor for each channel of `axis`, small at first, so that a deep network starts near the identity."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-5))
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.gamma.view(shape)


class DropPath(nn.Module):
    """In training, zero for some images of the batch, by chance, and larger for the others (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], *[1] * (x.ndim - 1)), self.rate)


class PositionBias(nn.Module):
    """What attention adds to the score of a query and a key: one learned number for each head and each distance.

    Queries are the pixels of a map of side x side, or every `stride`-th row and column of them; keys are all its pixels. A
    distance is the absolute difference in rows and that in columns.
    """

    attention_bias_idxs: torch.Tensor

    def __init__(self, heads: int, side: int, stride: int = 1, *, persistent: bool) -> None:
        super().__init__()
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))
        self.register_buffer("attention_bias_idxs", _distances(side, stride), persistent=persistent)

    def position_bias(self) -> torch.Tensor:
        """(heads, queries, keys)"""
        return self.attention_biases[:, self.attention_bias_idxs]


def _distances(side: int, stride: int) -> torch.Tensor:
    """For each query and key, where their distance stands in the table."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    keys = torch.stack((rows, columns))
    queries = keys[:, ::stride, ::stride]
    apart = (queries.flatten(1)[:, :, None] - keys.flatten(1)[:, None, :]).abs()
    return apart[0] * side + apart[1]


class DistilledNetwork(nn.Module):
    """Images (B, in_chans, H, W), normalised by mean and deviation of ImageNet -> logits (B, num_classes).

    `num_classes=0` gives the pooled features (B, C) instead; `features_only=True` the list of the four maps that
    `feature_info` describes, and there is no head.

    Two heads were trained, one on labels and one on a teacher's answers. The logits are their mean; where
    `distilled_training` is set, as timm calls it, training gets both, as a pair.

    The positions that attention tells apart are those of one size: height and width must be at most `image_size`, and so
    near that the last map comes out as large.
    """

    distilled_training = False

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        norm: nn.Module,
        channels: Sequence[int],
        in_chans: int,
        image_size: int,
        coarsest: int,
        num_classes: int,
        drop_rate: float,
        features_only: bool,
    ) -> None:
        """coarsest: the reduction of the last map that attention sees; image sides are told apart by theirs."""
        super().__init__()
        check_classes(self, num_classes)
        self.in_chans = in_chans
        self.smallest_size = (math.ceil(image_size / coarsest) - 1) * coarsest + 1
        self.largest_size = math.ceil(image_size / coarsest) * coarsest
        self.features_only = features_only
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        if not features_only:
            self.norm = norm
            self.head_drop = nn.Dropout(drop_rate)
            self.head = nn.Linear(channels[-1], num_classes) if num_classes else nn.Identity()
            self.head_dist = nn.Linear(channels[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info = FeatureInfo(tuple(channels), (4, 8, 16, 32))
        self.apply(_init_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor] | list[torch.Tensor]:
        sizes = range(self.smallest_size, self.largest_size + 1)
        if x.ndim != 4 or x.shape[1] != self.in_chans or x.shape[2] not in sizes or x.shape[3] not in sizes:
            raise ValueError(
                f"{type(self).__name__}: expected images (B, {self.in_chans}, H, W) with H and W from {sizes[0]} to {sizes[-1]},"
                f" got {tuple(x.shape)}; image_size= makes a model for others"
            )
        features = self.forward_features(x)
        if self.features_only:
            return features
        pooled = self.head_drop(self.pool(features[-1]))
        logits, distilled = self.head(pooled), self.head_dist(pooled)
        if self.distilled_training and self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward_features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The four maps of the pyramid, finest first."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Norm and mean of the last map. (B, C, H, W) -> (B, C)."""
        return self.norm(x).mean(dim=(2, 3))


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Of each block of each stage: from 0 in the first of the network to `rate` in the last, evenly."""
    steps = max(sum(depths) - 1, 1)
    rates = iter([rate * step / steps for step in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _init_weights(module: nn.Module) -> None:
    # Convolutions keep torch's start: BatchNorm follows each.
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
