"""qattention at the shapes of EfficientFormer l1 and V2 s0, beside the same in float32: this package's kernel, and PyTorch between bytes.

The floor is that of floats: whole numbers are multiplied by the tiles of floats (csrc/cpu/ops/qattention.h).
"""

from __future__ import annotations

import functools

import pytest
import torch
from bench_attention import SHAPES, by_torch

from mvit_kernels import ops

SCALES, ZERO_POINTS = (0.03, 0.03, 0.02), (120, 131, 101)
OUT_ZERO_POINT = 127


def quantized(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return torch._make_per_tensor_quantized_tensor(q, scale, zero_point)


def between_bytes(q, k, v, heads, mixtures, out_scale):
    y = by_torch(*(x.dequantize() for x in (q, k, v)), heads, **mixtures)
    return torch.quantize_per_tensor(y, out_scale, OUT_ZERO_POINT, torch.quint8)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(in_turn, native, shape, batch):
    inputs, mixtures = [torch.randint_like(x, 256).to(torch.uint8) for x in shape.tensors(batch)], shape.mixtures()
    theirs = [quantized(*each) for each in zip(inputs, SCALES, ZERO_POINTS, strict=True)]
    reals = [x.dequantize() for x in theirs]
    out_scale = float(by_torch(*reals, shape.heads, **mixtures).abs().max()) / 127
    settings = {f"{name}_scale": scale for name, scale in zip("qkv", SCALES, strict=True)}
    settings |= {f"{name}_zero_point": zero_point for name, zero_point in zip("qkv", ZERO_POINTS, strict=True)}
    settings |= {"out_scale": out_scale, "out_zero_point": OUT_ZERO_POINT, "scale": shape.depth**-0.5, **mixtures}
    ours, exact = (ops.prepare_qattention(shape.heads, **settings, backend=backend) for backend in ("cpu", "reference"))
    contenders = {
        "cpu": functools.partial(ours, *inputs),
        "attention": functools.partial(ops.attention, *reals, shape.heads, **mixtures, backend="cpu"),
        "torch": functools.partial(between_bytes, *theirs, shape.heads, mixtures, out_scale),
    }
    assert torch.equal(contenders["cpu"](), exact(*inputs))
    steps = (contenders["torch"]().int_repr().int() - contenders["cpu"]().int()).abs()
    # Weights have 8 bits here. Of 12544 keys, those that are rounded to nothing weigh much together.
    assert steps.float().mean() <= 1
    in_turn(f"{shape}, batch {batch}", contenders, 30, 10, operations=shape.operations(batch))
