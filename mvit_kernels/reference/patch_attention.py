"""Multi-head softmax attention inside each pixel phase (MobileViT, arXiv 2110.02178, section 3.1), in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .patches import fold_patches, unfold_patches


def default_scale(dim: int, heads: int) -> float:
    """c^-0.5 of heads of c = dim / heads channels."""
    return (max(dim, heads) // heads) ** -0.5


def patch_attention(
    qkv: torch.Tensor, heads: int, patch_size: tuple[int, int] = (2, 2), scale: float | None = None,
    softmax: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """y[n] = sum_m softmax_m(scale q[n].k[m]) v[m] among the N pixels of a phase, in each of `heads` heads of c = d / heads channels.

    qkv: (B, 3d, H, W), channels in the order q (d), k (d), v (d); returns (B, d, H, W). `scale` None is c^-0.5. softmax: what is in its
    place, of scores (..., N).
    """
    query, key, value = _heads(qkv, heads, patch_size, 3)
    return _fold(_weights(query, key, _scale(qkv, heads, scale), softmax) @ value, qkv, patch_size)


def patch_attention_fused(qkv: torch.Tensor, heads: int, patch_size: tuple[int, int] = (2, 2), scale: float | None = None) -> torch.Tensor:
    """The same by `scaled_dot_product_attention`, which is faster and has neither second derivatives nor forward-mode ones."""
    query, key, value = _heads(qkv, heads, patch_size, 3)
    return _fold(F.scaled_dot_product_attention(query, key, value, scale=_scale(qkv, heads, scale)), qkv, patch_size)


def patch_attention_backward(
    dy: torch.Tensor, qkv: torch.Tensor, heads: int, patch_size: tuple[int, int] = (2, 2), scale: float | None = None
) -> torch.Tensor:
    """The gradient of `patch_attention` with respect to qkv; dy has the shape of its result.

    With p = softmax(scale q k^T) and ds = p (dy v^T - sum_m p dy v^T):  dq = scale ds k;  dk = scale ds^T q;  dv = p^T dy.
    """
    query, key, value = _heads(qkv, heads, patch_size, 3)
    (grad,) = _heads(dy, heads, patch_size, 1)
    factor = _scale(qkv, heads, scale)
    weights = _weights(query, key, factor)
    dweights = grad @ value.mT
    dscores = weights * (dweights - (weights * dweights).sum(dim=-1, keepdim=True)) * factor
    parts = (dscores @ key, dscores.mT @ query, weights.mT @ grad)
    return torch.cat([_fold(part, qkv, patch_size) for part in parts], dim=1)


def _scale(qkv: torch.Tensor, heads: int, scale: float | None) -> float:
    return default_scale(qkv.shape[1] // 3, heads) if scale is None else scale


def _weights(
    query: torch.Tensor, key: torch.Tensor, scale: float, softmax: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:  # fmt: skip
    scores = query * scale @ key.mT
    return scores.softmax(dim=-1) if softmax is None else softmax(scores)


def _heads(x: torch.Tensor, heads: int, patch_size: tuple[int, int], parts: int) -> tuple[torch.Tensor, ...]:
    """(B, parts d, H, W) -> `parts` tensors (B, P heads, N, c)."""
    patches = unfold_patches(x, patch_size)
    batch, channels, phases, length = patches.shape
    split = patches.reshape(batch, parts, heads, channels // (parts * heads), phases, length).permute(1, 0, 4, 2, 5, 3)
    return split.reshape(parts, batch, phases * heads, length, channels // (parts * heads)).unbind(0)


def _fold(y: torch.Tensor, qkv: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """(B, P heads, N, c) -> (B, d, H, W) of the map qkv."""
    height, width = qkv.shape[2:]
    phases = patch_size[0] * patch_size[1]
    batch, both, length, depth = y.shape
    split = y.reshape(batch, phases, both // phases, length, depth).permute(0, 2, 4, 1, 3)
    patches = split.reshape(batch, both // phases * depth, phases, length)
    return fold_patches(patches, (height, width), patch_size)
