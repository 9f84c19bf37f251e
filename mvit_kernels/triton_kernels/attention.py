"""Attention of any queries, keys and values with bias and talking heads: `mvit_kernels/reference/attention.py`, with no scores in memory
but where heads are mixed behind softmax.

A program has a head of an image and a block of its queries, and walks the keys in blocks with a running maximum and sum (Milakov and
Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135). Where there are few queries of many keys, as the tokens of Mobile-Former
are, several programs share the keys of a block, and a second launch joins what they found.

**Mixed scores** of a head are sums over the products of all heads, which its program makes anew. **Mixed weights** take the softmax of all
heads: a first launch leaves logits in memory, with log2 of the sum of exponentials of each query, and a second one mixes and multiplies.
Exponents are of 2: everything in front of them is multiplied by log2(e)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activation import activate
from .launch import blocks, far, launch, power_of_two, processors, wait_turn
from .products import dot

Tensor = torch.Tensor
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(x, row, r, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows r, WIDTH channels of each; 0 beyond them."""
    c = tl.arange(0, BLOCK)
    return tl.load(x + r.to(tl.int64)[:, None] * row + c[None, :], mask=(r < rows)[:, None] & (c < WIDTH)[None, :], other=0.0)


@triton.jit
def _scores(query, k, k_row, m, keys, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    return dot(query, tl.trans(_rows(k, k_row, m, keys, DEPTH, BLOCK_D)), None)


@triton.jit
def _weighted(weights, v, v_row, m, keys, total, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """total and the values of keys m, weighted."""
    value = _rows(v, v_row, m, keys, WIDTH, BLOCK_W)
    return dot(weights.to(value.dtype), value, total)


@triton.jit
def _store(result, y, row, n, queries, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    c = tl.arange(0, BLOCK_W)
    at = y + n.to(tl.int64)[:, None] * row + c[None, :]
    tl.store(at, result.to(y.dtype.element_ty), mask=(n < queries)[:, None] & (c < WIDTH)[None, :])


@triton.jit
def _end(
    result,
    y,
    residual,
    begin,
    row,
    n,
    queries,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """_store to y + begin of act(result + residual), which lies as y does."""
    if RESIDUAL:
        result += _rows(residual + begin, row, n, queries, WIDTH, BLOCK_W).to(tl.float32)
    _store(activate(result, ACTIVATION, y.dtype.element_ty), y + begin, row, n, queries, WIDTH, BLOCK_W)


@triton.jit
def _finite(largest):
    """What is subtracted from exponents: of nothing but -inf, as beyond the last key, 0."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def attention_kernel(
    q, k, v, bias, mix_scores, residual, y, logits, sums, heads, queries, keys, share, images, factor,
    q_image, q_row, k_image, k_row, v_image, v_row, bias_head, bias_row, bias_key,
    BIAS: tl.constexpr, MIX_SCORES: tl.constexpr, TO: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, FAR: tl.constexpr,
    DEPTH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """TO y: y (B, N, H WIDTH). TO parts, of `share` keys each: y (parts, B, H, N, WIDTH) float32, not divided by their sums, and sums
    (parts, 2, B, H, N), the largest logit and the sum of exponentials less it. TO logits: logits (B, H, N, M) float32, and sums (B, H, N),
    log2 of the sum of exponentials."""
    wait_turn()
    program, per_head = tl.program_id(0), tl.cdiv(queries, BLOCK_N)
    n = (program % per_head) * BLOCK_N + tl.arange(0, BLOCK_N)
    program //= per_head
    head, image = program % heads, (program // heads % images).to(tl.int64)
    part = program // heads // images
    q += image * q_image
    k += image * k_image
    v += image * v_image + head * WIDTH
    place = (image * heads + head) * queries  # of the first query of a head
    if BIAS:
        bias += head.to(tl.int64) * bias_head
        bias_n = (n.to(tl.int64) if FAR else n) * bias_row
    query = _rows(q + head * DEPTH, q_row, n, queries, DEPTH, BLOCK_D)
    largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    result = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for begin in range(part * share, tl.minimum(keys, (part + 1) * share), BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        known = (m < keys)[None, :]
        if MIX_SCORES:
            scores = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for g in range(0, heads):
                other = _rows(q + g * DEPTH, q_row, n, queries, DEPTH, BLOCK_D)
                scores += tl.load(mix_scores + head * heads + g) * _scores(other, k + g * DEPTH, k_row, m, keys, DEPTH, BLOCK_D)
        else:
            scores = _scores(query, k + head * DEPTH, k_row, m, keys, DEPTH, BLOCK_D)
        scores = scores * factor
        if BIAS:
            at = bias_n[:, None] + (m.to(tl.int64) if FAR else m)[None, :] * bias_key
            scores += tl.load(bias + at, mask=(n < queries)[:, None] & known, other=0.0).to(tl.float32) * LOG2E
        scores = tl.where(known, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - _finite(now)[:, None])
        shrink = tl.exp2(largest - _finite(now))
        total = total * shrink + tl.sum(weights, 1)
        largest = now
        if TO == "logits":
            at = (n.to(tl.int64) if FAR else n)[:, None] * keys + m[None, :]
            tl.store(logits + place * keys + at, scores, mask=(n < queries)[:, None] & known)
        else:
            result = _weighted(weights, v, v_row, m, keys, result * shrink[:, None], WIDTH, BLOCK_W)
    if TO == "y":
        begin = (image * queries * heads + head) * WIDTH
        _end(result / total[:, None], y, residual, begin, heads * WIDTH, n, queries, RESIDUAL, ACTIVATION, WIDTH, BLOCK_W)
    elif TO == "logits":
        tl.store(sums + place + n, largest + tl.log2(total), mask=n < queries)
    else:
        of_part = tl.cast(images * heads, tl.int64) * queries
        _store(result, y + (part * of_part + place) * WIDTH, WIDTH, n, queries, WIDTH, BLOCK_W)
        at = sums + 2 * part * of_part + place + n
        tl.store(at, largest, mask=n < queries)
        tl.store(at + of_part, total, mask=n < queries)


@triton.jit
def attention_join_kernel(
    results, sums, residual, y, heads, queries, parts, images,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y (B, N, H WIDTH) of what attention_kernel leaves TO parts."""
    wait_turn()
    program, per_head = tl.program_id(0), tl.cdiv(queries, BLOCK_N)
    n = (program % per_head) * BLOCK_N + tl.arange(0, BLOCK_N)
    program //= per_head
    head, image = program % heads, (program // heads).to(tl.int64)
    place, of_part = (image * heads + head) * queries, tl.cast(images * heads, tl.int64) * queries
    largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    result = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for part in range(0, parts):
        at = sums + 2 * part * of_part + place + n
        largest_here = tl.load(at, mask=n < queries, other=0.0)
        now = tl.maximum(largest, largest_here)
        shrink, grow = tl.exp2(largest - _finite(now)), tl.exp2(largest_here - _finite(now))
        total = total * shrink + tl.load(at + of_part, mask=n < queries, other=1.0) * grow
        here = _rows(results + (part * of_part + place) * WIDTH, WIDTH, n, queries, WIDTH, BLOCK_W)
        result = result * shrink[:, None] + here * grow[:, None]
        largest = now
    begin = (image * queries * heads + head) * WIDTH
    _end(result / total[:, None], y, residual, begin, heads * WIDTH, n, queries, RESIDUAL, ACTIVATION, WIDTH, BLOCK_W)


@triton.jit
def attention_mixed_kernel(
    logits, sums, v, mix_weights, shift, residual, y, heads, queries, keys, v_image, v_row,
    SHIFT: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, FAR: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y (B, N, H WIDTH) of what attention_kernel leaves TO logits."""
    wait_turn()
    program, per_head = tl.program_id(0), tl.cdiv(queries, BLOCK_N)
    n = (program % per_head) * BLOCK_N + tl.arange(0, BLOCK_N)
    program //= per_head
    head, image = program % heads, (program // heads).to(tl.int64)
    sums += image * heads * queries + n
    logits += image * heads * queries * keys
    v += image * v_image + head * WIDTH
    start = tl.load(shift + head) if SHIFT else 0.0
    result = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for begin in range(0, keys, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        inside = (n < queries)[:, None] & (m < keys)[None, :]
        at = (n.to(tl.int64) if FAR else n)[:, None] * keys + m[None, :]
        weights = tl.zeros((BLOCK_N, BLOCK_M), tl.float32) + start
        for g in range(0, heads):
            of_head = tl.cast(g * queries, tl.int64)
            logit = tl.load(logits + of_head * keys + at, mask=inside, other=float("-inf"))
            of_sum = tl.load(sums + of_head, mask=n < queries, other=0.0)
            weights += tl.load(mix_weights + head * heads + g) * tl.exp2(logit - of_sum[:, None])
        result = _weighted(weights, v, v_row, m, keys, result, WIDTH, BLOCK_W)  # values beyond the last key are 0
    begin = (image * queries * heads + head) * WIDTH
    _end(result, y, residual, begin, heads * WIDTH, n, queries, RESIDUAL, ACTIVATION, WIDTH, BLOCK_W)


# --- what launches them ---


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mix_scores: Tensor | None, mix_weights: Tensor | None, shift: Tensor | None,
    residual: Tensor | None, activation: str, heads: int, scale: float, y: Tensor,
) -> None:  # fmt: skip
    """y (B, N, H d) contiguous of q (B, N, H c), k (B, M, H c) and v (B, M, H d), whose channels have stride 1; bias (H, N, M) of any
    strides; the mixtures float32 and contiguous, a shift with weights only; residual as y."""
    if y.numel() == 0:
        return
    (batch, queries, channels), keys = q.shape, k.shape[1]
    depth, width = channels // heads, v.shape[2] // heads
    small = q.dtype == torch.float32  # whose products have no tensor cores, and need registers
    most = 16 if mix_weights is not None else 32 if small or max(depth, width) > 64 else 64
    block_n, block_m = power_of_two(queries, 16, most), power_of_two(keys, 16, 32 if small else 64)
    programs, block_w = batch * heads * blocks(queries, block_n), power_of_two(width, 16)
    parts = 1 if mix_weights is not None else shares(programs, blocks(keys, block_m), processors(q))
    share = blocks(blocks(keys, block_m), parts) * block_m
    parts = blocks(keys, share)

    def scratch(*size: int) -> Tensor:
        return y.new_empty(size, dtype=torch.float32)

    to, result, logits, sums = "y", y, y, y
    if mix_weights is not None:
        to, logits, sums = "logits", scratch(batch, heads, queries, keys), scratch(batch, heads, queries)
    elif parts > 1:
        to, result, sums = "parts", scratch(parts, batch, heads, queries, width), scratch(parts, 2, batch, heads, queries)
    near = queries * keys < 2**31 and (bias is None or not far(bias))
    tiles = {
        "FAR": not near, "WIDTH": width, "BLOCK_N": block_n, "BLOCK_M": block_m, "BLOCK_W": block_w, "num_warps": 4,
        "num_stages": 1 if mix_weights is not None or small else 2, "enable_fp_fusion": True,
    }  # fmt: skip
    added = q if residual is None else residual
    end = {"RESIDUAL": residual is not None, "ACTIVATION": activation}
    here = end if to == "y" else {"RESIDUAL": False, "ACTIVATION": "none"}
    launch(
        attention_kernel, programs * parts,
        q, k, v, q if bias is None else bias, q if mix_scores is None else mix_scores, added, result, logits, sums, heads, queries, keys,
        share, batch, scale * LOG2E.value, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *((0, 0, 0) if bias is None else bias.stride()),
        BIAS=bias is not None, MIX_SCORES=mix_scores is not None, TO=to, DEPTH=depth, BLOCK_D=power_of_two(depth, 16), **here,
        **tiles,
    )  # fmt: skip
    if mix_weights is not None:
        launch(
            attention_mixed_kernel, programs,
            logits, sums, v, mix_weights, v if shift is None else shift, added, y, heads, queries, keys, *v.stride()[:2],
            SHIFT=shift is not None, **end, **tiles,
        )  # fmt: skip
    elif parts > 1:
        launch(
            attention_join_kernel, batch * heads * blocks(queries, 16),
            result, sums, added, y, heads, queries, parts, batch, **end, WIDTH=width, BLOCK_N=16, BLOCK_W=block_w, num_warps=4,
            enable_fp_fusion=True,
        )  # fmt: skip


def shares(programs: int, blocks_of_keys: int, processors: int) -> int:
    """How many programs share the keys of a block of queries: as many as make every multiprocessor busy, and have two blocks each."""
    return max(1, min(blocks_of_keys // 2, processors // programs))
