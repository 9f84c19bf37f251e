from __future__ import annotations

import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, byte_map, random_bytes, random_weight

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.reference.activation_curve import curve_shift

ZERO_POINTS = [0, 1, 127, 128, 255, -1, -255, 300, -1275, "each"]
CHANNELS = [1, 3, 16, 17, 24, 64, 65, 130]
SIZES = [(1, 1), (2, 2), (3, 3), (5, 7)]
DTYPES = [torch.uint8, torch.int16, torch.float32, torch.bfloat16, torch.float16]
CL = torch.channels_last

pytestmark = pytest.mark.usefixtures("one_thread")


def zero_points(z, channels: int):
    return torch.randint(-1300, 400, (channels,)) if z == "each" else z


def weights(channels: int, bits: int = 8) -> torch.Tensor:
    return random_weight(channels, 1, 3, 3, bits=bits)


def to(dtype: torch.dtype, channels: int) -> dict[str, object]:
    """Arguments for results of that dtype."""
    if dtype == torch.uint8:
        return {"out_dtype": dtype, "out_scale": torch.rand(channels) + 0.3, "out_zero_point": torch.randint(0, 256, (channels,))}
    return {"out_dtype": dtype, "out_scale": 0.01} if dtype == torch.int16 else {"out_dtype": dtype}


def exact_sums(x: torch.Tensor, weight: torch.Tensor, z, stride: int) -> torch.Tensor:
    """sum (x - z) w in int64, tap by tap: zeros are padded after z is taken away."""
    real = torch.nn.functional.pad(x.to(torch.int64) - torch.as_tensor(z).reshape(-1, 1, 1), (1, 1, 1, 1))
    height, width = x.shape[2:]
    taps = [(ky, kx) for ky in range(3) for kx in range(3)]
    return sum(
        real[:, :, ky : ky + height : stride, kx : kx + width : stride] * weight[:, :, ky, kx].to(torch.int64)[:, :, None]
        for ky, kx in taps
    )


def both(x, weight, residual=None, **arguments) -> torch.Tensor:
    """The kernel's result, after it was found equal to the reference's."""
    prepared = [mk.ops.prepare_qdepthwise_conv2d(weight, **arguments, backend=backend) for backend in ("cpu", "reference")]
    ours, expected = (each(x, residual) for each in prepared)
    assert ours.is_contiguous(memory_format=CL)
    assert expected.is_contiguous(memory_format=CL)
    assert ours.dtype == expected.dtype == arguments.get("out_dtype", torch.float32)
    assert torch.equal(ours, expected)
    return ours


@pytest.mark.parametrize("z", ZERO_POINTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_exact_sums(stride: int, z, isa: str, poison) -> None:
    """With scales of 1 the float32 results are the sums, as long as these are below 2^24."""
    for channels in CHANNELS:
        weight, each = weights(channels), zero_points(z, channels)
        prepared = mk.ops.prepare_qdepthwise_conv2d(weight, stride=stride, a_scale=1.0, a_zero_point=each, backend="cpu")
        for height, width in SIZES:
            x = byte_map(2, channels, height, width)
            assert torch.equal(prepared(x).to(torch.int64), exact_sums(x, weight, each, stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_several_filters_of_a_channel(stride: int, isa: str, poison) -> None:
    """The sums are those of repeated channels, whatever the strides of x."""
    for channels, times in ((1, 3), (5, 2), (33, 4), (24, 6)):
        weight, each = weights(channels * times), zero_points("each", channels * times)
        arguments = {"stride": stride, "a_scale": 1.0, "a_zero_point": each}
        for x in (byte_map(2, channels, 7, 5), byte_map(1, channels + 3, 4, 9)[:, :channels], byte_map(0, channels, 4, 4)):
            y = both(x, weight, **arguments)
            assert torch.equal(y.to(torch.int64), exact_sums(x.repeat_interleave(times, 1), weight, each, stride))
            both(x, weight, **arguments, activation="silu", **to(torch.uint8, channels * times))


@pytest.mark.parametrize("z", ZERO_POINTS)
def test_a_constant_input_shows_every_border(z, isa: str) -> None:
    """x = z + d everywhere, or the nearest byte: each result is d times the sum of the taps inside."""
    for height, width in (*SIZES, (4, 1), (1, 6)):
        for stride in (1, 2):
            each = zero_points(z, 17)
            x = (torch.as_tensor(each) + 3).clamp(0, 255).to(torch.uint8).reshape(1, -1, 1, 1).expand(1, 17, height, width)
            weight = weights(17)
            y = mk.ops.qdepthwise_conv2d(x, weight, stride=stride, a_scale=1.0, a_zero_point=each, backend="cpu")
            assert torch.equal(y.double(), exact_sums(x, weight, each, stride))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_dtype_and_tail(stride: int, dtype: torch.dtype, isa: str, poison) -> None:
    for channels in CHANNELS:
        for height, width in SIZES:
            arguments = {"a_scale": 0.02, "w_scale": torch.rand(channels) * 0.02 + 1e-3, "bias": torch.randn(channels)}
            z = zero_points("each", channels)
            both(byte_map(2, channels, height, width), weights(channels), stride=stride, a_zero_point=z, **arguments, **to(dtype, channels))


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu", "hard_swish"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_activations(dtype: torch.dtype, activation: str | None, isa: str) -> None:
    for channels in (17, 40, 96):
        arguments = {
            "a_scale": 0.02,
            "w_scale": torch.rand(channels) * 0.02 + 1e-3,
            "bias": torch.randn(channels),
            "activation": activation,
        }
        y = both(byte_map(2, channels, 5, 19), weights(channels), a_zero_point=100, **arguments, **to(dtype, channels))
        assert y.unique().numel() > 20


@pytest.mark.parametrize(
    ("dtype", "residual"),
    [(torch.uint8, torch.uint8), (torch.uint8, torch.int16), (torch.int16, torch.int16), (torch.float32, torch.float32),
     (torch.float32, torch.uint8), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.int16)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize("activation", [None, "silu"])
def test_residual(activation: str | None, dtype: torch.dtype, residual: torch.dtype, isa: str) -> None:
    if dtype == torch.int16 and activation:
        pytest.skip("int16 results have no activation")
    for channels, stride in ((17, 1), (70, 2)):
        size = (2, channels, 5, 6) if stride == 1 else (2, channels, 3, 3)
        r = (torch.randn(size) * 50).to(residual) if residual.is_floating_point else torch.randint(0, 250, size).to(residual)
        integers = not residual.is_floating_point and dtype != torch.int16
        scales = {"residual_scale": 0.01, "residual_zero_point": 7 if residual == torch.uint8 else None} if integers else {}
        arguments = {"a_scale": 0.02, "w_scale": 0.01, "a_zero_point": -200, "activation": activation, "stride": stride, **scales}
        both(byte_map(2, channels, 5, 6), weights(channels), r, **arguments, **to(dtype, channels))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(
    ("a_scale", "out_scale", "out_zero_point"), [(0.02, 0.1, 20000), (0.02, 0.1, -30000), (3.0, 1e-3, 5), (1e-9, 1e3, 0)]
)
def test_results_beyond_narrow_steps(a_scale: float, out_scale: float, out_zero_point: int, activation: str | None, isa: str) -> None:
    """Multipliers and zero-points that 16 bits or the conversion to int32 would not take."""
    arguments = {"a_scale": a_scale, "out_scale": out_scale, "out_zero_point": out_zero_point, "out_dtype": torch.uint8}
    both(byte_map(1, 70, 4, 5), weights(70), a_zero_point=100, activation=activation, **arguments)


@pytest.mark.parametrize("activation", [None, "silu", "curve"])
@pytest.mark.parametrize("largest", [2.0**29, 2.0**31])
def test_how_far_narrow_steps_reach(largest: float, activation: str | None, isa: str) -> None:
    """As far as weights say that results, before they saturate, can be converted to int32: with scales above 1, too."""
    channels, out_scale, out_zero_point = 70, 0.25, 9
    weight, x = weights(channels), byte_map(1, channels, 2, 261)  # more pixels than wait at once
    reach = int((355 + 100) * weight.to(torch.int64).abs().sum((1, 2, 3)).max())
    arguments = {"a_scale": largest * out_scale / reach, "a_zero_point": 100, "out_dtype": torch.uint8, "out_scale": out_scale,
                 "out_zero_point": out_zero_point}  # fmt: skip
    if activation == "curve":
        steps, scale = 2.0 ** curve_shift("silu", out_scale), arguments["a_scale"]
        arguments |= {"a_scale": scale / steps, "table": reference.activation_curve("silu", out_scale, out_zero_point)}
    else:
        arguments["activation"] = activation
    for stride in (1, 2):
        prepared = mk.ops.prepare_qdepthwise_conv2d(weight, stride=stride, **arguments)
        assert prepared.narrow == (largest < 2**30)
        both(x, weight, stride=stride, **arguments)


def test_ties_round_to_even(isa: str) -> None:
    x, weight = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8), torch.zeros(1, 1, 3, 3, dtype=torch.int8)
    weight[0, 0, 1, 1] = 1
    y = both(x, weight, a_scale=0.5, a_zero_point=0, out_dtype=torch.uint8, out_scale=1.0, out_zero_point=0)
    assert torch.equal(y.flatten(), (x.double() / 2).round().to(torch.uint8).flatten())


def test_table_and_bits(isa: str) -> None:
    table = torch.randperm(256).to(torch.uint8)
    for channels in (17, 64):
        arguments = {"a_scale": 0.02, "w_scale": 0.03, "a_zero_point": 30, **to(torch.uint8, channels)}
        x, weight = byte_map(2, channels, 4, 9), weights(channels, bits=6)  # int6 weights are int8 that are small
        y = both(x, weight, **arguments)
        assert torch.equal(both(x, weight, **arguments, table=table), table[y.long()])
        six = both(x & 63, weight, **arguments | {"out_zero_point": 20}, a_bits=6, out_bits=6)
        assert six.max() <= 63


def test_relu_is_a_clamp(isa: str) -> None:
    x, weight = byte_map(1, 20, 5, 5), weights(20)
    arguments = {"a_scale": 0.01, "w_scale": 0.01, "a_zero_point": 128, "out_dtype": torch.uint8, "out_scale": 0.05, "out_zero_point": 60}
    assert torch.equal(both(x, weight, **arguments, activation="relu"), both(x, weight, **arguments).clamp(min=60))


@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes(sign: int, isa: str) -> None:
    """All 255 times all -127 or 127; then sums as near to 2^31 as is allowed."""
    x = torch.full((1, 66, 4, 4), 255, dtype=torch.uint8)
    weight = torch.full((66, 1, 3, 3), 127 * sign, dtype=torch.int8)
    y = mk.ops.qdepthwise_conv2d(x, weight, a_scale=1.0, a_zero_point=0, backend="cpu")
    assert torch.equal(y.double(), exact_sums(x, weight, 0, 1))
    z = -(2**31 - 1) // 1143 + 256
    arguments = {"a_scale": 1.0, "out_dtype": torch.uint8, "out_scale": 2.0**24, "out_zero_point": 128}
    both(x, weight, a_zero_point=z, **arguments)
    both(x, weight, a_zero_point=z, a_scale=1.0)
    with pytest.raises(ValueError, match="a_zero_point: expected sums below 2"):
        both(x, weight, a_zero_point=z - 2, **arguments)


def test_zero_points_meet_the_bound_of_their_own_channel() -> None:
    weight = torch.zeros(2, 1, 3, 3, dtype=torch.int8)
    weight[0] = 127
    x = byte_map(1, 2, 3, 3)
    far = torch.tensor([[5, 2**31 - 1]])
    y = mk.ops.qdepthwise_conv2d(x, weight, a_scale=1.0, a_zero_point=far)
    assert torch.equal(y.double(), exact_sums(x, weight, far[0], 1))
    with pytest.raises(ValueError, match="a_zero_point: expected sums below 2"):
        mk.ops.qdepthwise_conv2d(x, weight, a_scale=1.0, a_zero_point=far.flip(1))


def test_real_values_are_near_the_float_convolution() -> None:
    x, weight, bias = torch.rand(1, 33, 8, 8) * 4 - 1, torch.randn(33, 1, 3, 3), torch.randn(33)
    w_scale = weight.abs().amax((1, 2, 3)) / 127
    q = (x / 0.02 + 50).round().clamp(0, 255).to(torch.uint8)
    qw = (weight / w_scale[:, None, None, None]).round().to(torch.int8)
    y = mk.ops.qdepthwise_conv2d(q, qw, stride=2, a_scale=0.02, a_zero_point=50, w_scale=w_scale, bias=bias, activation="silu")
    expected = reference.depthwise_conv2d(x, weight, bias, 2, "silu")
    assert (y - expected).abs().max() < 0.15


@both_backends
def test_any_strides(backend: str, isa: str) -> None:
    big = random_bytes(3, 11, 8, 14)
    last, weight = big.contiguous(memory_format=CL), weights(11)
    prepared = mk.ops.prepare_qdepthwise_conv2d(weight, stride=2, a_scale=1.0, a_zero_point=9, backend=backend)
    for x in (big[1:], big[:, :, 2:6], big[..., ::2], big.transpose(2, 3), big[:1].expand(3, -1, -1, -1), last[..., 3:9], last[:, :, ::2]):
        assert torch.equal(prepared(x).double(), exact_sums(x, weight, 9, 2))
    wide = byte_map(2, 22, 5, 5)[:, 3:14]  # a slice of channels
    assert torch.equal(prepared(wide).double(), exact_sums(wide, weight, 9, 2))
    r = torch.randn(3, 11, 7, 4).transpose(2, 3)  # a residual of another layout
    assert torch.equal(prepared(big, r), prepared(last) + r)


@needs_native
def test_same_bits_on_any_number_of_threads_and_from_several(threads) -> None:
    x = byte_map(2, 72, 40, 40)
    arguments = {"a_scale": 0.02, "a_zero_point": -3, "w_scale": 0.02, **to(torch.uint8, 72)}
    prepared = mk.ops.prepare_qdepthwise_conv2d(weights(72), activation="silu", **arguments, backend="cpu")
    assert_same_bits_with_any_threads(lambda: [prepared(x)], threads)


@both_backends
def test_empty_batch(backend: str) -> None:
    x = torch.empty(0, 3, 5, 4, dtype=torch.uint8)
    y = mk.ops.qdepthwise_conv2d(x, weights(3), stride=2, a_scale=1.0, a_zero_point=0, backend=backend)
    assert y.shape == (0, 3, 3, 2)


def test_opcheck() -> None:
    x, r = byte_map(2, 5, 4, 6), random_bytes(2, 5, 2, 3)
    table = torch.arange(256, dtype=torch.uint8)
    arguments = {"a_scale": 0.02, "a_zero_point": -3, "stride": 2, "residual_scale": 0.1, "residual_zero_point": 5}
    h = mk.ops.prepare_qdepthwise_conv2d(weights(5), activation="silu", **arguments, **to(torch.uint8, 5), table=table)
    common = (x, h.weight, h.zero_point, h.blocks, h.channels)
    torch.library.opcheck(torch.ops.mvit_kernels.qdepthwise_conv2d, (*common, r, table, 2, h.narrow, *h.settings))
    torch.library.opcheck(torch.ops.mvit_kernels.qdepthwise_conv2d, (*common, None, None, 1, h.narrow, *h.settings))


def test_compiles_and_exports() -> None:
    arguments = {"a_scale": 0.02, "a_zero_point": 70, "w_scale": 0.02, **to(torch.uint8, 5)}
    prepared = mk.ops.prepare_qdepthwise_conv2d(weights(5), stride=2, **arguments)
    assert_compiles_and_exports(lambda x: prepared(x.flip(3)).float() + 1, *([byte_map(batch, 5, 9, 8)] for batch in (3, 2)))


X, W = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.ones(3, 1, 3, 3, dtype=torch.int8)
GOOD = {"a_scale": 1.0, "a_zero_point": 0}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, W), GOOD, TypeError, "qdepthwise_conv2d: x: expected a tensor, got NoneType"),
        ((X[0], W), GOOD, ValueError, r"x: expected 4 dimensions, got shape \(3, 4, 4\)"),
        ((X.int(), W), GOOD, TypeError, "x: expected dtype uint8, got int32"),
        ((torch.empty(1, 3, 0, 4, dtype=torch.uint8), W), GOOD, ValueError, "x: expected at least one channel and one pixel"),
        ((X, weights(4)), GOOD, ValueError, r"x: expected a number of channels that divides the 4 filters of weight, got \(1, 3, 4, 4\)"),
        ((X, W[:, 0]), GOOD, ValueError, r"weight: expected 4 dimensions, got shape \(3, 3, 3\)"),
        ((X, W[..., :2]), GOOD, ValueError, r"weight: expected shape \(C, 1, 3, 3\), got \(3, 1, 3, 2\)"),
        ((X, W.float()), GOOD, TypeError, "weight: expected dtype int8, got float32"),
        ((X, torch.full_like(W, -128)), GOOD, ValueError, r"weight: expected values in \[-127, 127\], got -128"),
        ((X, W), GOOD | {"stride": 3}, ValueError, "stride: expected 1 or 2, got 3"),
        ((X, W), GOOD | {"stride": 1.0}, TypeError, "stride: expected an integer, got 1.0"),
        ((X, W), GOOD | {"a_scale": None}, ValueError, "a_scale: expected a scale, got None"),
        ((X, W), GOOD | {"a_zero_point": torch.ones(9)}, ValueError, "a_zero_point: expected an integer"),
        ((X, W), GOOD | {"a_zero_point": 2**31}, ValueError, "a_zero_point: expected an int32, got 2147483648"),
        ((X, W), GOOD | {"w_scale": torch.ones(4)}, ValueError, "w_scale: expected one value or 3"),
        ((X, W), GOOD | {"bias": torch.full((3,), 1e10)}, ValueError, "bias: expected .bias. < 2.31"),
        ((X, W), GOOD | {"activation": "tanh"}, ValueError, "activation: expected one of none, relu"),
        ((X, W), GOOD | {"out_dtype": torch.uint8}, ValueError, "out_scale: expected a scale for out_dtype"),
        ((X, W), GOOD | {"table": torch.zeros(256)}, ValueError, "table: expected uint8 of shape"),
        ((X, W), GOOD | {"residual": torch.ones(1, 3, 4, 5)}, ValueError, "residual: expected shape"),
        ((X, W), GOOD | {"residual": torch.ones(1, 3, 4, 4).double()}, TypeError, "residual: expected dtype"),
        ((X, W), GOOD | {"backend": "triton"}, ValueError, "backend 'triton' was requested"),
        ((X, W), GOOD | {"backend": 3}, TypeError, "backend: expected a name or None, got 3"),
    ],
)  # fmt: skip
def test_bad_input(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        mk.ops.qdepthwise_conv2d(*arguments, **options)
