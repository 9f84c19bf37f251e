"""The attention half of a MobileViTv2 layer, x + W_o attention(W_qkv GroupNorm(1)(x)), in two forms that are equal in real arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .group_norm import group_norm, group_norm_backward
from .patches import fold_patches, unfold_patches
from .pointwise import pointwise, pointwise_backward
from .separable_attention import separable_attention, separable_attention_backward

Tensor = torch.Tensor


def separable_attention_block(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, eps: float = 1e-5,
    *, patch_size: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """The definition. x: (B, d, P, N), or a map (B, d, H, W) with patch_size; qkv_w (1 + 2d, d) and out_w (d, d), or with 1x1 axes."""
    qkv = pointwise(group_norm(x, norm_w, norm_b, eps), qkv_w, qkv_b)
    return x + pointwise(separable_attention(qkv, patch_size), out_w, out_b)


def separable_attention_block_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, eps: float = 1e-5,
    *, patch_size: tuple[int, int] | None = None,
    group_norm: Callable[..., Tensor] = group_norm, group_norm_backward: Callable[..., tuple[Tensor, ...]] = group_norm_backward,
    attention: Callable[..., Tensor] = separable_attention, attention_backward: Callable[..., Tensor] = separable_attention_backward,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients with respect to x and its six parameters, in their order. Its four steps may be those of a backend."""
    normal = group_norm(x, norm_w, norm_b, eps)
    qkv = pointwise(normal, qkv_w, qkv_b)
    dattention, dout_w, dout_b = pointwise_backward(dy, attention(qkv, patch_size), out_w)
    dnormal, dqkv_w, dqkv_b = pointwise_backward(attention_backward(dattention, qkv, patch_size), normal, qkv_w)
    dx, dnorm_w, dnorm_b = group_norm_backward(dnormal, x, norm_w, eps, residual=dy)
    return dx, dnorm_w, dnorm_b, dqkv_w, dqkv_b, dout_w, dout_b


def separable_attention_block_reduced(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, eps: float = 1e-5,
    *, patch_size: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """What kernels compute: no normalised copy of x, no K tensor, no query bias.

    With xc = (x - mean) / sigma (two numbers an image), W' = W diag(gamma) and b' = b + W beta:
    - scores: s = softmax_n(w_q' xc), since b_q' is the same for every n and cancels;
    - context: sum_n s_n (W_k' xc_n + b_k') = W_k' (sum_n s_n xc_n) + b_k', since the scores sum to 1: one vector instead of N;
    - y = relu(W_v' xc + b_v') * context.
    """
    if patch_size is not None:
        height, width = x.shape[2:]
        flat = separable_attention_block_reduced(
            unfold_patches(x, patch_size), norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, eps
        )  # fmt: skip
        return fold_patches(flat, (height, width), patch_size)
    dim = x.shape[1]
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    centred = (x - mean) * torch.rsqrt(variance + eps)
    weight = qkv_w.reshape(1 + 2 * dim, dim)
    bias = qkv_b + weight @ norm_b
    weight = weight * norm_w
    w_query, w_key, w_value = weight.split([1, dim, dim])
    _, b_key, b_value = bias.split([1, dim, dim])
    scores = torch.einsum("c,bcpn->bpn", w_query[0], centred).softmax(dim=-1)
    mixed = torch.einsum("bpn,bcpn->bcp", scores, centred)
    context = torch.einsum("oc,bcp->bop", w_key, mixed) + b_key[:, None]
    value = torch.einsum("oc,bcpn->bopn", w_value, centred) + b_value[:, None, None]
    return x + F.conv2d(value.relu() * context[..., None], out_w.reshape(dim, dim, 1, 1), out_b)
