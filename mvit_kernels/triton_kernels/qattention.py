"""Attention of any queries, keys and values on bytes: the bits of `mvit_kernels/reference/qattention.py`.

A program has a head of an image, a block of its queries and all keys, of many a block after another: first the largest score of each query,
then the sums, which are exact in any order. Products are those of int8 on tensor cores: b' = b - 128 stands for
every byte, and int32 sums get back what that leaves out, with o = 128 - z for each zero-point:

    S[n, m] = sum_c q'[n, c] k'[m, c] + o_q sum_c k'[m, c] + o_k sum_c q'[n, c] + c o_q o_k
    A[n, c] = sum_m e'[n, m] v'[m, c] + 128 sum_m v'[m, c] + o_v sum_m e[n, m]

**Mixed scores** of a head are sums over the products of all heads, which its program makes anew. **Mixed weights** take the exponentials of
all heads: a first launch leaves these in memory, and a second one mixes them. Their whole numbers u, of nine bits with a sign, are two of
eight: u = 2 floor(u / 2) + u mod 2."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, launch, power_of_two, processors, vector_of, wait_turn
from .pinned import clamp, rint, to_byte
from .products import signed

Tensor = torch.Tensor
MOST_KEYS = 512  # whose scores a program has in its registers


@triton.jit
def _place(queries, heads, BLOCK_N: tl.constexpr):
    """(image, head, queries) of a program."""
    program, per_head = tl.program_id(0), tl.cdiv(queries, BLOCK_N)
    n = (program % per_head) * BLOCK_N + tl.arange(0, BLOCK_N)
    return (program // per_head // heads).to(tl.int64), program // per_head % heads, n


@triton.jit
def _bytes(x, row, r, rows, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Bytes less 128 of rows r, DEPTH of each; 0 beyond them."""
    c = tl.arange(0, BLOCK_D)
    at = x + r.to(tl.int64)[:, None] * row + c[None, :]
    return signed(tl.load(at, mask=(r < rows)[:, None] & (c < DEPTH)[None, :], other=128))


@triton.jit
def _scores(
    q, k, head, n, m, queries, keys, q_row, k_row, q_offset, k_offset, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """S of a head, in float32, where it is exact."""
    a = _bytes(q + head * DEPTH, q_row, n, queries, DEPTH, BLOCK_D)
    b = _bytes(k + head * DEPTH, k_row, m, keys, DEPTH, BLOCK_D)
    sums = tl.dot(a, tl.trans(b), out_dtype=tl.int32) + (tl.sum(b.to(tl.int32), 1) * q_offset)[None, :]
    sums += (tl.sum(a.to(tl.int32), 1) * k_offset + DEPTH * q_offset * k_offset)[:, None]
    return sums.to(tl.float32)


@triton.jit
def _logits(
    q, k, bias, mix_scores, heads, head, n, m, queries, keys, q_row, k_row, bias_row, q_offset, k_offset, steps,
    BIAS: tl.constexpr, MIX_SCORES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """In steps of the table."""
    if BIAS:
        at = bias + (head.to(tl.int64) * keys + m)[None, :] * bias_row + n[:, None]
        logits = tl.load(at, mask=(n < queries)[:, None] & (m < keys)[None, :], other=0.0)
    else:
        logits = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if MIX_SCORES:
        for g in range(0, heads):
            scores = _scores(q, k, g, n, m, queries, keys, q_row, k_row, q_offset, k_offset, DEPTH, BLOCK_D)
            logits += tl.load(mix_scores + head * heads + g) * scores
    else:
        logits += _scores(q, k, head, n, m, queries, keys, q_row, k_row, q_offset, k_offset, DEPTH, BLOCK_D) * steps
    return logits


@triton.jit
def _largest(logits, m, keys):
    return tl.max(tl.where((m < keys)[None, :], logits, float("-inf")), 1)


@triton.jit
def _exponentials(table, logits, largest, m, keys):
    below = largest[:, None] - logits
    return tl.load(table + rint(clamp(below, 0.0, 255.0)).to(tl.int32), mask=(m < keys)[None, :], other=0)


@triton.jit
def _sums(e, v, m, keys, v_row, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """Of e v'."""
    value = _bytes(v, v_row, m, keys, WIDTH, BLOCK_W)
    return tl.dot(signed(e), value, out_dtype=tl.int32) + (tl.sum(value.to(tl.int32), 0) * 128)[None, :]


@triton.jit
def _leave(
    sums, total, y, image, head, n, heads, queries, v_offset, ratio, zero_point, most,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    sums += (total * v_offset)[:, None]
    t = sums.to(tl.float32) * tl.div_rn(tl.full((BLOCK_N,), 0.0, tl.float32) + ratio, total.to(tl.float32))[:, None]
    y += (image * queries * heads + head) * WIDTH
    _store(t, y, heads * WIDTH, n, queries, zero_point, most, WIDTH, BLOCK_W)


@triton.jit
def _store(t, y, y_row, n, queries, zero_point, most, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    c = tl.arange(0, BLOCK_W)
    at = y + n.to(tl.int64)[:, None] * y_row + c[None, :]
    tl.store(at, to_byte(t, zero_point, most), mask=(n < queries)[:, None] & (c < WIDTH)[None, :])


@triton.jit
def qattention_kernel(
    q, k, v, bias, mix_scores, table, shares, y, heads, queries, keys, q_image, q_row, k_image, k_row, v_image, v_row, bias_row,
    q_offset, k_offset, v_offset, steps, ratio, zero_point, most,
    BIAS: tl.constexpr, MIX_SCORES: tl.constexpr, SHARES: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y (B, N, H WIDTH), or where SHARES is set shares (B, H, N, M) of every weight in the sum, float32. bias (H, M, bias_row)."""
    wait_turn()
    image, head, n = _place(queries, heads, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    q += image * q_image
    k += image * k_image
    logits = _logits(
        q, k, bias, mix_scores, heads, head, n, m, queries, keys, q_row, k_row, bias_row, q_offset, k_offset, steps,
        BIAS, MIX_SCORES, DEPTH, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    e = _exponentials(table, logits, _largest(logits, m, keys), m, keys)
    total = tl.sum(e.to(tl.int32), 1)
    if SHARES:
        share = e.to(tl.float32) * tl.div_rn(tl.full((BLOCK_N,), 1.0, tl.float32), total.to(tl.float32))[:, None]
        at = shares + ((image * heads + head) * queries + n)[:, None] * keys + m[None, :]
        tl.store(at, share, mask=(n < queries)[:, None] & (m < keys)[None, :])
    else:
        sums = _sums(e, v + image * v_image + head * WIDTH, m, keys, v_row, WIDTH, BLOCK_W)
        _leave(sums, total, y, image, head, n, heads, queries, v_offset, ratio, zero_point, most, WIDTH, BLOCK_N, BLOCK_W)


@triton.jit
def qattention_blocks_kernel(
    q, k, v, bias, mix_scores, table, y, heads, queries, keys, q_image, q_row, k_image, k_row, v_image, v_row, bias_row,
    q_offset, k_offset, v_offset, steps, ratio, zero_point, most,
    VECTOR: tl.constexpr, BIAS: tl.constexpr, MIX_SCORES: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """y (B, N, H WIDTH) of keys in blocks of BLOCK_M. Scores are made twice: a second product costs less than to keep them. Strides of q, k
    and v come divided by VECTOR: so the compiler knows how wide loads may be."""
    wait_turn()
    q_image, q_row, k_image, k_row = q_image * VECTOR, q_row * VECTOR, k_image * VECTOR, k_row * VECTOR
    v_image, v_row = v_image * VECTOR, v_row * VECTOR
    image, head, n = _place(queries, heads, BLOCK_N)
    q += image * q_image
    k += image * k_image
    v += image * v_image + head * WIDTH
    largest = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    for begin in range(0, keys, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        logits = _logits(
            q, k, bias, mix_scores, heads, head, n, m, queries, keys, q_row, k_row, bias_row, q_offset, k_offset, steps,
            BIAS, MIX_SCORES, DEPTH, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        largest = tl.maximum(largest, _largest(logits, m, keys))
    total, sums = tl.zeros((BLOCK_N,), tl.int32), tl.zeros((BLOCK_N, BLOCK_W), tl.int32)
    for begin in range(0, keys, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        logits = _logits(
            q, k, bias, mix_scores, heads, head, n, m, queries, keys, q_row, k_row, bias_row, q_offset, k_offset, steps,
            BIAS, MIX_SCORES, DEPTH, BLOCK_N, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        e = _exponentials(table, logits, largest, m, keys)
        total += tl.sum(e.to(tl.int32), 1)
        sums += _sums(e, v, m, keys, v_row, WIDTH, BLOCK_W)
    _leave(sums, total, y, image, head, n, heads, queries, v_offset, ratio, zero_point, most, WIDTH, BLOCK_N, BLOCK_W)


@triton.jit
def qattention_mixed_kernel(
    shares, v, mix_weights, shift, y, heads, queries, keys, v_image, v_row, v_offset, ratio, zero_point, most,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """ratio: to 255 steps of a weight."""
    wait_turn()
    image, head, n = _place(queries, heads, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    inside = (n < queries)[:, None] & (m < keys)[None, :]
    weights = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if SHIFT:
        weights += tl.load(shift + head)
    at = shares + (image * heads * queries + n)[:, None] * keys + m[None, :]
    for g in range(0, heads):
        share = tl.load(at + tl.cast(g * queries, tl.int64) * keys, mask=inside, other=0.0)
        weights += tl.load(mix_weights + head * heads + g) * share
    weights = tl.where(inside, weights, 0.0)
    largest = tl.maximum(tl.max(tl.abs(weights), 1), 7.888609052210118e-31)  # 2^-100
    whole = rint(weights * tl.div_rn(tl.full((BLOCK_N,), 255.0, tl.float32), largest)[:, None]).to(tl.int32)
    value = _bytes(v + image * v_image + head * WIDTH, v_row, m, keys, WIDTH, BLOCK_W)
    sums = tl.dot((whole >> 1).to(tl.int8), value, out_dtype=tl.int32) * 2
    sums += tl.dot((whole & 1).to(tl.int8), value, out_dtype=tl.int32)
    sums += (tl.sum(whole, 1) * v_offset)[:, None]
    y += (image * queries * heads + head) * WIDTH
    _store(sums.to(tl.float32) * (largest * ratio)[:, None], y, heads * WIDTH, n, queries, zero_point, most, WIDTH, BLOCK_W)


# --- what launches them ---


def qattention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mix_scores: Tensor | None, mix_weights: Tensor | None, shift: Tensor | None,
    heads: int, q_zero_point: int, k_zero_point: int, v_zero_point: int, steps: float, ratio: float, table: Tensor, out_zero_point: int,
    out_bits: int, y: Tensor,
) -> None:  # fmt: skip
    """y (B, N, H d) contiguous of q (B, N, H c), k (B, M, H c) and v (B, M, H d), whose channels have stride 1; bias (H, M, N or more),
    the mixtures contiguous; table (256,) uint8. More than MOST_KEYS keys have no mixed weights."""
    if y.numel() == 0:
        return
    (batch, queries, channels), keys = q.shape, k.shape[1]
    depth, width = channels // heads, v.shape[2] // heads
    in_blocks = keys > MOST_KEYS
    assert not (in_blocks and mix_weights is not None), f"mixed weights of {keys} keys"
    block_m = power_of_two(keys, 32)
    if in_blocks:
        block_m = 128 if max(depth, width) <= 64 else 64  # whose bytes the registers hold, too
    many = batch * heads * blocks(queries, 64) >= 2 * processors(y)
    block_n = power_of_two(queries, 16, max(16, min(64, 4096 // block_m) if many else 16))
    programs = batch * heads * blocks(queries, block_n)
    settings = {
        "WIDTH": width, "BLOCK_N": block_n, "BLOCK_M": block_m, "BLOCK_W": power_of_two(width, 16),
        "num_warps": 4 if block_n * block_m <= 4096 else 8, "num_stages": 1,
    }  # fmt: skip
    shares = y if mix_weights is None else torch.empty(batch, heads, queries, keys, dtype=torch.float32, device=y.device)
    offsets = 128 - q_zero_point, 128 - k_zero_point, 128 - v_zero_point
    inputs = q, k, v, q if bias is None else bias, q if mix_scores is None else mix_scores, table
    strides = *q.stride()[:2], *k.stride()[:2], *v.stride()[:2]
    vector = vector_of(depth, width, *strides) if in_blocks else 1
    numbers = (
        heads, queries, keys, *(each // vector for each in strides), 0 if bias is None else bias.stride(1), *offsets, steps, ratio,
        out_zero_point, 2**out_bits - 1,
    )  # fmt: skip
    scores = {"BIAS": bias is not None, "MIX_SCORES": mix_scores is not None, "DEPTH": depth, "BLOCK_D": power_of_two(depth, 32)}
    if in_blocks:
        launch(qattention_blocks_kernel, programs, *inputs, y, *numbers, VECTOR=vector, **scores, **settings)
        return
    launch(qattention_kernel, programs, *inputs, shares, y, *numbers, SHARES=mix_weights is not None, **scores, **settings)
    if mix_weights is not None:
        launch(
            qattention_mixed_kernel, programs,
            shares, v, mix_weights, v if shift is None else shift, y, heads, queries, keys, *v.stride()[:2], offsets[2], ratio / 255.0,
            out_zero_point, 2**out_bits - 1, SHIFT=shift is not None, **settings,
        )  # fmt: skip
