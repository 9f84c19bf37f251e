"""qnorm on the int16 streams of the attention blocks; the product behind it, fused and apart; a product that is added to a stream."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import copy_of

from mvit_kernels import ops, reference

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)

NORM = {"scale": 0.002, "out_scale": 0.04, "out_zero_point": 128}
INPUT = {"a_scale": 0.04, "a_zero_point": 128}
BYTE = {"out_dtype": torch.uint8, "out_scale": 0.05, "out_zero_point": 128}


@pytest.fixture
def x(block) -> torch.Tensor:
    return (1000 * torch.randn(block.side**2, block.d)).to(torch.int16)


@pytest.mark.parametrize("form", ["group", "layer"])
def test_norm(alone, block, x, form, contender):
    sums = reference.stream_sums(x, 1) if form == "group" else None
    if contender == "copy":
        function = copy_of(torch.empty(3 * x.numel() // 4))
    else:
        function = functools.partial(ops.qnorm, x, sums, backend=contender, **NORM)
        assert torch.equal(function(), ops.qnorm(x, sums, backend="reference", **NORM))
    alone(f"{form} {block}", contender, function)


def test_product(in_turn, native, block, x):
    sums, bytes_of_x = reference.stream_sums(x, 1), ops.qnorm(x, reference.stream_sums(x, 1), **NORM)
    weight = ops.pack_weight(torch.randint(-127, 128, (2 * block.d, block.d), dtype=torch.int8))
    fused = ops.prepare_qnorm_gemm(weight, 0.001, scale=NORM["scale"], **INPUT, **BYTE)
    product = ops.prepare_qgemm(weight, *INPUT.values(), 0.001, **BYTE)
    norm = functools.partial(ops.qnorm, x, sums, **NORM)
    assert torch.equal(fused(x, sums), product(norm()))
    contenders = {
        "fused": lambda: fused(x, sums),
        "fused, layer": lambda: fused(x),
        "apart": lambda: product(norm()),
        "product alone": lambda: product(bytes_of_x),
    }
    in_turn(f"norm and product {block}", contenders, calls=10)


def test_collect(in_turn, native, block, x):
    a = torch.randint(0, 256, (block.side**2, 2 * block.d), dtype=torch.uint8)
    weight = ops.pack_weight(torch.randint(-127, 128, (block.d, 2 * block.d), dtype=torch.int8))
    to_stream = ops.prepare_qgemm(weight, *INPUT.values(), 0.001, out_dtype=torch.int16, out_scale=0.002)
    to_bytes = ops.prepare_qgemm(weight, *INPUT.values(), 0.001, **BYTE)
    y, sums = to_stream(a, x, collect=1)
    assert torch.equal(sums, reference.stream_sums(y, 1))
    contenders = {
        "stream and sums": lambda: to_stream(a, x, collect=1),
        "stream": lambda: to_stream(a, x),
        "bytes": lambda: to_bytes(a),
    }
    in_turn(f"added to the stream {block}", contenders, calls=10)
