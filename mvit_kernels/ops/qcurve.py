"""Curves (`reference.activation_curve`) as tables of steps, which a GPU looks up: csrc/cuda/primitives/qcurve.cuh has the reasons."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels import reference

Tensor = torch.Tensor
_HEAD, _HEAD_SIZE, _MOST = 200, 16, 4096  # int16 numbers before the head and of it; entries
_WHOLE = 0x4B400000  # bits of 1.5 * 2^23


class StepCurve(NamedTuple):
    """numbers: int16, those of the curve, a head, and entries. entries: how many; 0 where steps cannot say what the curve does."""

    numbers: Tensor
    entries: int


def step_curve(curve: Tensor) -> StepCurve:
    """By the widest buckets of x that hold a step at most."""
    own = curve.cpu()
    y = reference.apply_curve(torch.arange(-(2**15), 2**15).float(), own).long()
    head, entries = _steps(y)
    numbers = torch.cat([own, own.new_zeros(_HEAD - len(own)), torch.frombuffer(bytearray(head), dtype=torch.int16), entries])
    return StepCurve(F.pad(numbers, (0, -len(numbers) % 8)).to(curve.device), len(entries))


def _steps(y: Tensor) -> tuple[bytes, Tensor]:
    """(head, entries) of the results of every int16 number."""
    changes = (y.diff() != 0).nonzero().flatten() - 2**15
    low, high = (int(changes[0]), int(changes[-1]) + 1) if len(changes) else (0, 0)
    for shift in range(7, 0, -1):
        width = 2**shift
        # Of every bucket that a number from low to high is in.
        first = low // width * width
        count = (high - first) // width + 1
        if count > _MOST:
            break
        begin = torch.arange(count) * width  # behind first
        inside = y[(first + begin[:, None] + torch.arange(width) + 2**15).clamp(0, 2**16 - 1)]
        steps = inside.diff(dim=1)
        falls, rises = (steps < 0).any(1), (steps > 0).any(1)
        turn = int(falls.nonzero().max()) + 1 if falls.any() else 0  # the first bucket that does not fall any more
        if bool((steps.abs().sum(1) > 1).any()) or bool(rises[:turn].any()):
            continue
        inside[:turn] = inside[:turn].flip(1)
        nearest = torch.where(begin < turn * width, turn * width - begin - width + 1, begin - turn * width)
        before = torch.where(falls | rises, (inside == inside[:, :1]).sum(1), 256)
        entries = (256 * inside[:, 0] + 256 - before - nearest + 2**15) % 2**16 - 2**15
        address = -2 * (_WHOLE + first >> shift) % 2**32
        head = struct.pack("<2fIIii8x", low, high, _WHOLE + first + turn * width, address, count, shift)
        return head, entries.to(torch.int16)
    return bytes(2 * _HEAD_SIZE), torch.empty(0, dtype=torch.int16)
