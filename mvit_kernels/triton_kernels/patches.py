"""Unfold and fold of pixel phases: copies between a map (B, C, H, W) and its phases (B, C, P, N), of any strides and any dtype."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import blocks, far, launch, power_of_two, wait_turn
from .phases import group_start, phases_of, pixel_offsets

Tensor = torch.Tensor
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def patches_kernel(
    map_, phases, channels, groups, across, length, columns,
    map_image, map_channel, map_row, map_column, map_row_step, map_column_step,
    phases_image, phases_channel, phases_phase, phases_position,
    FOLD: tl.constexpr, JOINT: tl.constexpr, VECTOR: tl.constexpr, FAR: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    wait_turn()
    per_image = groups * tl.cdiv(length, BLOCK_T) * tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    image, program = program // per_image, program % per_image
    c = (program % tl.cdiv(channels, BLOCK_C)) * BLOCK_C + tl.arange(0, BLOCK_C)
    program //= tl.cdiv(channels, BLOCK_C)
    group = program % groups
    t = (program // groups) * BLOCK_T + tl.arange(0, BLOCK_T)
    map_ += image.to(tl.int64) * map_image + group_start(group, across, map_row, map_column)
    phases += image.to(tl.int64) * phases_image + tl.cast(group * JOINT, tl.int64) * phases_phase
    wide = c.to(tl.int64) if FAR else c
    in_map = pixel_offsets(t, columns, map_row_step, map_column_step, VECTOR, FAR)
    wide_t = t.to(tl.int64) if FAR else t
    in_phases = (wide_t % JOINT) * phases_phase + (wide_t // JOINT) * phases_position
    inside = (t < length)[:, None] & (c < channels)[None, :]
    map_at = map_ + in_map[:, None] + wide[None, :] * map_channel
    phases_at = phases + in_phases[:, None] + wide[None, :] * phases_channel
    if FOLD:
        tl.store(map_at, tl.load(phases_at, mask=inside), mask=inside)
    else:
        tl.store(phases_at, tl.load(map_at, mask=inside), mask=inside)


# --- what launches it ---


def unfold(x: Tensor, phases: Tensor, patch: tuple[int, int]) -> None:
    """phases (B, C, P, N) of x (B, C, H, W)."""
    _copy(x, phases, patch, fold=False)


def fold(phases: Tensor, x: Tensor, patch: tuple[int, int]) -> None:
    """x (B, C, H, W) of its phases (B, C, P, N)."""
    _copy(x, phases, patch, fold=True)


def _copy(x: Tensor, phases: Tensor, patch: tuple[int, int], fold: bool) -> None:
    if x.numel() == 0:
        return
    integer = _INTEGERS[x.element_size()]
    x, phases = x.view(integer), phases.view(integer)
    walk, channels = phases_of(x, patch), x.shape[1]
    longest = power_of_two(channels, 1, 128) if x.stride(1) == 1 else power_of_two(channels, 1, 16)
    block_t = power_of_two(walk.length, walk.joint, 2048 // longest)
    block_c = min(power_of_two(channels), 2048 // block_t)
    programs = x.shape[0] * walk.groups * blocks(walk.length, block_t) * blocks(channels, block_c)
    launch(
        patches_kernel, programs,
        x, phases, channels, walk.groups, walk.across, walk.length, walk.columns, *x.stride()[:2], *walk.steps(x), *phases.stride(),
        FOLD=fold, JOINT=walk.joint, VECTOR=walk.vector, FAR=far(x, phases), BLOCK_T=block_t, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
