"""LayerNorm over the last axis, forward and backward. A program has whole rows in registers, so x is read once."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import blocks, launch, power_of_two, wait_turn

Tensor = torch.Tensor


@triton.jit
def _normal(x, rows, channels, eps, r, c):
    """(xhat, 1 / sigma, offsets, inside) of rows r."""
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    offsets = r.to(tl.int64)[:, None] * channels + c[None, :]
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(value, 1)
    mean = tl.div_rn(total, tl.zeros_like(total) + channels)  # as in moments.py
    distance = tl.where(inside, value - mean[:, None], 0.0)
    variance = tl.sum(distance * distance, 1) / channels
    inverse = 1.0 / tl.sqrt_rn(variance + eps)
    return distance * inverse[:, None], inverse, offsets, inside


@triton.jit
def layer_norm_fwd_kernel(x, weight, bias, y, rows, channels, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    wait_turn()
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    normal, _, offsets, inside = _normal(x, rows, channels, eps, r, c)
    gamma = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    beta = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    tl.store(y + offsets, (normal * gamma[None, :] + beta[None, :]).to(y.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_bwd_kernel(
    dy, x, weight, dx, sums, rows, channels, eps, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """dx = (g - mean(g) - xhat mean(g xhat)) / sigma with g = dy weight; sums (programs, 2, C): of dy xhat and of
    dy over the rows of a program."""
    wait_turn()
    program, programs = tl.program_id(0), tl.num_programs(0)
    c = tl.arange(0, BLOCK_C)
    gamma = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for block in range(program, tl.cdiv(rows, BLOCK_R), programs):
        r = block * BLOCK_R + tl.arange(0, BLOCK_R)
        normal, inverse, offsets, inside = _normal(x, rows, channels, eps, r, c)
        grad = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
        scaled = grad * gamma[None, :]
        mean_g = tl.sum(scaled, 1) / channels
        mean_product = tl.sum(scaled * normal, 1) / channels
        result = (scaled - mean_g[:, None] - normal * mean_product[:, None]) * inverse[:, None]
        tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=inside)
        dweight += tl.sum(grad * normal, 0)
        dbias += tl.sum(grad, 0)
    at = sums + program.to(tl.int64) * 2 * channels + c
    tl.store(at, dweight, mask=c < channels)
    tl.store(at + channels, dbias, mask=c < channels)


# --- what launches them ---


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor) -> None:
    """y of x (..., C), both contiguous."""
    if x.numel() == 0:
        return
    channels, tiles = x.shape[-1], _tile(x.shape[-1])
    rows = x.numel() // channels
    launch(
        layer_norm_fwd_kernel, blocks(rows, tiles["BLOCK_R"]),
        x, weight, bias, y, rows, channels, eps, BLOCK_C=power_of_two(channels, 16), enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, dx: Tensor) -> tuple[Tensor, Tensor]:
    """(dweight, dbias) (C,) float32, and dx; all contiguous."""
    if x.numel() == 0:
        return torch.zeros_like(weight, dtype=torch.float32), torch.zeros_like(weight, dtype=torch.float32)
    channels = x.shape[-1]
    rows, guess = x.numel() // channels, _tile(channels) | {"PROGRAMS": 256}
    tiles = dict(tuning.choose("layer_norm_bwd", x, (rows, channels), guess, functools.partial(_candidates, channels)))
    programs = min(tiles.pop("PROGRAMS"), blocks(rows, tiles["BLOCK_R"]))
    sums = x.new_empty(programs, 2, channels, dtype=torch.float32)
    launch(
        layer_norm_bwd_kernel, programs,
        dy, x, weight, dx, sums, rows, channels, eps, BLOCK_C=power_of_two(channels, 16), enable_fp_fusion=True, **tiles,
    )  # fmt: skip
    dweight, dbias = sums.sum(0).unbind(0)
    return dweight.contiguous(), dbias.contiguous()


def _tile(channels: int, elements: int = 2048, warps: int = 4) -> tuning.Tile:
    """Whole rows: more warps where one of them is longer than that."""
    block_c = power_of_two(channels, 16)
    return {"BLOCK_R": max(1, elements // block_c), "num_warps": warps if block_c <= 2048 else 8 if block_c <= 8192 else 16}


def _candidates(channels: int) -> list[tuning.Tile]:
    """Of the backward. PROGRAMS: the most there are, whose sums of dweight and dbias are added at the end."""
    sizes = (1024, 2), (1024, 4), (2048, 4), (2048, 8)
    return [_tile(channels, *each) | {"PROGRAMS": programs} for programs in (256, 1024) for each in sizes]
