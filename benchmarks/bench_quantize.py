"""quantize, dequantize and quantize_rows on maps and tokens of the networks, against PyTorch's own and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import MAPS, copy_of_bytes

from mvit_kernels import ops, reference

SCALE, ZERO_POINT = 0.03, 120
# rows, depth
TOKENS = [(1024, 64), (1024, 144), (256, 192), (64, 240), (8192, 144)]


@pytest.fixture(params=MAPS, ids=str)
def x(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(request.param).to(memory_format=torch.channels_last)


def test_quantize(in_turn, x):
    channels = x.shape[1]
    scales, zero_points = torch.rand(channels) + 0.01, torch.randint(0, 256, (channels,), dtype=torch.int32)
    contenders = {
        "cpu": functools.partial(ops.quantize, x, SCALE, ZERO_POINT, backend="cpu"),
        "cpu, each channel": functools.partial(ops.quantize, x, scales, zero_points, backend="cpu"),
        "torch": functools.partial(torch.quantize_per_tensor, x, SCALE, ZERO_POINT, torch.quint8),
        "copy": copy_of_bytes(5 * x.numel()),
    }
    expected = reference.quantize(x, torch.tensor(SCALE), torch.tensor(ZERO_POINT))
    assert torch.equal(contenders["cpu"](), expected)
    assert torch.equal(contenders["cpu, each channel"](), ops.quantize(x, scales, zero_points, backend="reference"))
    assert (contenders["torch"]().int_repr().int() - expected.int()).abs().max() <= 1  # it rounds after adding the zero-point
    in_turn(f"quantize {tuple(x.shape)}", contenders, 30, 4)


def test_dequantize(in_turn, x):
    q = ops.quantize(x, SCALE, ZERO_POINT)
    theirs = torch._make_per_tensor_quantized_tensor(q, SCALE, ZERO_POINT)
    contenders = {
        "cpu": functools.partial(ops.dequantize, q, SCALE, ZERO_POINT, backend="cpu"),
        "cpu, bfloat16": functools.partial(ops.dequantize, q, SCALE, ZERO_POINT, torch.bfloat16, backend="cpu"),
        "torch": theirs.dequantize,
        "copy": copy_of_bytes(5 * x.numel()),
    }
    expected = reference.dequantize(q, torch.tensor(SCALE), torch.tensor(ZERO_POINT))
    assert torch.equal(contenders["cpu"](), expected)
    torch.testing.assert_close(contenders["torch"](), expected)
    in_turn(f"dequantize {tuple(x.shape)}", contenders, 30, 4)


@pytest.mark.parametrize(("rows", "depth"), TOKENS)
def test_quantize_rows(in_turn, rows, depth):
    x = torch.randn(rows, depth)
    contenders = {
        "cpu": functools.partial(ops.quantize_rows, x, backend="cpu"),
        "reference": functools.partial(ops.quantize_rows, x, backend="reference"),
        "copy": copy_of_bytes(5 * x.numel()),
    }
    assert all(map(torch.equal, contenders["cpu"](), contenders["reference"]()))
    in_turn(f"quantize_rows {rows}x{depth}", contenders, 30, 4)
