"""Separable self-attention (MobileViTv2, arXiv 2206.02680, section 3 and equation 3), in plain torch."""

from __future__ import annotations

import torch

from .patches import fold_patches, unfold_patches


def separable_attention(qkv: torch.Tensor, patch_size: tuple[int, int] | None = None) -> torch.Tensor:
    """y[:, c, p, n] = relu(v[:, c, p, n]) * sum_m softmax_m(q[:, p, m]) * k[:, c, p, m].

    qkv: (B, 1 + 2d, P, N), channels in the order q (1), k (d), v (d); returns (B, d, P, N).
    With `patch_size` (ph, pw), qkv is a map (B, 1 + 2d, H, W) and so is the result (B, d, H, W): attention stays inside each pixel phase.
    """
    if patch_size is not None:
        height, width = qkv.shape[2:]
        return fold_patches(separable_attention(unfold_patches(qkv, patch_size)), (height, width), patch_size)
    dim = (qkv.shape[1] - 1) // 2
    query, key, value = qkv.split([1, dim, dim], dim=1)
    context = (query.softmax(dim=-1) * key).sum(dim=-1, keepdim=True)
    return value.relu() * context


def separable_attention_backward(dy: torch.Tensor, qkv: torch.Tensor, patch_size: tuple[int, int] | None = None) -> torch.Tensor:
    """The gradient of `separable_attention` with respect to qkv; dy has the shape of its result.

    dv = dy context where v > 0;  dk = s dcontext with dcontext = sum_n dy relu(v);  dq = s (ds - sum_n s ds) with ds = sum_c dcontext k.
    """
    if patch_size is not None:
        height, width = qkv.shape[2:]
        flat = separable_attention_backward(unfold_patches(dy, patch_size), unfold_patches(qkv, patch_size))
        return fold_patches(flat, (height, width), patch_size)
    dim = (qkv.shape[1] - 1) // 2
    query, key, value = qkv.split([1, dim, dim], dim=1)
    scores = query.softmax(dim=-1)
    context = (scores * key).sum(dim=-1, keepdim=True)
    dcontext = (dy * value.relu()).sum(dim=-1, keepdim=True)
    dscores = (dcontext * key).sum(dim=1, keepdim=True)
    dquery = scores * (dscores - (scores * dscores).sum(dim=-1, keepdim=True))
    dvalue = (dy * context).masked_fill(value <= 0, 0)
    return torch.cat([dquery, scores * dcontext, dvalue], dim=1)
