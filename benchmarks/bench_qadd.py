"""qadd on maps of the networks, against PyTorch's quantized addition and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import MAPS, bytes_like, copy_of_bytes

from mvit_kernels import ops

NUMBERS = {"a_scale": 0.03, "a_zero_point": 120, "b_scale": 0.02, "b_zero_point": 100, "out_scale": 0.05, "out_zero_point": 110}


def quantized(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(q, scale, zero_point)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_qadd(in_turn, size):
    a, b = bytes_like(size), bytes_like(size)
    theirs = quantized(a, 0.03, 120), quantized(b, 0.02, 100)
    contenders = {
        "cpu": functools.partial(ops.qadd, a, b, **NUMBERS, backend="cpu"),
        "cpu, silu": functools.partial(ops.qadd, a, b, **NUMBERS, activation="silu", backend="cpu"),
        "torch": functools.partial(torch.ops.quantized.add, *theirs, 0.05, 110),
        "copy": copy_of_bytes(3 * a.numel()),
    }
    expected = ops.qadd(a, b, **NUMBERS, backend="reference")
    assert torch.equal(contenders["cpu"](), expected)
    assert torch.equal(contenders["cpu, silu"](), ops.qadd(a, b, **NUMBERS, activation="silu", backend="reference"))
    assert (contenders["torch"]().int_repr().int() - expected.int()).abs().max() <= 1
    in_turn(f"{size}", contenders, 30, 4)
