"""Products of normalised rows where there are many: a program has a tile of rows in registers, normalises it once, and goes over all
columns. gemm.py takes the rest: its programs, one for each block of columns, normalise their rows each for itself.

Floor on an H100: memory, a and y once at 3.0 TB/s; the rows are read once and not once for each block of columns."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from . import tuning
from .activation import activate
from .launch import blocks, by_warpgroups, launch, power_of_two, processors, vector_of, wait_turn
from .products import dot
from .resident import load_pixels, normal, row_moments, widths

if TYPE_CHECKING:
    from .gemm import Weight

Tensor = torch.Tensor
DEEPEST = 256  # channels that are kept in registers
_ROWS = 64


def takes(a: Tensor, weight: Weight) -> bool:
    """Whether there are rows enough to keep a GPU busy, in registers."""
    return a.dtype != torch.float32 and a.shape[1] <= DEEPEST and blocks(a.shape[0], _ROWS) >= 2 * processors(a)


@triton.jit
def normed_gemm_kernel(
    a, moments, weight, bias, y, rows, columns, depth, a_row, pitch, rows_of_group, eps,
    LAYER: tl.constexpr, ACTIVATION: tl.constexpr, VECTOR: tl.constexpr, OUT_VECTOR: tl.constexpr,
    C1: tl.constexpr, C2: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y (rows, columns) = act(norm(a) weight^T + bias). LAYER: mean and variance of each row, else of its group, moments (G, 2). depth and
    a_row come divided by VECTOR, columns by OUT_VECTOR."""
    wait_turn()
    depth, a_row, columns = depth * VECTOR, a_row * VECTOR, columns * OUT_VECTOR
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.minimum(t, rows - 1).to(tl.int64)  # rows beyond the last repeat it, so that their loads need no mask
    at = row[:, None] * a_row
    c1 = tl.arange(0, C1)
    value1 = load_pixels(a, at, c1, depth)
    if C2 > 0:
        c2 = C1 + tl.arange(0, C2)
        value2 = load_pixels(a, at, c2, depth)
    else:
        c2, value2 = c1, value1
    if LAYER:
        mean, inverse = row_moments(value1, value2, c1, c2, depth, eps, C2)
    else:
        of_group = moments + row // rows_of_group * 2
        mean = tl.load(of_group).to(tl.float32)[:, None]
        inverse = (1.0 / tl.sqrt(tl.load(of_group + 1) + eps)).to(tl.float32)[:, None]
    normal1 = normal(value1, mean, inverse, c1, depth).to(a.dtype.element_ty)
    if C2 > 0:
        normal2 = normal(value2, mean, inverse, c2, depth).to(a.dtype.element_ty)
    y_at = y + row[:, None] * columns
    for begin in range(0, columns, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        of_columns = weight + n[None, :] * pitch
        known = (n < columns)[None, :]
        w = tl.load(of_columns + c1[:, None], mask=known & (c1 < depth)[:, None], other=0.0)
        total = dot(normal1, w, tl.zeros((BLOCK_T, BLOCK_N), tl.float32))
        if C2 > 0:
            w = tl.load(of_columns + c2[:, None], mask=known & (c2 < depth)[:, None], other=0.0)
            total = dot(normal2, w, total)
        result = activate(total + tl.load(bias + n, mask=n < columns, other=0.0)[None, :], ACTIVATION, y.dtype.element_ty)
        tl.store(y_at + n[None, :], result.to(y.dtype.element_ty), mask=(t < rows)[:, None] & known)


def forward(
    a: Tensor, weight: Weight, y: Tensor, *, layer_norm: bool, moments: Tensor | None, eps: float, activation: str
) -> None:  # fmt: skip
    """y (M, N), dense, of a (M, K) with rows of stride 1; moments (G, 2) float64 unless by layer_norm."""
    (rows, depth), columns = a.shape, y.shape[1]
    c1, c2 = widths(depth)
    vector, out_vector = vector_of(depth, a.stride(0)), vector_of(columns)
    groups = 1 if moments is None else moments.shape[0]
    guess, others = _guess(a, columns, c1 + c2), functools.partial(_candidates, columns)
    tiles = tuning.choose("normed_gemm", a, (rows, columns, depth, "layer" if layer_norm else "group"), guess, others)
    launch(
        normed_gemm_kernel, blocks(rows, tiles["BLOCK_T"]),
        a, weight.bias if moments is None else moments, weight.data, weight.bias, y, rows, columns // out_vector, depth // vector,
        a.stride(0) // vector, weight.data.stride(0), rows // groups, eps, LAYER=layer_norm, ACTIVATION=activation, VECTOR=vector,
        OUT_VECTOR=out_vector, C1=c1, C2=c2, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def _guess(a: Tensor, columns: int, width: int) -> tuning.Tile:
    """Tensor cores of sm_90 take 64 rows of four warps at once: with eight warps for them, as many instructions do half of the work. Two
    programs have room on a multiprocessor."""
    if not by_warpgroups(a):
        return _tile(_ROWS, power_of_two(columns, 16, 64), 8 if width > 128 else 4, 2)
    block_n = power_of_two(columns, 16, 64 if width <= 144 else 32)
    return _tile(2 * _ROWS, block_n, 8, 2) if blocks(a.shape[0], 2 * _ROWS) >= processors(a) else _tile(_ROWS, block_n, 4, 2)


def _candidates(columns: int) -> list[tuning.Tile]:
    tiles = (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 8, 2), (128, 32, 8, 2), (128, 64, 8, 1), (128, 64, 8, 2)
    return [_tile(t, n, warps, stages) for t, n, warps, stages in tiles if n <= power_of_two(columns, 16)]


def _tile(block_t: int, block_n: int, warps: int, stages: int) -> tuning.Tile:
    return {"BLOCK_T": block_t, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages}
