"""Inverted residual (MobileNetV2, arXiv 1801.04381, figure 3) with folded norms: 1x1 and SiLU, depthwise 3x3 and SiLU, 1x1."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def inverted_residual(
    x: Tensor, expand_w: Tensor, expand_b: Tensor, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Tensor,
    stride: int = 1, residual: bool = False,
) -> Tensor:  # fmt: skip
    """x: (B, C, H, W); expand_w (E, C, 1, 1), depthwise_w (E, 1, 3, 3), reduce_w (O, E, 1, 1); zero padding 1 around the expanded map."""
    hidden = F.silu(F.conv2d(x, expand_w, expand_b))
    hidden = F.silu(F.conv2d(hidden, depthwise_w, depthwise_b, stride=stride, padding=1, groups=hidden.shape[1]))
    y = F.conv2d(hidden, reduce_w, reduce_b)
    return x + y if residual else y


def inverted_residual_tiled(
    x: Tensor, expand_w: Tensor, expand_b: Tensor, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Tensor,
    stride: int = 1, residual: bool = False, *, tile_rows: int = 4,
) -> Tensor:  # fmt: skip
    """The same, `tile_rows` output rows at a time: of the expanded map only stride * (tile_rows - 1) + 3 rows ever exist.

    Padding is zeros of the *expanded* map, not the expansion of zeros (which the bias makes SiLU(bias)).
    """
    height = x.shape[2]
    out_height = (height - 1) // stride + 1
    tiles = []
    for top in range(0, out_height, tile_rows):
        rows = min(tile_rows, out_height - top)
        first, last = top * stride - 1, (top + rows - 1) * stride + 2  # input rows [first, last) feed this tile
        inside = x[:, :, max(first, 0) : min(last, height)]
        hidden = F.silu(F.conv2d(inside, expand_w, expand_b))
        hidden = F.pad(hidden, (1, 1, max(-first, 0), max(last - height, 0)))
        hidden = F.silu(F.conv2d(hidden, depthwise_w, depthwise_b, stride=stride, groups=hidden.shape[1]))
        tiles.append(F.conv2d(hidden, reduce_w, reduce_b))
    y = torch.cat(tiles, dim=2)
    return x + y if residual else y
