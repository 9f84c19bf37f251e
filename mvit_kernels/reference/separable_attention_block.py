"""The attention half of a MobileViTv2 layer, x + W_o attention(W_qkv GroupNorm(1)(x)), in two forms that are equal in real arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .folding import fold_norm_affine
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


def separable_attention_block_reduced_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, eps: float = 1e-5,
    *, patch_size: tuple[int, int] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of `separable_attention_block` in the form of `separable_attention_block_reduced`, whose names these are: five products
    of maps, and no gradient of keys or of what the norm gives. With dg = W_o^T dy and dv = dg context where v > 0, of a phase:

    - dcontext = sum_n dg_n relu(v_n), and dmixed = W_k'^T dcontext: one vector instead of N;
    - ds_n = s_n dmixed (xc_n - mixed), since sum_n s_n xc_n = mixed;
    - dxc_n = W_v'^T dv_n + s_n dmixed + ds_n w_q'.

    The norm's gradient is (dxc - mean(dxc) - xc mean(xc dxc)) / sigma, with both means over an image. What has no need of dxc gives them:

    - sum_n dxc_n = W_v'^T sum_n dv_n + dmixed, since the s_n sum to 1 and the ds_n to 0;
    - sum_n xc_n dxc_n = (context dcontext - b_v' sum_n dv_n) + dmixed mixed + dmixed spread: of values, where dv_n W_v' xc_n is
      dv_n (v_n - b_v') and dv_n v_n is context dg_n relu(v_n); of mixed; of scores, with spread = sum_n s_n (w_q' xc_n) (xc_n - mixed).
    """
    if patch_size is not None:
        flat, *gradients = separable_attention_block_reduced_backward(
            unfold_patches(dy, patch_size), unfold_patches(x, patch_size), norm_w, norm_b, qkv_w, qkv_b, out_w, eps
        )  # fmt: skip
        return fold_patches(flat, (x.shape[2], x.shape[3]), patch_size), *gradients
    dim = x.shape[1]
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + eps)
    centred = (x - mean) * inverse
    matrix = qkv_w.reshape(1 + 2 * dim, dim)
    weight, bias = fold_norm_affine(matrix, qkv_b, norm_w, norm_b)
    w_query, w_key, w_value = weight.split([1, dim, dim])
    _, b_key, b_value = bias.split([1, dim, dim])
    queries = torch.einsum("c,bcpn->bpn", w_query[0], centred)
    scores = queries.softmax(dim=-1)
    mixed = torch.einsum("bpn,bcpn->bcp", scores, centred)
    spread = torch.einsum("bpn,bcpn->bcp", scores * (queries - (scores * queries).sum(-1, keepdim=True)), centred)
    context = torch.einsum("oc,bcp->bop", w_key, mixed) + b_key[:, None]
    value = pointwise(centred, w_value, b_value)
    positive = value.relu()

    dgated, dout_w, dout_b = pointwise_backward(dy, positive * context[..., None], out_w)
    dvalue = (dgated * context[..., None]).masked_fill(value <= 0, 0)
    dcontext = (dgated * positive).sum(-1)
    dmixed = torch.einsum("oc,bop->bcp", w_key, dcontext)
    dscores = scores * torch.einsum("bcp,bcpn->bpn", dmixed, centred - mixed[..., None])
    dcentred, dw_value, db_value = pointwise_backward(dvalue, centred, w_value)
    dcentred = dcentred + scores[:, None] * dmixed[..., None] + dscores[:, None] * w_query.reshape(-1, 1, 1)
    of_values = dvalue.sum(-1)
    along_one = (dmixed + w_value.sum(1)[:, None] * of_values).sum((1, 2))
    along = (context * dcontext - b_value[:, None] * of_values + dmixed * (mixed + spread)).sum((1, 2))
    first, second = (each[:, None, None, None] / x.shape[1:].numel() for each in (along_one, along))
    dx = dy + (dcentred - first - centred * second) * inverse

    dw_query = torch.einsum("bpn,bcpn->c", dscores, centred)
    dw_key = torch.einsum("bop,bcp->oc", dcontext, mixed)
    dbias = torch.cat([torch.zeros_like(db_value[:1]), dcontext.sum((0, 2)), db_value])
    dweight = torch.cat([dw_query[None], dw_key, dw_value])
    dqkv_w = dweight * norm_w + dbias[:, None] * norm_b
    return dx, (dweight * matrix).sum(0), dbias @ matrix, dqkv_w.reshape(qkv_w.shape), dbias, dout_w, dout_b
