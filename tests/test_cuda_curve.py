"""Curves as the CUDA kernels look them up: every int16 number, what rounds to it, and what is beyond, without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvit_kernels import reference
from mvit_kernels.ops.qcurve import StepCurve, step_curve

Tensor = torch.Tensor
WHOLE = torch.arange(-33000, 33001).float()
FAR = torch.tensor([1e5, -1e5, 1e30, -1e30, 131072.0, -131073.0, float("inf"), -float("inf"), -0.0, 0.4999999701976776])
EVERY_X = torch.cat([WHOLE, WHOLE + 0.5, WHOLE + 0.25, WHOLE - 0.25, FAR])
SCALES = (0.012, 0.021, 0.03, 0.047, 0.05, 0.08, 0.1, 0.2, 0.7, 3.0)


def look_up(steps: StepCurve, x: Tensor) -> Tensor:
    """By the instructions of csrc/cuda/primitives/qcurve.cuh."""
    raw = steps.numbers.numpy()
    low, high = raw[200:204].view(np.float32)
    turn, address, count, shift = (int(each) for each in raw[204:212].view(np.uint32))
    entries = raw[216 : 216 + count].view(np.uint16).astype(np.uint32)
    inside = np.minimum(np.maximum(x.numpy(), low), high)
    bits = (inside + np.float32(1.5 * 2**23)).view(np.uint32)
    places = 2 * (bits >> shift) + np.uint32(address)
    assert not (places % 2).any()
    assert (places // 2 < count).all()
    distance = np.abs(bits.astype(np.int64) - turn).astype(np.uint32)
    return torch.from_numpy((distance + entries[places // 2] >> 8 & 255).astype(np.uint8))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", reference.CURVES)
def test_all_numbers(name: str, bits: int) -> None:
    found = 0
    zero_points = (0, 1, 7, 14, 40, 2**bits - 1)
    for scale in SCALES:
        for zero_point in zero_points:
            curve = reference.activation_curve(name, scale, zero_point, bits)
            steps = step_curve(curve)
            assert torch.equal(steps.numbers[:196], curve)
            assert len(steps.numbers) % 8 == 0
            if steps.entries == 0:
                assert not steps.numbers[200:].any()
                continue
            found += 1
            assert torch.equal(look_up(steps, EVERY_X), reference.apply_curve(EVERY_X, curve))
    assert found >= 0.9 * len(SCALES) * len(zero_points)


def test_a_curve_of_one_byte() -> None:
    curve = torch.zeros(196, dtype=torch.int16)
    curve[192:195] = torch.tensor([7, 300, 0])
    assert torch.equal(look_up(step_curve(curve), EVERY_X), reference.apply_curve(EVERY_X, curve))


def test_tables_of_usual_scales_are_small() -> None:
    for scale in (0.047, 0.1):
        for zero_point in (0, 20):
            assert 0 < step_curve(reference.activation_curve("silu", scale, zero_point)).entries < 800


@pytest.mark.parametrize("scale", [0.001, 0.0005])
def test_fine_scales_have_too_many_steps(scale: float) -> None:
    """What an int16 number then is of a byte leaves no wide buckets."""
    assert step_curve(reference.activation_curve("silu", scale, 3)).entries == 0


def test_curves_that_go_to_and_fro_have_no_steps() -> None:
    curve = torch.zeros(196, dtype=torch.int16)
    curve[0:64:2] = 32000
    curve[192:195] = torch.tensor([3, 100, 255])
    assert step_curve(curve).entries == 0
