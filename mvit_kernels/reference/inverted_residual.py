"""Inverted residual (MobileNetV2, arXiv 1801.04381, figure 3) with folded norms: 1x1 and SiLU, depthwise 3x3 and SiLU, 1x1."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .activation import activate
from .conv2d import conv2d, conv2d_backward
from .depthwise_conv2d import depthwise_conv2d, depthwise_conv2d_backward

Tensor = torch.Tensor


def inverted_residual(
    x: Tensor, expand_w: Tensor | None, expand_b: Tensor | None, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor,
    reduce_b: Tensor | None, *, stride: int = 1, residual: bool = False, activation: str = "silu",
) -> Tensor:  # fmt: skip
    """x: (B, C, H, W); expand_w (E, C, 1, 1), or None where there is no expansion; depthwise_w (E, 1, 3, 3), reduce_w (O, E, 1, 1); zero
    padding 1 around the expanded map."""
    hidden = x if expand_w is None else activate(F.conv2d(x, expand_w, expand_b), activation)
    hidden = activate(F.conv2d(hidden, depthwise_w, depthwise_b, stride=stride, padding=1, groups=hidden.shape[1]), activation)
    y = F.conv2d(hidden, reduce_w, reduce_b)
    return x + y if residual else y


def inverted_residual_backward(
    dy: Tensor, x: Tensor, expand_w: Tensor | None, expand_b: Tensor | None, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor,
    *, stride: int = 1, residual: bool = False, activation: str = "silu",
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients with respect to x, expand_w, expand_b (empty without an expansion), depthwise_w, depthwise_b, reduce_w and reduce_b."""
    expanded = x if expand_w is None else conv2d(x, expand_w, expand_b, activation=activation)
    filtered = depthwise_conv2d(expanded, depthwise_w, depthwise_b, stride, activation)
    dfiltered, dreduce_w, dreduce_b, _ = conv2d_backward(dy, filtered, reduce_w)
    dx, *ddepthwise = depthwise_conv2d_backward(dfiltered, expanded, depthwise_w, depthwise_b, stride, activation)
    dexpand_w, dexpand_b = x.new_empty(0), x.new_empty(0)
    if expand_w is not None:
        dx, dexpand_w, dexpand_b, _ = conv2d_backward(dx, x, expand_w, expand_b, activation=activation)
    return dx + dy if residual else dx, dexpand_w, dexpand_b, *ddepthwise, dreduce_w, dreduce_b


def inverted_residual_tiled(
    x: Tensor, expand_w: Tensor, expand_b: Tensor, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Tensor,
    *, stride: int = 1, residual: bool = False, tile_rows: int = 4,
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
