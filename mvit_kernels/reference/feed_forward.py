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
NormBackward = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of each position of a map (B, C, H, W) over its channels."""
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps).permute(0, 3, 1, 2)


def channel_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `channel_norm` with respect to x, weight and bias."""
    rows_dy, rows_x = dy.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    normal = F.layer_norm(rows_x, weight.shape, eps=eps)
    dx = layer_norm_rows_backward(rows_dy * weight, rows_x, eps)
    return dx.permute(0, 3, 1, 2), (rows_dy * normal).sum((0, 1, 2)), rows_dy.sum((0, 1, 2))


def feed_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, fc2_b: Tensor, eps: float = 1e-5,
    *, norm: str = "group", activation: str = "silu",
) -> Tensor:  # fmt: skip
    """x + fc2(act(fc1(norm(x)))). x: (B, d, H, W) or (B, d, P, N); fc1_w (h, d), fc2_w (d, h), or with 1x1 axes.

    norm: "group", over a whole image (MobileViTv2), or "layer", over the channels of each position (MobileViT).
    """
    normal = (group_norm if norm == "group" else channel_norm)(x, norm_w, norm_b, eps)
    return x + pointwise(activate(pointwise(normal, fc1_w, fc1_b), activation), fc2_w, fc2_b)


def feed_forward_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, fc1_w: Tensor, fc1_b: Tensor, fc2_w: Tensor, eps: float = 1e-5,
    *, norm: str = "group", activation: str = "silu", norm_backward: NormBackward | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of `feed_forward` with respect to x and its six parameters, in their order. That of the norm may be a backend's."""
    normal = (group_norm if norm == "group" else channel_norm)(x, norm_w, norm_b, eps)
    before = pointwise(normal, fc1_w, fc1_b)
    dhidden, dfc2_w, dfc2_b = pointwise_backward(dy, activate(before, activation), fc2_w)
    dnormal, dfc1_w, dfc1_b = pointwise_backward(activate_backward(dhidden, before, activation), normal, fc1_w)
    norm_backward = norm_backward or (group_norm_backward if norm == "group" else channel_norm_backward)
    dx, dnorm_w, dnorm_b = norm_backward(dnormal, x, norm_w, eps)
    return dx + dy, dnorm_w, dnorm_b, dfc1_w, dfc1_b, dfc2_w, dfc2_b
