"""qgemm, bytes in and bytes out with bias and requantization, beside oneDNN's int8 linear, on the products of the networks at 256 x 256.

`MVIT_KERNELS_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2` compares what processors without VNNI run. There oneDNN adds products in saturating
int16 and is wrong with weights beyond 64 in size: both get smaller ones, which makes no difference to their speed.
"""

from __future__ import annotations

import functools

import pytest
import torch

from mvit_kernels import ops
from mvit_kernels.ops.backend import native as native_kernels

# M, N, K: every M; small K (16 to 64), the odd N = 1 + 2d of the query-key-value projections, the classifier.
SHAPES = [
    (16384, 32, 16), (16384, 16, 32), (16384, 64, 32), (16384, 32, 64), (16384, 128, 32), (16384, 64, 64),
    (16384, 128, 64), (16384, 128, 128), (4096, 48, 24), (4096, 24, 48), (4096, 48, 128), (4096, 192, 48),
    (4096, 48, 192), (4096, 128, 64), (4096, 64, 128), (4096, 256, 64), (4096, 64, 256), (4096, 256, 128),
    (4096, 128, 256), (4096, 512, 256), (1024, 64, 48), (1024, 96, 64), (1024, 129, 64), (1024, 192, 64),
    (1024, 257, 128), (1024, 128, 128), (1024, 256, 128), (1024, 128, 256), (1024, 288, 144), (1024, 432, 144),
    (1024, 144, 288), (1024, 512, 256), (1024, 513, 256), (1024, 256, 512), (256, 80, 80), (256, 240, 80),
    (256, 193, 96), (256, 385, 192), (256, 192, 192), (256, 384, 192), (256, 192, 384), (256, 768, 384),
    (64, 257, 128), (64, 256, 128), (64, 128, 256), (64, 513, 256), (64, 512, 256), (64, 256, 512),
    (64, 720, 240), (64, 1024, 512), (1, 1000, 320), (1, 1000, 512), (1, 1000, 640), (8, 1000, 512),
]  # fmt: skip
Tensor = torch.Tensor


def operands(rows: int, columns: int, depth: int, bits: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    most = 31 if bits == 6 else 63 if native_kernels is not None and native_kernels.isa() == "avx2" else 127
    weight = torch.randint(-most, most + 1, (columns, depth), dtype=torch.int8)
    return torch.randint(0, 256, (rows, depth), dtype=torch.uint8), weight, torch.randn(columns)


def prepared(weight: Tensor, bias: Tensor, bits: int = 8) -> ops.QGemm:
    scale = 0.02 * weight.shape[1] ** 0.5
    return ops.prepare_qgemm(
        ops.pack_weight(weight, bits=bits), 0.02, 113, 0.01, bias, out_dtype=torch.uint8, out_scale=scale, out_zero_point=120, backend="cpu"
    )


def onednn(a: Tensor, weight: Tensor, bias: Tensor) -> functools.partial[Tensor]:
    """The peer; its results may differ by one step, as it rounds another way."""
    rows, depth = a.shape
    columns = weight.shape[0]
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, depth])
    scales, zeros = torch.full((columns,), 0.01), torch.zeros(columns, dtype=torch.int32)
    scale = 0.02 * depth**0.5
    return functools.partial(
        torch.ops.onednn.qlinear_pointwise, a, 0.02, 113, packed, scales, zeros, bias, scale, 120, torch.uint8, "none", [], ""
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bytes_in_bytes_out(in_turn, native, shape):
    rows, columns, depth = shape
    a, weight, bias = operands(*shape)
    ours, theirs = functools.partial(prepared(weight, bias), a), onednn(a, weight, bias)
    assert (ours().int() - theirs().int()).abs().max() <= 1
    operations = 2 * rows * columns * depth
    calls = min(200, max(1, 2 * 10**7 // operations))
    in_turn("x".join(map(str, shape)), {"cpu": ours, "onednn": theirs}, calls=calls, operations=operations, integer=True)


@pytest.mark.parametrize("rows", [1, 1024])
@pytest.mark.parametrize("where", ["cache", "memory"])
def test_six_bits_beside_eight(in_turn, native, rows, where):
    """From memory: as many weights in turn as no cache holds."""
    columns, depth = (1000, 640) if rows == 1 else (256, 256)
    count = 400 if where == "memory" else 1
    a, _, bias = operands(rows, columns, depth)
    products = {}
    for bits in (8, 6):
        weight = operands(1, columns, depth, bits)[1]
        handles = [prepared(weight, bias, bits) for _ in range(count)]
        assert (handles[0](a).int() - onednn(a, weight, bias)().int()).abs().max() <= 1
        turn = [0]

        def call(handles: list[ops.QGemm] = handles, turn: list[int] = turn) -> Tensor:
            turn[0] = (turn[0] + 1) % len(handles)
            return handles[turn[0]](a)

        products[f"int{bits}"] = call
    operations = 2 * rows * columns * depth
    in_turn(f"{rows}x{columns}x{depth} weights from {where}", products, calls=count, operations=operations, integer=True)
