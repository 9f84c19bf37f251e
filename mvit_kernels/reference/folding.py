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


def split_input(weight: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The two halves of a weight on concatenated inputs: conv(cat(x, y), w) = conv(x, w1) + conv(y, w2), x having `channels` channels."""
    return weight[:, :channels], weight[:, channels:]


def move_value_bias(qkv_bias: Tensor, out_weight: Tensor, out_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention (v1) without its key and value biases: (qkv bias, out bias) with the same result.

    The key bias adds q . b_k to every score of a row and cancels in the softmax. The rows of the softmax sum to 1, so the value bias passes
    through unchanged: out_bias + W_o b_v.
    """
    query, key, value = qkv_bias.chunk(3)
    return torch.cat([query, torch.zeros_like(key), torch.zeros_like(value)]), out_bias + out_weight @ value


def combine_statistics(count: Tensor, mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, sum of squared deviations) of parts, along axis 0, into those of the whole, one after another in the order given.

    Chan, Golub, LeVeque 1983, equation 2.1: with delta = mean_b - mean_a and n = n_a + n_b, mean = mean_a + delta n_b / n and
    m2 = m2_a + m2_b + delta^2 n_a n_b / n. Nothing cancels, whatever mean / sigma is; a fixed order makes the result the same bits always.
    """
    total, centre, spread = count[0], mean[0], m2[0]
    for n, mu, part in zip(count[1:], mean[1:], m2[1:], strict=True):
        delta, whole = mu - centre, total + n
        centre = centre + delta * n / whole
        spread = spread + part + delta * delta * total * n / whole
        total = whole
    return total, centre, spread
