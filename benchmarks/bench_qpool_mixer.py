"""qpool_mixer on the maps of EfficientFormer l1 at 224 x 224, beside PyTorch between bytes and a copy of as many bytes.

`factors given` is the op behind it, with what a compiled network holds; the function computes these few numbers a channel in every call.
"""

from __future__ import annotations

import functools

import pytest
import torch
from bench_pool_mixer import MAPS, by_torch
from shapes import bytes_like, copy_of_bytes

from mvit_kernels import ops, reference

NUMBERS = {"a_scale": 0.03, "a_zero_point": 120, "out_scale": 0.04, "out_zero_point": 110}


def between_bytes(x, scale):
    return torch.quantize_per_tensor(by_torch(x.dequantize(), scale), NUMBERS["out_scale"], NUMBERS["out_zero_point"], torch.quint8)


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_forward(in_turn, native, size):
    x, scale = bytes_like(size), torch.rand(size[1])
    theirs = torch._make_per_tensor_quantized_tensor(x, NUMBERS["a_scale"], NUMBERS["a_zero_point"])
    factors = reference.pool_factors(scale, NUMBERS["a_scale"], NUMBERS["out_scale"])
    points = NUMBERS["a_zero_point"], NUMBERS["out_zero_point"]
    contenders = {
        "cpu": functools.partial(ops.qpool_mixer, x, scale, **NUMBERS, backend="cpu"),
        "cpu, factors given": functools.partial(torch.ops.mvit_kernels.qpool_mixer, x, *factors, *points, 8, backend="cpu"),
        "torch": functools.partial(between_bytes, theirs, scale[:, None, None]),
    }
    expected = ops.qpool_mixer(x, scale, **NUMBERS, backend="reference")
    assert torch.equal(contenders["cpu"](), expected)
    assert torch.equal(contenders["cpu, factors given"](), expected)
    assert (contenders["torch"]().int_repr().int() - expected.int()).abs().max() <= 1  # it rounds in another order
    contenders["copy"] = copy_of_bytes(2 * x.numel())
    in_turn(f"{size}", contenders, 30, 10)
