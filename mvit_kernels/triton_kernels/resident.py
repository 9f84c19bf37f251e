"""Pixels whose channels stay on a multiprocessor while a product goes over its columns. Channels are two powers of two, C1 + C2, of which
nearly all widths of MobileViT are sums: 144 = 128 + 16, 192 = 128 + 64, 384 = 256 + 128. So is 256 = 128 + 128: the halves of the sums are
finished one after the other, in fewer registers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .launch import power_of_two
from .moments import write_part


def widths(dim: int) -> tuple[int, int]:
    """(C1, C2), powers of two from 16 or 0, that cover so many channels."""
    whole = power_of_two(dim, 16)
    half, rest = whole // 2, power_of_two(dim - whole // 2, 16)
    return (whole, 0) if rest >= half and whole <= 128 else (half, rest)


def padded(weight: torch.Tensor, dtype: torch.dtype, *beyond: int) -> torch.Tensor:
    """A contiguous copy in that dtype, with zeros beyond it as `F.pad` takes them: after every step of an optimizer weights are arranged
    anew, so where there are none to add, one launch it is."""
    copy = weight.to(dtype, copy=not any(beyond), memory_format=torch.contiguous_format)
    return F.pad(copy, beyond) if any(beyond) else copy


@triton.jit
def load_pixels(x, rows, c, dim):
    """Channels c of the pixels that begin `rows` (t, 1) values behind x, float32; zeros beyond the last channel."""
    return tl.load(x + rows + c[None, :], mask=(c < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _squares(value, mean, c, dim):
    distance = tl.where((c < dim)[None, :], value - mean, 0.0)
    return tl.sum(distance * distance, 1)


@triton.jit
def row_moments(value1, value2, c1, c2, dim, eps, C2: tl.constexpr):
    """(t, 1) mean and 1 / sqrt(variance + eps) of each pixel over its channels. C2 0: there are no second ones."""
    mean = tl.sum(value1, 1)
    if C2 > 0:
        mean += tl.sum(value2, 1)
    # As exact as the division of moments.py, in a fraction of its registers: a quotient, and what it leaves of the sum.
    share = 1.0 / dim
    quotient = mean * share
    mean = tl.fma(tl.fma(quotient, -1.0 * dim, mean), share, quotient)[:, None]
    variance = _squares(value1, mean, c1, dim)
    if C2 > 0:
        variance += _squares(value2, mean, c2, dim)
    return mean, (1.0 / tl.sqrt(variance / dim + eps))[:, None]


@triton.jit
def normal(value, mean, inverse, c, dim):
    """Centred and scaled; zeros beyond the last channel, where -mean / sigma might not be finite in 16 bits."""
    return tl.where((c < dim)[None, :], (value - mean) * inverse, 0.0)


@triton.jit
def normalised(sums, mean, inverse, bias, weight_sums, RAW: tl.constexpr):
    """W ((x - mean) / sigma) + bias, of sums = W x with RAW, W 1 = weight_sums; else sums are those of normalised pixels already.

    So 16-bit pixels reach tensor cores through no register: those that stay there over a loop leave room for one block of threads a
    multiprocessor, which waits for every load by itself. What a mean far from 0 costs are the last bits of float32 times |mean| / sigma,
    at most 316 |mean| with eps 1e-5, below the last bit of the 16-bit pixel that the result is added to. Pixels in float32 have no such
    room."""
    if RAW:
        shift = tl.load(bias)[None, :] - mean * inverse * tl.load(weight_sums)[None, :]
        result = sums * inverse + shift
    else:
        result = sums + tl.load(bias)[None, :]
    return result


@triton.jit
def add_and_store(total, bias, x, at, y, y_at, c, dim, inside_t, parts, piece, FIRST: tl.constexpr, COLLECT: tl.constexpr):
    """Channels c, from FIRST on, of y = total + bias + x, of the pixels inside; with COLLECT the part of these. bias has no end that a mask
    would mind."""
    inside = inside_t[:, None] & (c < dim)[None, :]
    result = (total + tl.load(bias + c)[None, :] + load_pixels(x, at, c, dim)).to(y.dtype.element_ty)
    tl.store(y + y_at + c[None, :], result, mask=inside)
    if COLLECT:
        count = tl.sum(tl.where(inside_t, 1.0, 0.0), 0) * tl.minimum(dim - FIRST, c.shape[0]).to(tl.float32)
        write_part(parts, piece, result, inside, count)
