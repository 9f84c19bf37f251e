"""The feed-forward half of a transformer layer of MobileViT (v1 and v2), in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .activation import activate, activate_backward
from .gemm import layer_norm_rows_backward
from .group_norm import group_norm, group_norm_backward
from .pointwise import pointwise, pointwise_backward

Tensor = torch.Tensor
Norm = tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of each position of a map (B, C, H, W) over its channels."""
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps).permute(0, 3, 1, 2)


def channel_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `channel_norm` with respect to x, weight and bias. residual: what is added to that of x."""
    rows_dy, rows_x = dy.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    normal = F.layer_norm(rows_x, weight.shape, eps=eps)
    dx = layer_norm_rows_backward(rows_dy * weight, rows_x, eps).permute(0, 3, 1, 2)
    return dx if residual is None else dx + residual, (rows_dy * normal).sum((0, 1, 2)), rows_dy.sum((0, 1, 2))


NORMS: dict[str, Norm] = {"group": (group_norm, group_norm_backward), "layer": (channel_norm, channel_norm_backward)}


def feed_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, eps: float = 1e-5,
    *, norm: str = "group", activation: str = "silu",
) -> Tensor:  # fmt: skip
    """x + fc2(act(fc1(norm(x)))). x: (B, d, H, W) or (B, d, P, N); fc1_w (h, d), fc2_w (d, h), or with 1x1 axes.

    norm: "group", over a whole image (MobileViTv2), or "layer", over the channels of each position (MobileViT).
    """
    normal = NORMS[norm][0](x, norm_w, norm_b, eps)
    return x + pointwise(activate(pointwise(normal, fc1_w, fc1_b), activation), fc2_w, fc2_b)


def feed_forward_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, eps: float = 1e-5,
    *, norm: str = "group", activation: str = "silu", steps: Norm | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of `feed_forward` with respect to x and its six parameters, in their order. steps: the norm and its gradient, of a
    backend."""
    normalize, norm_backward = steps or NORMS[norm]
    normal = normalize(x, norm_w, norm_b, eps)
    before = pointwise(normal, fc1_w, fc1_b)
    dhidden, dfc2_w, dfc2_b = pointwise_backward(dy, activate(before, activation), fc2_w)
    dnormal, dfc1_w, dfc1_b = pointwise_backward(activate_backward(dhidden, before, activation), normal, fc1_w)
    dx, dnorm_w, dnorm_b = norm_backward(dnormal, x, norm_w, eps, residual=dy)
    return dx, dnorm_w, dnorm_b, dfc1_w, dfc1_b, dfc2_w, dfc2_b
