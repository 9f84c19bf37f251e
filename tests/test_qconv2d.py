"""qconv2d against a convolution of float64 that pads real zeros, and its backends against each other, all at tolerance 0."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, byte_map, random_bytes, random_weight

import mvit_kernels as mk

ZERO_POINTS = [0, 1, 127, 128, 255, -1, -255, 300, -1275]
OUT_DTYPES = [torch.uint8, torch.int16, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1), (2, 2), (3, 3), (5, 7), (1, 4), (9, 1)]
LAST = torch.channels_last

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(columns: int, channels: int, kernel: int, bits: int = 8) -> torch.Tensor:
    return random_weight(columns, channels, kernel, kernel, bits=bits)


def sums(x: torch.Tensor, weight: torch.Tensor, zero_point: int | torch.Tensor, stride: int) -> torch.Tensor:
    """sum (x - z) w over the taps inside, as doubles that hold integers: (B, N, Ho, Wo)."""
    z = torch.as_tensor(zero_point).double().reshape(1, -1, 1, 1)
    return F.conv2d(x.double() - z, weight.double(), stride=stride, padding=weight.shape[2] // 2)


def expected(sum: torch.Tensor, scale: torch.Tensor, out_dtype: torch.dtype, out_scale: float, out_zero_point: int, most: int = 255):
    """What a plain epilogue makes of sums; scale (N,) is s_a s_w in doubles."""
    narrow = out_dtype in (torch.uint8, torch.int16)
    multiplier = (scale / torch.tensor(out_scale).double() if narrow else scale).float().reshape(1, -1, 1, 1)
    x = sum.float() * multiplier
    if out_dtype == torch.uint8:
        return (x.clamp(-(2.0**24), 2.0**24).round().double() + out_zero_point).clamp(0, most).to(torch.uint8)
    if out_dtype == torch.int16:
        return x.clamp(-(2.0**17), 2.0**17).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    return x.to(out_dtype)


def check(
    x: torch.Tensor, weight: torch.Tensor, zero_point: int | torch.Tensor, stride: int, *, out_dtype: torch.dtype = torch.float32,
    second: torch.Tensor | None = None, bits: int = 8, backends: tuple[str, ...] = ("cpu",),
) -> None:  # fmt: skip
    columns = weight.shape[0]
    w_scale, bias = torch.rand(columns) * 0.01 + 0.001, torch.randn(columns)
    scale = torch.tensor(0.02).double() * w_scale.double()
    both = x if second is None else torch.cat([x, second], dim=1)
    sum = sums(both, weight, zero_point, stride) + (bias.double() / scale).round().reshape(1, -1, 1, 1)
    narrow = out_dtype in (torch.uint8, torch.int16)
    out_scale = float(sum.abs().mean() * scale.mean()) / 50 + 1e-3
    right = expected(sum, scale, out_dtype, out_scale, 100)
    for backend in backends:
        y = mk.ops.qconv2d(
            x, mk.ops.pack_weight(weight, bits=bits), kernel_size=weight.shape[2], stride=stride, second=second, a_scale=0.02,
            a_zero_point=zero_point, w_scale=w_scale, bias=bias, out_dtype=out_dtype, out_scale=out_scale if narrow else None,
            out_zero_point=100 if out_dtype == torch.uint8 else None, backend=backend,
        )  # fmt: skip
        assert y.dtype == out_dtype
        assert y.is_contiguous(memory_format=LAST)
        assert torch.equal(y, right)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 16, 33, 64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_tail_and_zero_point(kernel: int, channels: int, isa: str) -> None:
    for number, zero_point in enumerate(ZERO_POINTS):
        columns, bits = (1, 7, 16, 17, 33, 65, 80, 145, 48)[number], 8 if number % 2 else 6
        weight = weights(columns, channels, kernel, bits)
        for stride in (1, 2):
            height, width = SIZES[(number + stride) % len(SIZES)]
            check(byte_map(2, channels, height, width), weight, zero_point, stride, bits=bits)


def check_the_border(size: tuple[int, int], backend: str) -> None:
    """A map of one value tells real zeros outside of it from anything else: sums differ at its border only."""
    for stride in (1, 2):
        for zero_point in ZERO_POINTS:
            for value in {0, 255, min(max(zero_point, 0), 255)}:
                x = torch.full((1, 5, *size), value, dtype=torch.uint8)
                check(x, weights(9, 5, 3), zero_point, stride, backends=(backend,))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_border_of_constant_maps(size: tuple[int, int], isa: str) -> None:
    check_the_border(size, "cpu")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_border_of_constant_maps_in_the_reference(size: tuple[int, int]) -> None:
    check_the_border(size, "reference")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_zero_points_of_channels(kernel: int, stride: int, isa: str) -> None:
    for z in (torch.randint(0, 256, (9,)), torch.randint(-1500, 1500, (1, 9)), torch.tensor([0, 255, 256, -1, 3, 300, 128, -1275, 7])):
        for height, width in SIZES:
            check(byte_map(2, 9, height, width), weights(20, 9, kernel), z, stride, backends=("cpu", "reference"))


@pytest.mark.parametrize("out_dtype", OUT_DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_result(kernel: int, out_dtype: torch.dtype, isa: str) -> None:
    for bits in (8, 6):
        for zero_point in (3, -300):
            for stride in (1, 2):
                check(
                    byte_map(2, 17, 9, 6), weights(37, 17, kernel, bits), zero_point, stride, out_dtype=out_dtype, bits=bits,
                    backends=("cpu", "reference"),
                )  # fmt: skip


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_two_inputs(kernel: int, stride: int, isa: str) -> None:
    for channels, beside in ((1, 1), (3, 16), (16, 16), (33, 5)):
        for zero_point in (7, 300, torch.arange(channels + beside) * 20 - 100):
            for height, width in SIZES:
                x, second = byte_map(2, channels, height, width), byte_map(2, beside, height, width)
                check(x, weights(19, channels + beside, kernel), zero_point, stride, second=second, backends=("cpu", "reference"))


# Of the networks, and with several blocks, chunks and ranges of columns; of constant bytes and weights all at their ends.
@pytest.mark.parametrize(
    "shape", [(1, 3, 16, 2, 64, 48), (2, 48, 48, 1, 16, 16), (1, 128, 40, 1, 8, 8), (3, 80, 160, 1, 8, 8), (1, 64, 96, 2, 17, 33)], ids=str
)  # fmt: skip
def test_larger_maps(shape: tuple[int, ...], isa: str) -> None:
    batch, channels, columns, stride, height, width = shape
    for bits in (8, 6):
        for zero_point in (128, -1275):
            check(byte_map(batch, channels, height, width), weights(columns, channels, 3, bits), zero_point, stride, bits=bits)
    for sign in (-1, 1):
        full = torch.full((batch, channels, height, width), 255, dtype=torch.uint8)
        check(full, torch.full((columns, channels, 3, 3), sign * 127, dtype=torch.int8), 0, stride)
        check(full, torch.full((columns, channels, 3, 3), sign * 31, dtype=torch.int8), 0, stride, bits=6)


# Large enough for minimal filtering: C, C2, N, H, W.
FILTERED = [(32, 0, 32, 16, 16), (33, 0, 81, 13, 20), (48, 0, 48, 15, 16), (40, 37, 70, 16, 14), (64, 64, 64, 24, 9)]


def is_filtered(weight: torch.Tensor, bits: int = 8, **options) -> bool:
    prepared = mk.ops.prepare_qconv2d(mk.ops.pack_weight(weight, bits=bits), 0.1, 0, kernel_size=3, **options)
    return prepared.filtered is not None


@pytest.mark.parametrize("zero_point", [0, 200, 300, -1275])
@pytest.mark.parametrize("shape", FILTERED, ids=str)
def test_minimal_filtering(shape: tuple[int, ...], zero_point: int, isa: str) -> None:
    channels, beside, columns, height, width = shape
    second = byte_map(2, beside, height, width) if beside else None
    for out_dtype, bits in ((torch.uint8, 8), (torch.float32, 6)):
        weight = weights(columns, channels + beside, 3, bits)
        assert is_filtered(weight, bits, second_channels=beside)
        check(byte_map(2, channels, height, width), weight, zero_point, 1, second=second, out_dtype=out_dtype, bits=bits)


def test_minimal_filtering_at_the_ends_of_what_it_holds(isa: str) -> None:
    """The largest sums that fit, 127 * 9 * 229 < 2^18, and one channel more, which is summed directly."""
    for value in (0, 255):
        x = torch.full((1, 230, 16, 12), value, dtype=torch.uint8).contiguous(memory_format=LAST)
        x[..., 7:, 5:] = torch.randint(0, 2, (1, 230, 9, 7)) * 255
        for weight in (
            torch.full((32, 230, 3, 3), 127, dtype=torch.int8),
            torch.randint(0, 2, (32, 230, 3, 3)).mul(254).sub(127).to(torch.int8),
        ):
            assert is_filtered(weight[:, :229])
            assert not is_filtered(weight)
            for z in (0, 255, 300):
                check(x[:, :229], weight[:, :229], z, 1)
            check(x, weight, 0, 1)


def test_minimal_filtering_with_every_epilogue(isa: str) -> None:
    x, residual, table = byte_map(2, 32, 13, 16), random_bytes(2, 40, 13, 16), torch.randperm(256).to(torch.uint8)
    for options in (
        {"out_dtype": torch.uint8, "out_scale": 0.7, "out_zero_point": torch.arange(40), "table": table},
        {"out_dtype": torch.uint8, "out_scale": 0.7, "out_zero_point": 9, "activation": "silu", "residual_scale": 0.1},
        {"out_dtype": torch.int16, "out_scale": 0.01},
        {"activation": "relu", "residual_scale": 0.1, "residual_zero_point": 30},
        {"out_dtype": torch.bfloat16, "activation": "gelu"},
    ):
        weight, bias = mk.ops.pack_weight(weights(40, 32, 3)), torch.randn(40)
        y, right = (
            mk.ops.prepare_qconv2d(weight, 0.02, -70, 0.003, bias, kernel_size=3, backend=backend, **options)(
                x, residual=residual if "residual_scale" in options else None
            )
            for backend in ("cpu", "reference")
        )
        assert torch.equal(y, right)


@pytest.mark.slow
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_every_size_and_depth(zero_point: int, isa: str) -> None:
    for height in range(1, 14):
        for width in range(1, 14):
            channels, columns = (height * 7 + width * 3) % 70 + 1, (height * 11 + width) % 90 + 1
            for stride in (1, 2):
                for bits in (8, 6):
                    check(byte_map(1, channels, height, width), weights(columns, channels, 3, bits), zero_point, stride, bits=bits)


RESIDUALS = {
    torch.uint8: (torch.uint8, torch.int16),
    torch.int16: (torch.int16,),
    torch.float32: (torch.float32, torch.uint8, torch.int16),
    torch.bfloat16: (torch.bfloat16, torch.uint8),
    torch.float16: (torch.float16, torch.int16),
}


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "hard_swish"])
@pytest.mark.parametrize("out_dtype", OUT_DTYPES, ids=str)
def test_epilogues_are_the_references(out_dtype: torch.dtype, activation: str | None, isa: str) -> None:
    if out_dtype == torch.int16 and activation:
        return
    x, narrow = byte_map(2, 20, 7, 10), out_dtype in (torch.uint8, torch.int16)
    for kernel, zero_point, stride in ((3, 300, 1), (3, 5, 2), (1, -7, 2)):
        weight = mk.ops.pack_weight(weights(37, 20, kernel))
        for dtype in (None, *RESIDUALS[out_dtype]):
            size = (2, 37, 7, 10) if stride == 1 else (2, 37, 4, 5)
            residual = None if dtype is None else torch.randn(size).to(dtype) if dtype.is_floating_point else torch.randint(0, 256, size)
            residual = residual if residual is None else residual.to(dtype)
            integral = dtype is not None and not dtype.is_floating_point and out_dtype != torch.int16
            table = torch.randperm(256).to(torch.uint8) if out_dtype == torch.uint8 and stride == 2 else None
            y, right = (
                mk.ops.qconv2d(
                    x, weight, kernel_size=kernel, stride=stride, a_scale=0.02, a_zero_point=zero_point, w_scale=0.003,
                    bias=torch.linspace(-1, 1, 37), activation=activation, residual=residual, residual_scale=0.05 if integral else None,
                    residual_zero_point=90 if dtype == torch.uint8 else None, out_dtype=out_dtype, out_scale=0.7 if narrow else None,
                    out_zero_point=torch.arange(37) * 4 if out_dtype == torch.uint8 else None, table=table, backend=backend,
                )
                for backend in ("cpu", "reference")
            )  # fmt: skip
            assert torch.equal(y, right)


@pytest.mark.parametrize("kernel", [1, 3])
def test_any_strides(kernel: int, isa: str) -> None:
    big, weight = random_bytes(3, 12, 9, 14), weights(19, 12, kernel)
    last = big.contiguous(memory_format=LAST)
    views = [big, big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1)]
    for x in (*views, last[..., 3:9], last[:, :, ::2], byte_map(3, 20, 9, 14)[:, 3:15]):
        for stride in (1, 2):
            check(x, weight, 9, stride)
            check(x[:, :5], weight, 300, stride, second=x[:, 5:])
    x, one = big[:, 3:4], big[:, 4:5].contiguous()
    check(x, weights(5, 1, kernel), 9, 1)
    check(one, weights(5, 2, kernel), 9, 2, second=x)
    if kernel == 3:
        many = byte_map(3, 90, 16, 18)[:, 3:85, :, 1:17]
        check(many[:, :40], weights(35, 82, 3), 9, 1, second=many[:, 40:])


def test_six_bits_of_activations(isa: str) -> None:
    x, weight = byte_map(1, 20, 8, 8, most=63), weights(20, 20, 3, bits=6)
    y, right = (
        mk.ops.qconv2d(
            x, mk.ops.pack_weight(weight, bits=6), kernel_size=3, a_scale=0.1, a_zero_point=70, w_scale=0.02, out_dtype=torch.uint8,
            out_scale=2.0, out_zero_point=20, a_bits=6, out_bits=6, backend=backend,
        )
        for backend in ("cpu", "reference")
    )  # fmt: skip
    assert torch.equal(y, right)
    assert torch.equal(
        y, expected(sums(x, weight, 70, 1), torch.tensor([0.1]).double() * torch.tensor([0.02]).double(), torch.uint8, 2.0, 20, 63)
    )


def handle(zero_point: int = 300, **options) -> mk.ops.QConv2d:
    weight = mk.ops.pack_weight(weights(40, 24, 3))
    return mk.ops.prepare_qconv2d(weight, 0.02, zero_point, torch.rand(40) * 0.01 + 0.001, torch.randn(40), kernel_size=3, **options)


@needs_native
@pytest.mark.parametrize("zero_point", [7, 300])
@pytest.mark.parametrize("size", [(2, 17, 16), (1, 32, 32), (1, 4, 4), (5, 8, 8)], ids=str)
def test_same_bits_on_any_number_of_threads_and_from_several(size, zero_point: int, threads) -> None:
    batch, height, width = size
    prepared = handle(zero_point, second_channels=8, activation="silu", backend="cpu")
    x, second = byte_map(batch, 16, height, width), byte_map(batch, 8, height, width)
    many = mk.ops.prepare_qconv2d(mk.ops.pack_weight(weights(40, 72, 3)), 0.02, zero_point, kernel_size=3, backend="cpu")
    other = byte_map(batch, 72, height, width)
    assert_same_bits_with_any_threads(lambda: [prepared(x, second), many(other)], threads)


@both_backends
@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch(kernel: int, backend: str) -> None:
    weight = mk.ops.pack_weight(weights(6, 5, kernel))
    y = mk.ops.qconv2d(
        byte_map(0, 5, 5, 4), weight, kernel_size=kernel, stride=2, a_scale=1.0, a_zero_point=3, w_scale=1.0, backend=backend
    )
    assert y.shape == (0, 6, 3, 2)


def test_a_weight_of_four_axes_is_packed_by_taps() -> None:
    weight = weights(5, 7, 3)
    packed = mk.ops.pack_weight(weight)
    assert torch.equal(packed.unpack(), weight.permute(0, 2, 3, 1).reshape(5, 63))


def test_compiles_and_exports() -> None:
    convolution = handle(second_channels=8, out_dtype=torch.uint8, out_scale=0.3, out_zero_point=11)
    draws = [(byte_map(batch, 16, 9, 8), byte_map(batch, 8, 9, 8)) for batch in (3, 2)]
    assert_compiles_and_exports(lambda x, second: convolution(x + 1, second), *draws)


@pytest.mark.parametrize("zero_point", [7, 300])
def test_opcheck(zero_point: int) -> None:
    h = handle(zero_point, second_channels=8, stride=2, residual_scale=0.1, out_dtype=torch.uint8, out_scale=0.3, out_zero_point=11)
    table, residual = torch.arange(256).to(torch.uint8), torch.randint(0, 99, (2, 40, 3, 4)).to(torch.int16)
    arguments = h.weight.data, h.channels, h.zero_point, h.border, h.filtered, table, *h._sizes, *h.settings
    torch.library.opcheck(torch.ops.mvit_kernels.qconv2d, (byte_map(2, 16, 5, 7), byte_map(2, 8, 5, 7), residual, *arguments))


X, W = torch.ones(1, 3, 4, 4, dtype=torch.uint8), mk.ops.pack_weight(torch.ones(2, 3, 3, 3, dtype=torch.int8))
GOOD = {"kernel_size": 3, "a_scale": 0.1, "a_zero_point": 3, "w_scale": 0.1}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, W), {}, TypeError, "qconv2d: x: expected a tensor, got NoneType"),
        ((X[0], W), {}, ValueError, "qconv2d: x: expected 4 dimensions, got shape (3, 4, 4)"),
        ((X[:, :, :0], W), {}, ValueError, "x: expected at least one channel and one pixel, got shape"),
        ((X.int(), W), {}, TypeError, "qconv2d: x: expected dtype uint8, got int32"),
        ((X[:, :2], W), {}, ValueError, "qconv2d: x: expected 3 channels, got shape (1, 2, 4, 4)"),
        ((X, W.data), {}, TypeError, "qconv2d: weight: expected a PackedWeight, got Tensor"),
        ((X, W), {"kernel_size": 2}, ValueError, "qconv2d: kernel_size: expected 1 or 3, got 2"),
        ((X, W), {"kernel_size": "3"}, TypeError, "qconv2d: kernel_size: expected an integer, got '3'"),
        ((X, W), {"stride": 3}, ValueError, "qconv2d: stride: expected 1 or 2, got 3"),
        ((X, mk.ops.pack_weight(torch.ones(2, 3, 1, 1, dtype=torch.int8))), {}, ValueError, "weight: expected a depth of 9 times"),
        ((X, W), {"second": X}, ValueError, "second_channels: expected between 0 and 2 of 3 channels, got 3"),
        ((X[:, :2], W), {"second": X[:, :1, :2]}, ValueError, "second: expected torch.uint8 of shape (1, 1, 4, 4) on cpu, got"),
        ((X[:, :2], W), {"second": X[:, :1], "second_scale": 0.2}, ValueError, "qconv2d: second_scale: expected that of x, 0.1, got 0.2"),
        ((X[:, :2], W), {"second": X[:, :1], "second_zero_point": 4}, ValueError, "second_zero_point: expected that of x, 3, got 4"),
        ((X, W), {"a_scale": None}, ValueError, "qconv2d: a_scale: expected a scale, got None"),
        ((X, W), {"a_zero_point": None}, ValueError, "qconv2d: a_zero_point: expected a zero-point, got None"),
        ((X, W), {"a_scale": 0.0}, ValueError, "qconv2d: a_scale: expected a positive finite value between 2^-126 and 2^126, got 0.0"),
        ((X, W), {"a_zero_point": torch.zeros(4, dtype=torch.int32)}, ValueError, "a_zero_point: expected an integer or 3 of them"),
        ((X, W), {"a_zero_point": 2**30}, ValueError, "qconv2d: a_zero_point: expected sums below 2^31, got up to"),
        ((X, W), {"residual": X}, ValueError, "qconv2d: residual: expected shape (1, 2, 4, 4), got (1, 3, 4, 4)"),
        ((X, W), {"residual": torch.ones(1, 2, 4, 4, dtype=torch.int64)}, TypeError, "qconv2d: residual: expected dtype"),
        ((X, W), {"activation": "tanh"}, ValueError, "qconv2d: activation: expected one of none, relu"),
        ((X, W), {"out_dtype": torch.uint8}, ValueError, "qconv2d: out_scale: expected a scale"),
        ((X, W), {"table": torch.zeros(256, dtype=torch.uint8)}, ValueError, "qconv2d: table: expected None for out_dtype torch.float32"),
        ((X, W), {"backend": "triton"}, ValueError, "qconv2d: backend 'triton' was requested and cannot take this call"),
    ],
)  # fmt: skip
def test_bad_input(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mk.ops.qconv2d(*arguments, **(GOOD | options))


def test_second_is_what_was_prepared() -> None:
    with pytest.raises(ValueError, match="qconv2d: second: expected 8 channels, got None"):
        handle(second_channels=8)(byte_map(1, 16, 4, 4))
    with pytest.raises(ValueError, match="qconv2d: second: expected None, got"):
        handle()(byte_map(1, 24, 4, 4), byte_map(1, 8, 4, 4))
