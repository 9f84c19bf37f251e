"""Matrix product with norm, activation and residual, in plain torch."""

from __future__ import annotations

import torch

from .activation import activate, activate_backward
from .pointwise import weight_gradient

Tensor = torch.Tensor


def gemm(
    a: Tensor, weight: Tensor, bias: Tensor | None = None, second: Tensor | None = None, moments: Tensor | None = None,
    residual: Tensor | None = None, layer_norm: bool = False, eps: float = 1e-5, activation: str = "none",
) -> Tensor:  # fmt: skip
    """act(cat(norm(a), second) weight^T + bias) + residual.

    a (M, K), second (M, K2), weight (N, K + K2), bias (N,), residual (M, N). norm: (a - mean) / sqrt(variance + eps), with the mean and
    variance of each row (`layer_norm`), or of the group that the row is in: `moments` (G, 2) holds them for G groups of M / G rows.
    """
    y = activate(torch.nn.functional.linear(operand(a, second, moments, layer_norm, eps), weight, bias), activation)
    return y if residual is None else y + residual


def operand(a: Tensor, second: Tensor | None, moments: Tensor | None, layer_norm: bool, eps: float) -> Tensor:
    """The left operand of the product: a as it is, or normalised, with `second` beside it."""
    if layer_norm:
        a = torch.nn.functional.layer_norm(a, a.shape[1:], eps=eps)
    if moments is not None:
        mean, variance = (_of_rows(each, a)[:, None] for each in moments.unbind(1))
        a = ((a - mean) * torch.rsqrt(variance + eps)).to(a.dtype)
    return a if second is None else torch.cat([a, second], dim=1)


def _of_rows(values: Tensor, a: Tensor) -> Tensor:
    """A value of each group as one of each row of a, in float32 of 16-bit rows."""
    groups = values.shape[0]
    return values.to(torch.promote_types(a.dtype, torch.float32)).repeat_interleave(a.shape[0] // groups if groups else 0)


def moments_of(y: Tensor, groups: int) -> Tensor:
    """(G, 2) float64: mean and variance of each of `groups` groups of rows of y (M, N)."""
    variance, mean = torch.var_mean(y.double().reshape(_grouped(y, groups)), dim=1, correction=0)
    return torch.stack([mean, variance], dim=1)


def _grouped(y: Tensor, groups: int) -> tuple[int, int]:
    """The shape of y with a row for each of `groups` groups of its rows."""
    return groups, y.numel() // groups if groups else 0


def gemm_backward(
    dy: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None = None, second: Tensor | None = None, moments: Tensor | None = None,
    layer_norm: bool = False, eps: float = 1e-5, activation: str = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `gemm` with respect to a, weight, bias and second (empty without one); that of residual is dy. Moments are taken for
    those of a, and change with it."""
    depth = a.shape[1]
    if moments is not None:
        moments = moments_of(a, moments.shape[0])  # as functions of a, which a second derivative sees
    x = operand(a, second, moments, layer_norm, eps)
    if activation != "none":
        dy = activate_backward(dy, torch.nn.functional.linear(x, weight, bias), activation)
    dx = dy @ weight
    da, dsecond = dx[:, :depth], dx[:, depth:]
    if layer_norm:
        da = layer_norm_rows_backward(da, a, eps)
    elif moments is not None:
        whole = _grouped(a, moments.shape[0])
        da = layer_norm_rows_backward(da.reshape(whole), a.reshape(whole), eps).reshape(a.shape)
    return da, weight_gradient(dy, x), dy.sum(0), dsecond


def layer_norm_rows_backward(dy: Tensor, x: Tensor, eps: float) -> Tensor:
    """dx of (x - mean) / sigma along the last axis: (dy - mean(dy) - xhat mean(dy xhat)) / sigma. In float32 of 16-bit floats."""
    dtype = x.dtype
    dy, x = (each.to(torch.promote_types(dtype, torch.float32)) for each in (dy, x))
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    normal = (x - mean) * inverse
    return ((dy - dy.mean(-1, keepdim=True) - normal * (dy * normal).mean(-1, keepdim=True)) * inverse).to(dtype)
