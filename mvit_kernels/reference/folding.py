"""Rewrites of weights that leave a network's function unchanged in real arithmetic; tests prove each in float64.

Weights are matrices (out, in) or convolutions (out, in, kh, kw); None stands for a zero bias.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_zeros(weight.shape[0]) if bias is None else bias


def _along(vector: Tensor, weight: Tensor, axis: int) -> Tensor:
    return vector.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """BatchNorm(conv(x)) as one convolution: w' = w gamma / sqrt(variance + eps), b' = (b - mean) gamma / sqrt(variance + eps) + beta."""
    scale = gamma * torch.rsqrt(variance + eps)
    return weight * _along(scale, weight, 0), (_bias(weight, bias) - mean) * scale + beta


def fold_norm_affine(weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """linear(gamma * x + beta) as one linear map of x, with gamma and beta a value a channel (LayerNorm, GroupNorm): w' = w diag(gamma),
    b' = b + w beta. For matrices and 1x1 convolutions: zero padding of a larger kernel would not see beta."""
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        raise ValueError(f"fold_norm_affine: weight: expected a matrix or a 1x1 convolution, got shape {tuple(weight.shape)}")
    return weight * _along(gamma, weight, 1), _bias(weight, bias) + weight.flatten(1) @ beta


def merge_linear(first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """second(first(x)) as one linear map, for matrices or 1x1 convolutions with nothing between: w = w2 w1, b = w2 b1 + b2."""
    matrix = second.flatten(1) @ first.flatten(1)
    bias = second.flatten(1) @ _bias(first, first_bias) + _bias(second, second_bias)
    return matrix.reshape(matrix.shape + second.shape[2:]), bias
