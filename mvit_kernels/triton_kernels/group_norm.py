"""GroupNorm with one group, forward and backward, on dense maps of either format.

Forward: moments of pieces of every image (moments.py), then one pass that normalises. Backward: the moments again, sums of dy and dy xhat
over the pixels of each channel, from which a program an image has the means of g and g xhat, and one pass for dx, which adds what comes by
another way. Moments that are known spare a pass of either."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from . import tuning
from .launch import blocks, launch, power_of_two, wait_turn
from .moments import combine_moments, parts_of, parts_or_moments

__all__ = ["backward", "forward", "parts_of"]

Tensor = torch.Tensor


@triton.jit
def _tile(image, tile, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """(offsets, channels, inside) of a tile (BLOCK_P, BLOCK_C) of an image."""
    across = tl.cdiv(channels, BLOCK_C)
    c = (tile % across) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (tile // across) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    begin = tl.cast(image, tl.int64) * channels * pixels
    if CHANNELS_LAST:
        offsets = begin + p.to(tl.int64)[:, None] * channels + c[None, :]
    else:
        offsets = begin + c.to(tl.int64)[None, :] * pixels + p[:, None]
    return offsets, c, inside


@triton.jit
def group_norm_fwd_kernel(
    x, weight, bias, parts, y, channels, pixels, pieces, eps,
    CHANNELS_LAST: tl.constexpr, PIECES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    wait_turn()
    tiles = tl.cdiv(channels, BLOCK_C) * tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    image = program // tiles
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    offsets, c, inside = _tile(image, program % tiles, channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    beta = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    result = (value - mean) * inverse * gamma[None, :] + beta[None, :]
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_bwd_sums_kernel(
    dy, x, parts, sums, channels, pixels, pieces, eps,
    CHANNELS_LAST: tl.constexpr, PIECES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """sums (B, pieces of PIXELS pixels, 2, C): of dy and of dy xhat."""
    wait_turn()
    across, along = tl.cdiv(channels, BLOCK_C), tl.cdiv(pixels, PIXELS)
    program = tl.program_id(0)
    image, piece, block = program // (across * along), (program // across) % along, program % across
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    of_dy, of_product = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(piece * (PIXELS // BLOCK_P), tl.minimum((piece + 1) * (PIXELS // BLOCK_P), tl.cdiv(pixels, BLOCK_P))):
        offsets, _, inside = _tile(image, tile * across + block, channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
        grad = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        of_dy += tl.sum(grad, 0)
        of_product += tl.sum(grad * ((value - mean) * inverse), 0)
    at = sums + tl.cast(image * along + piece, tl.int64) * 2 * channels + c
    tl.store(at, of_dy, mask=c < channels)
    tl.store(at + channels, of_product, mask=c < channels)


@triton.jit
def group_norm_bwd_means_kernel(sums, weight, means, along, channels, size, BLOCK_C: tl.constexpr):
    """means (2, B) of g = dy weight and of g xhat, from sums (B, along, 2, C) of images of `size` elements; in a fixed order."""
    wait_turn()
    image, images = tl.program_id(0), tl.num_programs(0)
    sums += tl.cast(image, tl.int64) * along * 2 * channels
    of_g, of_product = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        gamma = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        for piece in range(0, along):
            at = sums + tl.cast(piece, tl.int64) * 2 * channels + c
            of_g += gamma * tl.load(at, mask=c < channels, other=0.0)
            of_product += gamma * tl.load(at + channels, mask=c < channels, other=0.0)
    tl.store(means + image, tl.sum(of_g, 0) / size)
    tl.store(means + images + image, tl.sum(of_product, 0) / size)


@triton.jit
def group_norm_bwd_kernel(
    dy, x, weight, parts, means, residual, dx, channels, pixels, pieces, eps, RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PIECES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = (g - mean(g) - xhat mean(g xhat)) / sigma (+ residual) with g = dy weight; means (2, B)."""
    wait_turn()
    tiles = tl.cdiv(channels, BLOCK_C) * tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    image, images = program // tiles, tl.num_programs(0) // tiles
    mean, inverse = combine_moments(parts, image, pieces, eps, PIECES)
    mean_g, mean_product = tl.load(means + image), tl.load(means + images + image)
    offsets, c, inside = _tile(image, program % tiles, channels, pixels, CHANNELS_LAST, BLOCK_C, BLOCK_P)
    grad = tl.load(dy + offsets, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    normal = (value - mean) * inverse
    result = (grad * gamma[None, :] - mean_g - normal * mean_product) * inverse
    if RESIDUAL:
        result += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + offsets, result.to(dx.dtype.element_ty), mask=inside)


# --- what launches them ---


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor, channels_last: bool, moments: Tensor | None = None) -> None:
    """y of x (B, C, H, W), both dense in the same format. moments: of x or their parts, if they are known."""
    if x.numel() == 0:
        return
    parts, pieces, lanes = parts_or_moments(x, moments)
    channels, pixels, tiles = x.shape[1], x.shape[2] * x.shape[3], tile(x, channels_last)
    launch(
        group_norm_fwd_kernel, x.shape[0] * blocks(channels, tiles["BLOCK_C"]) * blocks(pixels, tiles["BLOCK_P"]),
        x, weight, bias, parts, y, channels, pixels, pieces, eps, CHANNELS_LAST=channels_last, PIECES=lanes, enable_fp_fusion=True, **tiles,
    )  # fmt: skip


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, dx: Tensor, channels_last: bool, moments: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dweight, dbias) (C,) float32, and dx, to which `residual` is added; all maps are dense in the same format. moments: as of
    `forward`."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    if x.numel() == 0:
        return weight.new_zeros(channels, dtype=torch.float32), weight.new_zeros(channels, dtype=torch.float32)
    parts, pieces, lanes = parts_or_moments(x, moments)
    sizes = x.shape[0], pixels, channels, "nhwc" if channels_last else "nchw"
    guess = tile(x, channels_last) | {"PIXELS": 1024}
    tiles = dict(tuning.choose("group_norm_bwd", x, sizes, guess, functools.partial(candidates, x, channels_last)))
    of_sums = tiles.pop("PIXELS")
    along, across = blocks(pixels, of_sums), blocks(channels, tiles["BLOCK_C"])
    sums = x.new_empty(x.shape[0], along, 2, channels, dtype=torch.float32)
    settings = {"CHANNELS_LAST": channels_last, "PIECES": lanes, "enable_fp_fusion": True, **tiles}
    launch(
        group_norm_bwd_sums_kernel, x.shape[0] * along * across,
        dy, x, parts, sums, channels, pixels, pieces, eps, PIXELS=of_sums, **settings,
    )  # fmt: skip
    means = x.new_empty(2, x.shape[0], dtype=torch.float32)
    launch(
        group_norm_bwd_means_kernel, x.shape[0],
        sums, weight, means, along, channels, channels * pixels, BLOCK_C=power_of_two(channels, 16, 1024), num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    launch(
        group_norm_bwd_kernel, x.shape[0] * across * blocks(pixels, tiles["BLOCK_P"]),
        dy, x, weight, parts, means, dy if residual is None else residual, dx, channels, pixels, pieces, eps,
        RESIDUAL=residual is not None, **settings,
    )  # fmt: skip
    dbias, dweight = sums.sum((0, 1)).unbind(0)
    return dweight, dbias


def tile(x: Tensor, channels_last: bool, elements: int = 2048, warps: int = 4) -> tuning.Tile:
    """The longer side along memory."""
    if channels_last:
        block_c = power_of_two(x.shape[1], 8, 128)
        block_p = elements // block_c
    else:
        block_p = power_of_two(x.shape[2] * x.shape[3], 16, 128)
        block_c = elements // block_p
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps}


def candidates(x: Tensor, channels_last: bool) -> list[tuning.Tile]:
    """Of the backward. PIXELS: whose sums a program has, of few images fewer; whole tiles."""
    pixels = power_of_two(x.shape[2] * x.shape[3])
    found = [(1024, 4), (2048, 4), (2048, 8), (4096, 8)]
    tiles = [
        tile(x, channels_last, *each) | {"PIXELS": of_sums} for of_sums in (256, 1024) for each in found if of_sums <= max(pixels, 256)
    ]
    return [each for each in tiles if each["BLOCK_P"] <= each["PIXELS"]]
