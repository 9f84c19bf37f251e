"""Activations on int16 numbers: near the functions, the same bits in every product, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from op_checks import needs_native
from q_checks import assert_compiles_and_exports, both_backends, random_bytes, random_packed_weight

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
FUNCTIONS = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("out_scale", [0.0005, 0.003, 0.0215, 0.03, 0.0469, 0.25, 3.0])  # the finest steps of GELU and SiLU among them
@pytest.mark.parametrize("bits", [8, 6])
def test_near_the_function(name: str, out_scale: float, bits: int) -> None:
    """What the byte adds is at most half a step; the curve adds a fraction of one, more where int16 leaves few fractions."""
    zero_point = min(round(0.28 / out_scale), 2**bits - 1)
    curve = reference.activation_curve(name, out_scale, zero_point, bits)
    shift = reference.curve_shift(name, out_scale)
    x = torch.cat([torch.linspace(-40, 40, 100_001), torch.linspace(-1, 1, 20_001)]).double() * max(out_scale * 100, 1)
    y = reference.apply_curve((x / (out_scale / 2**shift)).float(), curve)
    exact = FUNCTIONS[name](x) / out_scale + zero_point
    more = 2.5 / 2**shift + (0.1 if out_scale > 1 else 0)  # segments wider than e: it is small then
    assert ((y.double() - exact.clamp(0, 2**bits - 1)).abs() <= 0.5 + more).all()


def test_ends_and_ties() -> None:
    curve = reference.activation_curve("silu", 0.03, 9)
    ends = torch.tensor([-float("inf"), -1e30, -(2.0**17), -32769.0, -32768.0, -32767.0, 0.0, 32767.0, 32768.0, 1e30, float("inf")])
    assert reference.apply_curve(ends, curve).tolist() == [9, 9, 9, 9, 9, 9, 9, 255, 255, 255, 255]


PRODUCT = {"a_scale": 0.02, "a_zero_point": 131, "w_scale": 0.003, "out_dtype": torch.uint8}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 5, 3), (7, 16, 17), (33, 40, 64), (100, 30, 150), (20, 33, 257)], ids=str)
def test_products(name: str, shape, isa: str, poison) -> None:
    rows, depth, columns = shape
    a, bias = random_bytes(rows, depth), 4 * torch.randn(columns)
    for bits, out_scale, scale in ((8, 0.03, 1.0), (6, 0.2, 1.0), (8, 0.0006, 0.02), (8, 0.03, 400.0)):
        weight = random_packed_weight(columns, depth, bits)
        curve = reference.activation_curve(name, out_scale, min(9, 2**bits - 1), bits)
        settings = PRODUCT | {"w_scale": 0.003 * scale, "bias": bias, "out_scale": out_scale, "out_zero_point": 9, "table": curve}
        y = mk.ops.qgemm(a, weight, backend="cpu", **settings)
        assert torch.equal(y, mk.ops.qgemm(a, weight, backend="reference", **settings))
        assert len(y.unique()) > 1 or y.numel() < 20


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [3, 40])
def test_convolutions(kernel: int, channels: int, isa: str, poison) -> None:
    x = random_bytes(2, channels, 17, 16).contiguous(memory_format=torch.channels_last)
    weight = random_packed_weight(48, channels * kernel**2)
    curve = reference.activation_curve("silu", 0.03, 9)
    for stride in (1, 2):
        settings = PRODUCT | {"kernel_size": kernel, "stride": stride, "out_scale": 0.03, "out_zero_point": 9, "table": curve}
        y = mk.ops.qconv2d(x, weight, backend="cpu", **settings)
        assert torch.equal(y, mk.ops.qconv2d(x, weight, backend="reference", **settings))
        assert len(y.unique()) > 10


@pytest.mark.parametrize("channels", [1, 16, 31, 32, 33, 64, 100, 160])
def test_depthwise_convolutions(channels: int, isa: str, poison) -> None:
    x = random_bytes(2, channels, 9, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (channels, 1, 3, 3), dtype=torch.int8)
    curve = reference.activation_curve("silu", 0.03, 9)
    for stride in (1, 2):
        for w_scale in (0.003, 3.0):
            settings = PRODUCT | {"w_scale": w_scale, "stride": stride, "out_scale": 0.03, "out_zero_point": 9, "table": curve}
            y = mk.ops.qdepthwise_conv2d(x, weight, backend="cpu", **settings)
            assert torch.equal(y, mk.ops.qdepthwise_conv2d(x, weight, backend="reference", **settings))


@both_backends
def test_behind_a_norm(backend: str) -> None:
    x = torch.randint(-3000, 3000, (12, 40), dtype=torch.int16)
    weight = random_packed_weight(33, 40)
    settings = {"scale": 0.001, "a_scale": 0.03, "a_zero_point": 120, "w_scale": 0.003, "out_dtype": torch.uint8, "out_scale": 0.03}
    settings |= {"out_zero_point": 9, "table": reference.activation_curve("silu", 0.03, 9)}
    y = mk.ops.qnorm_gemm(x, weight, None, backend=backend, **settings)
    assert torch.equal(y, mk.ops.qnorm_gemm(x, weight, None, backend="reference", **settings))


@needs_native
def test_compile_and_export() -> None:
    curve = reference.activation_curve("silu", 0.03, 9)
    handle = mk.ops.prepare_qgemm(
        random_packed_weight(9, 20), 0.1, 117, 0.01, out_dtype=torch.uint8, out_scale=0.03, out_zero_point=9, table=curve
    )
    assert_compiles_and_exports(lambda a: handle(a), *((random_bytes(rows, 20),) for rows in (6, 8)))


def test_bad_input() -> None:
    for arguments, text in (
        (("relu", 0.03, 0), "name: expected one of silu, gelu, got 'relu'"),
        (("silu", 0.03, -1), r"out_zero_point: expected one in \[0, 255\], got -1"),
        (("silu", 0.0001, 0), "out_scale: expected at least 0.000366211, got 0.0001"),
    ):
        with pytest.raises(ValueError, match=f"activation_curve: {text}"):
            reference.activation_curve(*arguments)
    a, weight, curve = random_bytes(4, 8), random_packed_weight(5, 8), reference.activation_curve("silu", 0.03, 9)
    for more in ({"activation": "silu"}, {"residual": random_bytes(4, 5), "residual_scale": 1.0, "residual_zero_point": 0}):
        with pytest.raises(ValueError, match="qgemm: table: expected no activation, no scales of rows, no residual"):
            mk.ops.qgemm(a, weight, **PRODUCT, out_scale=0.03, out_zero_point=9, table=curve, **more)
    with pytest.raises(ValueError, match=r"qgemm: table: expected uint8 of shape \(256,\) or a curve, int16 of shape \(196,\)"):
        mk.ops.qgemm(a, weight, **PRODUCT, out_scale=0.03, out_zero_point=9, table=curve[:-1])
    with pytest.raises(ValueError, match="qgemm: table: expected None for out_dtype"):
        mk.ops.qgemm(a, weight, **(PRODUCT | {"out_dtype": torch.float32}), table=curve)
