"""qlookup, and the tables of activations."""

from __future__ import annotations

import math

import pytest
import torch
from op_checks import FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes

from mvit_kernels import ops, reference

Tensor = torch.Tensor


def test_every_tail(backend: str, poison) -> None:
    table = random_bytes(256)
    for count in (*range(130), 255, 256, 1000, 70_001):
        x = random_bytes(count)
        assert ops.qlookup(x, table, backend=backend).tolist() == [table.tolist()[i] for i in x.tolist()]


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_shape_and_strides(fmt: str, backend: str) -> None:
    table = random_bytes(256)
    for size in ((), (2, 0, 3), (2, 3, 4, 5), (1, 65, 3, 3), (2, 3, 4, 5, 6)):
        x = random_bytes(*size)
        if len(size) == 4:
            x = x.contiguous(memory_format=FORMATS[fmt])
        y = ops.qlookup(x, table, backend=backend)
        assert torch.equal(y, table[x.long()])
        assert len(size) != 4 or y.is_contiguous(memory_format=FORMATS[fmt])
    big = random_bytes(4, 6, 8, 10)
    for x in (big[..., ::2], big.transpose(2, 3), big[:, :1].expand(-1, 3, -1, -1)):
        assert torch.equal(ops.qlookup(x, table.flip(0).flip(0)[:], backend=backend), table[x.long()])
    assert torch.equal(ops.qlookup(big, table.repeat_interleave(2)[::2], backend=backend), table[big.long()])


@pytest.mark.parametrize("name", reference.QACTIVATIONS)
@pytest.mark.parametrize("bits", [8, 6])
def test_activation_tables(name: str, bits: int) -> None:
    functions = {
        "none": lambda x: x,
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1 + math.exp(-x)),
        "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
        "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    }
    table = reference.activation_table(name, 0.05, 131, 0.03, 21, bits)
    s, t = (float(torch.tensor(each)) for each in (0.05, 0.03))
    expected = [min(max(round(functions[name](s * (q - 131)) / t) + 21, 0), 2**bits - 1) for q in range(256)]
    assert table.dtype == torch.uint8
    assert table.tolist() == expected


def test_a_table_is_what_dequantizing_and_quantizing_gives() -> None:
    q = torch.arange(256, dtype=torch.uint8)
    y = ops.qlookup(q, reference.activation_table("silu", 0.04, 128, 0.02, 14))
    by_floats = ops.quantize(torch.nn.functional.silu(ops.dequantize(q, 0.04, 128)), 0.02, 14)
    assert (y.int() - by_floats.int()).abs().max() <= 1


def test_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation: expected one of none, relu, silu, gelu, relu6, hard_swish, got 'tanh'"):
        reference.activation_table("tanh", 1.0, 0, 1.0, 0)


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, table = random_bytes(500_001), random_bytes(256)
    assert_same_bits_with_any_threads(lambda: [ops.qlookup(x, table, backend="cpu")], threads)


def test_opcheck() -> None:
    x = random_bytes(2, 3, 4, 5)
    for each in (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2], x[0]):
        torch.library.opcheck(torch.ops.mvit_kernels.qlookup, (each, random_bytes(256)))


def test_compiles_and_exports() -> None:
    draws = [(random_bytes(batch, 3, 4, 5), random_bytes(256)) for batch in (2, 5)]
    assert_compiles_and_exports(ops.qlookup, *draws, dynamic=(axes(0), None))


X, TABLE = torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(256, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.qlookup(None, TABLE), TypeError, "qlookup: x: expected a tensor, got NoneType"),
        (lambda: ops.qlookup(X, [1]), TypeError, "qlookup: table: expected a tensor, got list"),
        (lambda: ops.qlookup(X.int(), TABLE), TypeError, "qlookup: x: expected dtype uint8, got int32"),
        (lambda: ops.qlookup(X, TABLE.int()), TypeError, "qlookup: table: expected dtype uint8, got int32"),
        (lambda: ops.qlookup(X, TABLE[:255]), ValueError, r"qlookup: table: expected shape \(256,\) on cpu, got \(255,\) on cpu"),
        (lambda: ops.qlookup(X, TABLE[None]), ValueError, r"qlookup: table: expected 1 dimensions, got shape \(1, 256\)"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
