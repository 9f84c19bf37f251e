"""Pixel phases as strides: how kernels walk the pixels of a map that attend to each other, without an unfolded copy.

Pixel (y, x) belongs to phase (y % ph, x % pw). A *group* is what one program walks: the pixels of one phase; or, where the columns of a
map are contiguous in memory, those of the pw phases that share its rows, so that whole rows are read in order and nothing twice. In a
group pixel t lies in its row t // columns at column t % columns, and in its phase t % joint."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor
_WIDEST = 16  # elements of a byte in the widest load


class Phases(NamedTuple):
    """The groups of a map (B, C, H, W) with patches (ph, pw)."""

    joint: int  # phases of a group: pw, or 1
    groups: int
    across: int  # groups that share their rows
    length: int  # pixels of a group
    columns: int  # pixels of a row of a group
    row_step: int  # rows of the map from one row of a group to the next
    vector: int  # so many pixels, from each multiple of it, are neighbours in memory

    @property
    def shift(self) -> int:
        return shift_of(self.columns)

    def steps(self, x: Tensor) -> tuple[int, int, int, int]:
        """(row, column) strides of x from group to group, and inside a group."""
        row, column = x.stride(2), x.stride(3)
        return row, column, row * self.row_step, column * self.across


def phases_of(x: Tensor, patch: tuple[int, int] | None, *others: Tensor, joining: bool = True) -> Phases:
    """How to walk x (B, C, H, W) and others like it. patch None: each row of x (B, C, P, N) is a phase. joining: whether a group may have
    several phases."""
    height, width = x.shape[2:]
    ph, pw = (max(height, 1), 1) if patch is None else patch
    rows_in_order = joining and all(each.stride(3) == 1 for each in (x, *others))
    joint = pw if pw in (2, 4, 8) and rows_in_order else 1
    across = pw // joint
    columns, vector = width // across, 1
    if across == 1 and rows_in_order:
        row_strides = [each.stride(2) for each in (x, *others)]
        while vector < _WIDEST and all(each % (2 * vector) == 0 for each in (columns, *row_strides)):
            vector *= 2
    return Phases(joint, ph * across, across, height // ph * columns, columns, ph, max(vector, 1))


def shift_of(columns: int) -> int:
    """SHIFT of kernels that feel the division of each pixel by `columns`: that of a power of two, else -1."""
    return columns.bit_length() - 1 if columns & (columns - 1) == 0 else -1


@triton.jit
def _row_and_column(n, columns, SHIFT: tl.constexpr):
    if SHIFT >= 0:
        row, column = n >> SHIFT, n & ((1 << SHIFT) - 1)
    else:
        row, column = n // columns, n % columns
    return row, column


@triton.jit
def group_start(group, across, row_stride, column_stride):
    """Where a group begins in a map."""
    return (group // across).to(tl.int64) * row_stride + (group % across).to(tl.int64) * column_stride


@triton.jit
def phase_pixels(n, columns, ph, pw, row_stride, column_stride, FAR: tl.constexpr, SHIFT: tl.constexpr = -1):
    """Where pixels n of a phase by itself, of `columns` pixels in a row, lie from its first. SHIFT: `shift_of(columns)`, or -1."""
    if FAR:
        n = n.to(tl.int64)
    row, column = _row_and_column(n, columns, SHIFT)
    return row * ph * row_stride + column * pw * column_stride


@triton.jit
def pixel_offsets(t, columns, row_step, column_step, VECTOR: tl.constexpr, FAR: tl.constexpr, SHIFT: tl.constexpr = -1):
    """Where pixels t of a group lie, from its start. SHIFT: `Phases.shift`, or -1."""
    if FAR:
        t = t.to(tl.int64)
    row, column = _row_and_column(t, columns, SHIFT)
    offsets = row * row_step + column * column_step
    if VECTOR > 1:  # to say that they are multiples of 1 would hide what the compiler knows of their strides
        offsets = tl.max_contiguous(tl.multiple_of(offsets, VECTOR), VECTOR)
    return offsets
