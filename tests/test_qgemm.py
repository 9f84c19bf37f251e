"""qgemm against int64 sums and NumPy's float32, bit for bit, on every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from op_checks import FLOATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes, random_weight
from torch.library import opcheck

from mvit_kernels import ops, reference

ZERO_POINTS = [0, 1, 127, 128, 255, -1, -255, 300, -1275]
Tensor = torch.Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


def f32(x) -> np.ndarray:
    return np.asarray(x, dtype=np.float32)


def oracle(a: Tensor, w: Tensor, a_scale: float, a_zero_point, w_scale: Tensor, bias: Tensor, y_scale: Tensor, y_zero_point: Tensor,
           low: int = 0, most: int = 255) -> Tensor:  # fmt: skip
    """The plain sequence, from the definition, in integers, float64 for what is computed once and float32 for the rest."""
    z = np.asarray(a_zero_point, dtype=np.int64)
    sums = (a.numpy().astype(np.int64) - z) @ w.numpy().astype(np.int64).T
    total = f32(a_scale).astype(np.float64) * f32(w_scale).astype(np.float64)
    sums = sums + np.rint(f32(bias).astype(np.float64) / total).astype(np.int64)
    assert np.abs(sums).max(initial=0) < 2**31
    multiplier = f32(total / f32(y_scale).astype(np.float64))
    t = f32(sums.astype(np.int32)) * multiplier
    zero = np.asarray(y_zero_point, dtype=np.int64)
    return torch.from_numpy((np.rint(np.clip(t, f32(low - zero), f32(most - zero))).astype(np.int64) + zero).astype(np.uint8))


def random_call(rows: int, columns: int, depth: int, bits: int = 8, **changes):
    settings = {
        "a_scale": 0.05,
        "a_zero_point": 3,
        "w_scale": torch.rand(columns) * 0.01 + 1e-3,
        "bias": torch.randn(columns),
        "out_dtype": torch.uint8,
        "out_scale": torch.rand(columns) * 0.02 * max(depth, 1) ** 0.5 + 0.01,
        "out_zero_point": torch.randint(-100, 300, (columns,)),
    }
    return random_bytes(rows, depth), random_weight(columns, depth, bits=bits), settings | changes


def both(a: Tensor, weight: Tensor, bits: int = 8, **settings) -> tuple[Tensor, Tensor]:
    packed = ops.pack_weight(weight, bits=bits)
    return ops.qgemm(a, packed, backend="cpu", **settings), ops.qgemm(a, packed, backend="reference", **settings)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 3), (7, 16, 4), (13, 33, 31), (25, 64, 64), (30, 80, 65), (14, 257, 128)], ids=str)
def test_bytes_are_those_of_the_definition(isa, size, bits):
    for zero_point in ZERO_POINTS:
        a, weight, s = random_call(*size, bits, a_zero_point=zero_point)
        expected = oracle(a, weight, s["a_scale"], zero_point, s["w_scale"], s["bias"], s["out_scale"], s["out_zero_point"])
        for y in both(a, weight, bits, **s):
            assert torch.equal(y, expected)


def test_a_zero_point_for_each_input_channel(isa):
    a, weight, s = random_call(13, 33, 31)
    s["a_zero_point"] = z = torch.randint(-1300, 300, (1, 31))
    expected = oracle(a, weight, s["a_scale"], z.numpy(), s["w_scale"], s["bias"], s["out_scale"], s["out_zero_point"])
    for y in both(a, weight, **s):
        assert torch.equal(y, expected)


@pytest.mark.parametrize("bits", [8, 6])
def test_sums_of_extremes(isa, bits):
    most = 127 if bits == 8 else 31
    for sign, depth, zero_point in itertools.product((1, -1), (1, 64, 129, 2880), (0, 255, -1275)):
        a = torch.full((5, depth), 255, dtype=torch.uint8)
        weight = torch.full((17, depth), sign * most, dtype=torch.int8)
        weight[::2, ::2] *= -1
        expected = (a.to(torch.int64) - zero_point) @ weight.to(torch.int64).T
        packed = ops.pack_weight(weight, bits=bits)
        for backend in ("cpu", "reference"):
            y = ops.qgemm_accumulate(a, packed, zero_point, backend=backend)
            assert y.dtype == torch.int32
            assert torch.equal(y.to(torch.int64), expected)


def test_sums_with_zero_points_of_rows_and_of_channels(isa):
    a, weight = random_bytes(9, 21), random_weight(18, 21)
    packed = ops.pack_weight(weight)
    rows, channels = torch.randint(-1300, 300, (9,)), torch.randint(-1300, 300, (1, 21))
    for z, wide in ((rows, rows[:, None]), (channels, channels), (-1275, torch.tensor(-1275))):
        expected = (a.to(torch.int64) - wide) @ weight.to(torch.int64).T
        for backend in ("cpu", "reference"):
            assert torch.equal(ops.qgemm_accumulate(a, packed, z, backend=backend).to(torch.int64), expected)


def test_ties_large_sums_and_both_ends_of_the_clamp(isa):
    """Multiplier 1/2 makes every odd sum a tie; 2^24 is where float32 begins to round sums."""
    weight = torch.ones(1, 1, dtype=torch.int8)
    a = torch.arange(256, dtype=torch.uint8)[:, None]
    settings = {"a_scale": 0.5, "a_zero_point": 100, "w_scale": 1.0, "out_dtype": torch.uint8, "out_scale": 1.0, "out_zero_point": 50}
    expected = torch.tensor([min(max(round((i - 100) / 2) + 50, 0), 255) for i in range(256)], dtype=torch.uint8)[:, None]
    for y in both(a, weight, **settings):
        assert torch.equal(y, expected)
    for offset, scale in itertools.product((2**24, 2**24 + 1, 2**30 + 63, -(2**30)), (1.0, 2.0**-10, 2.0**20)):
        settings = {"a_scale": 1.0, "a_zero_point": 0, "w_scale": 1.0, "bias": torch.tensor([float(offset)]), "out_dtype": torch.uint8}
        y, plain = both(a, weight, out_scale=scale, out_zero_point=-(offset >> 10) % 1000, **settings)
        assert torch.equal(y, plain)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "hard_swish"])
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS], ids=str)
def test_epilogues_of_kernel_and_reference_are_the_same_bits(isa, dtype, activation):
    outputs = {"out_dtype": dtype} | ({} if dtype == torch.uint8 else {"out_scale": None, "out_zero_point": None})
    residuals = [None, random_bytes(13, 37), torch.randint(-32768, 32768, (13, 37)).to(torch.int16)]
    residuals += [] if dtype == torch.uint8 else [torch.randn(13, 37).to(dtype)]
    for residual, of_rows, bits in itertools.product(residuals, (False, True), (8, 6)):
        scaled = residual is not None and not residual.is_floating_point()
        more = {"residual": residual} | ({"residual_scale": 0.07, "residual_zero_point": 11} if scaled else {})
        if of_rows:
            more |= {"a_scale": torch.rand(13) + 0.01, "a_zero_point": torch.randint(-300, 300, (13,), dtype=torch.int32)}
        if dtype == torch.uint8:
            more["table"] = random_bytes(256)
        a, weight, settings = random_call(13, 37, 21, bits, activation=activation, **outputs, **more)
        y, plain = both(a, weight, bits, **settings)
        assert y.dtype == dtype
        assert torch.equal(y, plain)


@pytest.mark.parametrize("out_scale", [0.02, 0.05, 1.0])  # with which 6 is beyond all bytes, among them, and between two
def test_relu6_is_where_bytes_end(isa, out_scale: float):
    for zero_point, bits in ((0, 8), (40, 8), (20, 6)):
        outputs = {"out_scale": out_scale, "out_zero_point": zero_point, "out_bits": bits}
        a, weight, settings = random_call(13, 37, 21, **outputs)
        y, plain = both(a, weight, activation="relu6", **settings)
        relu, _ = both(a, weight, activation="relu", **settings)
        assert torch.equal(y, plain)
        assert torch.equal(y, relu.clamp(max=min(round(6 / out_scale) + zero_point, 255)))
    with pytest.raises(ValueError, match="qgemm: activation: expected relu6 for bytes only"):
        ops.qgemm(a, ops.pack_weight(weight), activation="relu6", **settings | {"residual_scale": 0.1, "residual_zero_point": 3})


def test_floats_are_the_real_product():
    a, weight, settings = random_call(40, 30, 50, out_dtype=torch.float32, out_scale=None, out_zero_point=None, activation="silu")
    real = 0.05 * (a.double() - 3) @ (weight.double() * settings["w_scale"].double()[:, None]).T + settings["bias"].double()
    for y in both(a, weight, **settings):
        torch.testing.assert_close(y.double(), torch.nn.functional.silu(real), rtol=1e-5, atol=2e-4)


def test_the_residual_stream(isa):
    stream = torch.randint(-32768, 32768, (9, 33)).to(torch.int16)
    a, weight, settings = random_call(9, 33, 20, out_dtype=torch.int16, out_scale=1e-3, out_zero_point=None)
    for residual in (None, stream):
        y, plain = both(a, weight, residual=residual, **settings)
        assert y.dtype == torch.int16
        assert torch.equal(y, plain)
        assert residual is None or (y == 32767).any() or (y == -32768).any()  # it saturates


def test_six_bit_activations():
    a, weight, settings = random_call(9, 20, 33, out_bits=6, a_bits=6)
    y, plain = both(a % 64, weight, **settings)
    assert torch.equal(y, plain)
    assert int(y.max()) <= 63


@needs_native
def test_rows_apart_and_other_strides():
    a, weight, settings = random_call(12, 18, 20)
    packed = ops.pack_weight(weight)
    apart = torch.zeros(12, 50, dtype=torch.uint8)[:, 7:27]
    apart.copy_(a)
    product = ops.prepare_qgemm(packed, backend="cpu", **settings)
    for other in (apart, a.T.contiguous().T, a[:1].expand(12, 20)):
        assert torch.equal(product(other), product(other.contiguous()))


@pytest.mark.parametrize("size", [(0, 5, 7), (5, 0, 7), (5, 7, 0)], ids=str)
def test_empty(isa, size):
    a, weight, settings = random_call(*size)
    y, plain = both(a, weight, **settings)
    assert y.shape == size[:2]
    assert torch.equal(y, plain)


@needs_native
def test_the_same_bits_with_any_threads(threads):
    a, weight, settings = random_call(130, 300, 200)
    prepared = ops.prepare_qgemm(ops.pack_weight(weight), **settings)
    single = ops.prepare_qgemm(ops.pack_weight(weight, bits=8), **settings)
    assert_same_bits_with_any_threads(lambda: [prepared(a), single(a[:1])], threads)


def test_a_prepared_product_is_the_product():
    a, weight, settings = random_call(7, 9, 11)
    packed = ops.pack_weight(weight)
    assert torch.equal(ops.prepare_qgemm(packed, **settings)(a), ops.qgemm(a, packed, **settings))
    scale, zero = torch.rand(7), torch.randint(-5, 300, (7,), dtype=torch.int32)
    settings |= {"a_scale": None, "a_zero_point": None}
    dynamic = ops.prepare_qgemm(packed, **settings)
    settings |= {"a_scale": scale, "a_zero_point": zero}
    assert torch.equal(dynamic(a, a_scale=scale, a_zero_point=zero), ops.qgemm(a, packed, **settings))


def test_operator_compiles_and_exports():
    a, weight, settings = random_call(7, 9, 11)
    prepared = ops.prepare_qgemm(ops.pack_weight(weight), **settings)
    op = torch.ops.mvit_kernels.qgemm.default
    sizes = prepared.weight.columns, prepared.weight.depth, prepared.weight.bits
    opcheck(op, (a, prepared.weight.data, prepared.channels, None, None, None, None, *sizes, *prepared.settings))
    opcheck(torch.ops.mvit_kernels.qgemm_accumulate.default, (a, prepared.weight.data, torch.tensor([[3]], dtype=torch.int32), *sizes))
    assert_compiles_and_exports(prepared, [a], [a[:5]], dynamic=[axes(0)])


BAD = [
    ({"a_scale": 0.0}, r"a_scale: expected a positive finite value between 2\^-126 and 2\^126, got 0.0"),
    ({"a_scale": float("nan")}, "a_scale: expected a positive finite value"),
    ({"w_scale": -1.0}, "w_scale: expected a positive finite value .* got -1.0"),
    ({"w_scale": torch.tensor(4 * [1.0] + [0.0] + 4 * [2.0])}, "w_scale: expected positive finite values .* got 0 to 2"),
    ({"w_scale": 1e-39}, "w_scale: expected a positive finite value .* got 1.*e-39"),
    ({"w_scale": torch.ones(3)}, r"w_scale: expected one value or 9, got shape \(3,\)"),
    ({"out_scale": float("inf")}, "out_scale: expected a positive finite value"),
    ({"out_scale": None}, "out_scale: expected a scale for out_dtype torch.uint8"),
    ({"out_dtype": torch.float32}, "out_scale: expected None for out_dtype torch.float32"),
    ({"out_dtype": torch.float64}, "out_dtype: expected one of"),
    ({"out_zero_point": None}, "out_zero_point: expected an integer"),
    ({"out_zero_point": 2**20 + 1}, r"out_zero_point: expected \|zero_point\| <= 2\^20, got 1048577"),
    ({"a_zero_point": 0.5}, "a_zero_point: expected an integer"),
    ({"a_zero_point": 2**31}, "a_zero_point: expected an int32, got 2147483648"),
    ({"a_zero_point": -(2**31)}, r"a_zero_point: expected sums below 2\^31"),
    ({"bias": torch.full((9,), 1e9)}, r"bias: expected \|bias\| < 2\^31 a_scale w_scale, got 1e\+09"),
    ({"bias": torch.full((9,), float("nan"))}, "bias: expected finite values, got nan"),
    ({"activation": "tanh"}, "activation: expected one of none, relu, silu, gelu, hard_swish, relu6, got 'tanh'"),
    ({"table": torch.zeros(3)}, r"table: expected uint8 of shape \(256,\)"),
    ({"a_bits": 7}, "a_bits: expected 8 or 6, got 7"),
    ({"out_scale": 1e-30, "a_scale": 1.0}, r"scales: expected ratios of scales between 2\^-64 and 2\^64"),
    ({"residual": torch.zeros(7, 9, dtype=torch.uint8)}, "residual: expected a residual_scale with it"),
    ({"residual": torch.zeros(7, 8, dtype=torch.uint8), "residual_scale": 1.0}, r"residual: expected shape \(7, 9\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_values(change, message):
    a, weight, settings = random_call(7, 9, 11, **change)
    with pytest.raises(ValueError, match=f"qgemm: {message}"):
        ops.qgemm(a, ops.pack_weight(weight), **settings)


def test_bad_tensors():
    a, weight, settings = random_call(7, 9, 11)
    packed = ops.pack_weight(weight)
    for bad, error, message in (
        (a.float(), TypeError, "a: expected dtype uint8, got float32"),
        (a[0], ValueError, "a: expected 2 dimensions"),
        (a[:, :5], ValueError, r"a: expected shape \(M, 11\), got \(7, 5\)"),
        ("a", TypeError, "a: expected a tensor"),
    ):
        with pytest.raises(error, match=f"qgemm: {message}"):
            ops.qgemm(bad, packed, **settings)
    with pytest.raises(TypeError, match="qgemm: weight: expected a PackedWeight, got Tensor"):
        ops.qgemm(a, weight, **settings)
    with pytest.raises(TypeError, match="qgemm: residual: expected dtype"):
        ops.qgemm(a, packed, residual=torch.zeros(7, 9), residual_scale=1.0, **settings)
    dynamic = ops.prepare_qgemm(packed, **settings | {"a_scale": None, "a_zero_point": None})
    with pytest.raises(ValueError, match="qgemm: a_zero_point: expected both"):
        dynamic(a, a_scale=torch.ones(7))
    with pytest.raises(ValueError, match="qgemm: a_scale: expected one value for each of 7 rows, got 3"):
        dynamic(a, a_scale=torch.ones(3), a_zero_point=torch.zeros(7, dtype=torch.int32))


def test_polynomials_are_near_the_functions():
    x = torch.linspace(-20, 20, 100001, dtype=torch.float64)
    exact = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "hard_swish": torch.nn.functional.hardswish}
    for name, function in exact.items():
        assert (reference.qactivate(x.float(), name).double() - function(x)).abs().max() < 7e-5
