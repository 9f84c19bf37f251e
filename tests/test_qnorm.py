from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, random_bytes, random_packed_weight

import mvit_kernels as mk
from mvit_kernels import reference

pytestmark = pytest.mark.usefixtures("one_thread")

# Tails of every vector, several tasks, the shapes of the networks.
SHAPES = [(1, 1), (2, 7), (3, 8), (4, 9), (6, 16), (2, 17), (2, 33), (6, 64), (4, 65), (70, 130), (400, 128), (64, 240)]
QUANTIZATIONS = [
    {"scale": 2.0**-9, "out_scale": 0.03, "out_zero_point": 121},
    {"scale": 0.0071, "out_scale": 0.11, "out_zero_point": 30, "bits": 6, "eps": 1e-3},
    {"scale": 0.02, "out_scale": 0.01, "out_zero_point": -1275},  # wide: what is above 12.75
]


def stream(rows: int, depth: int, most: int = 32767) -> torch.Tensor:
    """Rows about different means, some of which reach both ends of int16."""
    x = 40.0 * torch.randn(rows, depth) + 3000.0 * torch.randn(rows, 1)
    x[::3] *= 50
    return x.clamp(-most - 1, most).to(torch.int16)


def groups_of(rows: int) -> list[int | None]:
    return [None, 1, rows, *([2] if rows % 2 == 0 else [])]


def test_a_norm_and_the_layer_behind_it_are_one_product() -> None:
    x = stream(2 * 12, 16).reshape(2, 3, 4, 16).permute(0, 3, 1, 2)
    layer = mk.ops.prepare_qconv2d(
        random_packed_weight(24, 16), 0.03, 121, 0.01, kernel_size=1, out_dtype=torch.uint8, out_scale=0.1, out_zero_point=99
    )
    rows = x.permute(0, 2, 3, 1).reshape(-1, 16)
    for kind, sums in (("group", reference.stream_sums(rows, 2)), ("layer", None)):
        norm = mk.ops.prepare_qnorm(kind, **QUANTIZATIONS[0])
        y = mk.ops.QNormGemm.of(norm, layer)(rows, sums)
        assert torch.equal(y, layer(norm(x)).permute(0, 2, 3, 1).reshape(-1, 24))
    affine = mk.ops.prepare_qnorm("layer", **QUANTIZATIONS[0], weight=torch.ones(16), bias=torch.zeros(16))
    with pytest.raises(ValueError, match="qnorm_gemm: norm: expected one without weight and bias"):
        mk.ops.QNormGemm.of(affine, layer)
    wide = mk.ops.prepare_qconv2d(random_packed_weight(24, 9 * 16), 0.03, 121, 0.01, kernel_size=3)
    with pytest.raises(ValueError, match="qnorm_gemm: layer: expected a 1x1 convolution"):
        mk.ops.QNormGemm.of(norm, wide)
    with pytest.raises(ValueError, match="qnorm: bias: expected 16 floats beside the other, got None"):
        mk.ops.prepare_qnorm("layer", **QUANTIZATIONS[0], weight=torch.ones(16))
    with pytest.raises(TypeError, match="qnorm: weight: expected a tensor, got list"):
        mk.ops.prepare_qnorm("layer", **QUANTIZATIONS[0], weight=[1.0], bias=[0.0])


def test_a_norm_in_front_of_a_layer_keeps_its_kind_and_its_backend() -> None:
    x, sums = stream(12, 16), torch.zeros(2, 2, dtype=torch.int64)

    def both(kind: str, of_norm: str | None, of_layer: str | None) -> mk.ops.QNormGemm:
        layer = mk.ops.prepare_qconv2d(random_packed_weight(8, 16), 0.03, 121, 0.01, kernel_size=1, backend=of_layer)
        return mk.ops.QNormGemm.of(mk.ops.prepare_qnorm(kind, **QUANTIZATIONS[0], backend=of_norm), layer)

    with pytest.raises(ValueError, match="qnorm_gemm: sums: expected those of images with a norm of images, got None"):
        both("group", None, None)(x)
    with pytest.raises(ValueError, match="qnorm_gemm: sums: expected None with a norm of each pixel, got a tensor"):
        both("layer", None, None)(x, sums)
    for of_norm, of_layer, expected in ((None, None, None), ("cpu", None, "cpu"), (None, "triton", "triton"), ("cpu", "cpu", "cpu")):
        assert both("layer", of_norm, of_layer).backend == expected
    with pytest.raises(ValueError, match="qnorm_gemm: layer: expected the backend of the norm, 'cpu', got 'reference'"):
        both("layer", "cpu", "reference")


MAPS = torch.zeros(2, 16, 2, 2, dtype=torch.int16)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("group", ([1],), "x: expected a tensor, got list"),
        ("group", (torch.zeros(6, 16, dtype=torch.int16),), r"x: expected 4 dimensions, got shape \(6, 16\)"),
        ("layer", (MAPS.float(),), "x: expected dtype int16, got float32"),
        ("layer", (MAPS[:, :0],), "x: expected at least one channel"),
        ("group", (MAPS, [0]), "sums: expected a tensor, got list"),
        ("group", (MAPS, torch.zeros(4, 2, dtype=torch.int64)), "sums: expected those of 2 images, got 4"),
        ("layer", (MAPS, torch.zeros(2, 2, dtype=torch.int64)), "sums: expected None with a norm of each"),
    ],
    ids=["list", "rows", "dtype", "channels", "sums", "groups", "pixels"],
)  # fmt: skip
def test_wrong_maps_and_sums_of_them(kind: str, inputs, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"qnorm: {message}"):
        mk.ops.prepare_qnorm(kind, **QUANTIZATIONS[0])(*inputs)


def sums_of(x: torch.Tensor, groups: int | None) -> torch.Tensor | None:
    return None if groups is None else reference.stream_sums(x, groups)


def oracle(x: torch.Tensor, groups: int | None, scale: float, out_scale: float, out_zero_point: int, eps: float = 1e-5, bits: int = 8):
    """The formula value by value, in Python's integers and numpy's floats."""
    rows, scale, out_scale = x.tolist(), float(np.float32(scale)), float(np.float32(out_scale))
    size = 1 if groups is None else len(rows) // groups
    y = []
    for begin in range(0, len(rows), size):
        values = [value for row in rows[begin : begin + size] for value in row]
        mean = sum(values) / len(values)
        variance = max(sum(value * value for value in values) / len(values) - mean * mean, 0.0)
        factor = np.float32((scale / out_scale) / math.sqrt(variance * (scale * scale) + eps))
        for row in rows[begin : begin + size]:
            t = (np.array(row, np.float32) - np.float32(mean)) * factor
            y.append(np.rint(np.clip(t, -out_zero_point, 2**bits - 1 - out_zero_point)).astype(np.int64) + out_zero_point)
    return torch.from_numpy(np.stack(y)).to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tail(shape, isa: str, poison) -> None:
    x = stream(*shape)
    for groups in groups_of(shape[0]):
        for settings in QUANTIZATIONS:
            y = mk.ops.qnorm(x, sums_of(x, groups), backend="cpu", **settings)
            assert torch.equal(y, mk.ops.qnorm(x, sums_of(x, groups), backend="reference", **settings))


@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (4, 33), (70, 64)], ids=str)
def test_reference_against_the_formula(shape) -> None:
    x = stream(*shape)
    for groups in groups_of(shape[0]):
        for settings in QUANTIZATIONS:
            assert torch.equal(mk.ops.qnorm(x, sums_of(x, groups), backend="reference", **settings), oracle(x, groups, **settings))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_gamma_and_beta(shape, isa: str, poison) -> None:
    """Equal bits, and half a step beside torch's norm; where gamma is 1 and beta 0, the norm without them in steps of a power of two."""
    x, weight, bias = stream(*shape, most=2000), torch.randn(shape[1]), torch.randn(shape[1])
    for groups in groups_of(shape[0]):
        for settings in QUANTIZATIONS:
            both = [
                mk.ops.qnorm(x, sums_of(x, groups), weight=weight, bias=bias, backend=backend, **settings)
                for backend in ("cpu", "reference")
            ]
            assert torch.equal(*both)
        steps = {"scale": 2.0**-9, "out_scale": 2.0**-5, "out_zero_point": 121}
        y = mk.ops.qnorm(x, sums_of(x, groups), weight=torch.ones(shape[1]), bias=torch.zeros(shape[1]), **steps)
        assert torch.equal(y, mk.ops.qnorm(x, sums_of(x, groups), **steps))
    real = x.double() * QUANTIZATIONS[0]["scale"]
    exact = torch.nn.functional.layer_norm(real, shape[1:], weight.double(), bias.double()).clamp(-121 * 0.03, 134 * 0.03)
    y = mk.ops.qnorm(x, weight=weight, bias=bias, **QUANTIZATIONS[0])
    assert (reference.dequantize(y, torch.tensor(0.03), torch.tensor(121)) - exact).abs().max() <= 0.5001 * 0.03


def test_it_is_a_norm() -> None:
    """Half a step of the bytes beside the norms of torch."""
    x = stream(64, 96, 2000)
    real, settings = x.double() * QUANTIZATIONS[0]["scale"], QUANTIZATIONS[0]
    layer = torch.nn.functional.layer_norm(real, (96,))
    group = torch.nn.functional.group_norm(real.reshape(2, 1, -1), 1).reshape(64, 96)
    for exact, groups in ((layer, None), (group, 2)):
        y = mk.ops.qnorm(x, sums_of(x, groups), **settings)
        error = reference.dequantize(y, torch.tensor(0.03), torch.tensor(121)) - exact.clamp(-121 * 0.03, 134 * 0.03)
        assert error.abs().max() <= 0.5001 * 0.03


@needs_native
def test_extremes(isa: str) -> None:
    """Rows of one value, the ends of int16 alone, sums as large as they come, and sums that are nobody's."""
    settings = QUANTIZATIONS[0]
    for x in (
        torch.full((5, 40), -32768, dtype=torch.int16),
        torch.tensor([-32768, 32767], dtype=torch.int16).repeat(3, 50),
        torch.full((2, 300_000), -32768, dtype=torch.int16),
        torch.zeros(3, 9, dtype=torch.int16),
    ):
        for groups in (None, 1, x.shape[0]):
            y = mk.ops.qnorm(x, sums_of(x, groups), backend="cpu", **settings)
            assert torch.equal(y, mk.ops.qnorm(x, sums_of(x, groups), backend="reference", **settings))
    x = stream(8, 20)
    for value in (0, -1, 2**63 - 1, -(2**63)):
        sums = torch.full((4, 2), value)
        y = mk.ops.qnorm(x, sums, backend="cpu", **settings)
        assert torch.equal(y, mk.ops.qnorm(x, sums, backend="reference", **settings))


@needs_native
def test_threads(threads) -> None:
    x = stream(2000, 96)
    sums = reference.stream_sums(x, 2)
    assert_same_bits_with_any_threads(lambda: [mk.ops.qnorm(x, each, backend="cpu", **QUANTIZATIONS[0]) for each in (None, sums)], threads)


@both_backends
def test_any_strides_and_empty(backend: str) -> None:
    norm = functools.partial(mk.ops.qnorm, backend=backend, **QUANTIZATIONS[0])
    big = stream(40, 64)
    for x in (big[::2], big[:, ::2], big.T, big[:, 3:40], big[:1].expand(6, -1)):
        assert torch.equal(norm(x), norm(x.contiguous()))
        sums = reference.stream_sums(x, 2)
        assert torch.equal(norm(x, sums.T.contiguous().T), norm(x.contiguous(), sums))
    assert norm(big[:0]).shape == (0, 64)
    assert norm(big[:0], torch.empty(0, 2, dtype=torch.int64)).shape == (0, 64)
    assert norm(big[:, :0]).shape == (40, 0)


# --- the product behind it ---


def epilogues(columns: int) -> list[dict]:
    byte = {"out_dtype": torch.uint8, "out_scale": 0.05 + torch.rand(columns), "out_zero_point": 100}
    table = random_bytes(256)
    return [
        byte,
        byte | {"activation": "silu", "table": table},
        {"out_dtype": torch.float32, "activation": "gelu"},
        {"out_dtype": torch.bfloat16},
        {"out_dtype": torch.int16, "out_scale": 0.01},
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 7, 5), (26, 64, 33), (4, 130, 80), (60, 70, 32)], ids=str)
@pytest.mark.parametrize("settings", QUANTIZATIONS, ids=["8", "6", "wide"])
def test_norm_and_product_are_qnorm_and_qgemm(shape, settings: dict, isa: str, poison) -> None:
    rows, depth, columns = shape
    x, bias = stream(rows, depth), torch.randn(columns)
    quantized = {"a_scale": settings["out_scale"], "a_zero_point": settings["out_zero_point"], "a_bits": settings.get("bits", 8)}
    norm = {"scale": settings["scale"], "eps": settings.get("eps", 1e-5)}
    for groups, bits in ((None, 8), (1, 6), (rows, 8), (2 if rows % 2 == 0 else 1, 8)):
        sums, weight = sums_of(x, groups), random_packed_weight(columns, depth, bits)
        apart = mk.ops.qnorm(x, sums, backend="cpu", **settings)
        for epilogue in epilogues(columns):
            common = {"w_scale": 0.004, "bias": bias, **quantized, **epilogue}
            y = mk.ops.qnorm_gemm(x, weight, sums, backend="cpu", **norm, **common)
            assert torch.equal(y, mk.ops.qgemm(apart, weight, backend="cpu", **common))
            assert torch.equal(y, mk.ops.qnorm_gemm(x, weight, sums, backend="reference", **norm, **common))


def prepared(depth: int = 20, columns: int = 9, **settings) -> mk.ops.QNormGemm:
    common = {"scale": 0.01, "a_scale": 0.03, "a_zero_point": 120, "out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}
    return mk.ops.prepare_qnorm_gemm(random_packed_weight(columns, depth), 0.01, torch.randn(columns), **(common | settings))


@needs_native
def test_product_on_threads(threads) -> None:
    x, handle = stream(2000, 96), prepared(96, 130, backend="cpu")
    sums = reference.stream_sums(x, 4)
    assert_same_bits_with_any_threads(lambda: [handle(x), handle(x, sums)], threads)


@both_backends
def test_product_of_any_strides_and_empty(backend: str) -> None:
    handle, big = prepared(backend=backend), stream(40, 60)
    for x in (big[::2, :20], big[:, ::3], big.T[:, :20], big[:, 7:27]):
        assert torch.equal(handle(x), handle(x.contiguous()))
    assert handle(big[:0, :20]).shape == (0, 9)
    assert prepared(0, backend=backend)(big[:, :0]).shape == (40, 9)


@both_backends
def test_sums_of_groups(backend: str) -> None:
    big = stream(12, 40)
    for x in (big, big[::2, 3:20], big[:0]):
        for groups in (0,) if x.shape[0] == 0 else (1, 3, x.shape[0]):
            y = mk.ops.qnorm(x, groups=groups, backend=backend, **QUANTIZATIONS[0])
            assert torch.equal(y, mk.ops.qnorm(x, reference.stream_sums(x, groups), backend=backend, **QUANTIZATIONS[0]))


# --- the torch side ---


def test_opcheck() -> None:
    x = stream(6, 20)
    sums = reference.stream_sums(x, 2)
    handle = prepared()
    for each in (None, sums):
        torch.library.opcheck(torch.ops.mvit_kernels.qnorm.default, (x, each, 0.01, 0.03, 120, 1e-5, 8))
        args = (x, handle.weight.data, handle.channels, each, None, *handle.norm, 9, 20, 8, torch.uint8, "none", True)
        torch.library.opcheck(torch.ops.mvit_kernels.qnorm_gemm.default, args)
    torch.library.opcheck(torch.ops.mvit_kernels.qnorm.default, (x, None, 0.01, 0.03, 120, 1e-5, 8, 3))


def test_compile_and_export() -> None:
    handle = prepared()

    def layer(x: torch.Tensor, sums: torch.Tensor) -> tuple[torch.Tensor, ...]:
        norms = mk.ops.qnorm(x, sums, **QUANTIZATIONS[0]), mk.ops.qnorm(x, groups=sums.shape[0], **QUANTIZATIONS[0])
        return *norms, handle(x, sums), handle(x)

    streams = stream(6, 20), stream(10, 20)
    assert_compiles_and_exports(layer, *((x, reference.stream_sums(x, 2)) for x in streams))


def test_bad_input() -> None:
    x, sums = stream(6, 20), torch.zeros(2, 2, dtype=torch.int64)
    norm = functools.partial(mk.ops.qnorm, scale=0.01, out_scale=0.03, out_zero_point=120)
    with pytest.raises(TypeError, match=r"qnorm: x: expected a tensor, got list"):
        norm([1])
    with pytest.raises(TypeError, match=r"qnorm: x: expected dtype int16, got float32"):
        norm(x.float())
    with pytest.raises(ValueError, match=r"qnorm: x: expected 2 dimensions"):
        norm(x[0])
    with pytest.raises(TypeError, match=r"qnorm: sums: expected dtype int64, got float64"):
        norm(x, sums.double())
    with pytest.raises(ValueError, match=r"qnorm: sums: expected shape \(G, 2\)"):
        norm(x, sums[:, :1])
    with pytest.raises(ValueError, match=r"qnorm: sums: expected at least one piece of each group, got shape \(2, 0, 2\)"):
        norm(x, sums[:, None][:, :0])
    with pytest.raises(ValueError, match=r"qnorm: sums: expected a number of groups that divides 6 rows, got 4"):
        norm(x, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"qnorm: groups: expected a number of groups that divides 6 rows, got 4"):
        norm(x, groups=4)
    with pytest.raises(ValueError, match=r"qnorm: groups: expected None with sums, got 2"):
        norm(x, sums, groups=2)
    with pytest.raises(TypeError, match=r"qnorm: groups: expected an integer, got 2.0"):
        norm(x, groups=2.0)
    for name, value in (
        ("eps", 0.0),
        ("eps", float("nan")),
        ("scale", -1.0),
        ("out_scale", 0.0),
        ("out_zero_point", 2**20 + 1),
        ("bits", 7),
    ):
        with pytest.raises(ValueError, match=rf"qnorm: {name}: expected"):
            norm(x, **{name: value})
    with pytest.raises(ValueError, match=r"backend 'triton' was requested"):
        norm(x, backend="triton")
    handle = prepared()
    with pytest.raises(ValueError, match=r"qnorm_gemm: x: expected shape \(M, 20\), got \(6, 19\)"):
        handle(x[:, :19])
    with pytest.raises(TypeError, match=r"qnorm_gemm: x: expected dtype int16, got uint8"):
        handle(x.to(torch.uint8))
    with pytest.raises(TypeError, match=r"qnorm_gemm: weight: expected a PackedWeight, got Tensor"):
        mk.ops.prepare_qnorm_gemm(x, scale=1.0, a_scale=1.0, a_zero_point=0)
    for name, value in (("eps", -1.0), ("scale", float("inf")), ("a_scale", 0.0), ("a_zero_point", 2**21), ("a_bits", 5)):
        with pytest.raises(ValueError, match=rf"qnorm_gemm: {name}: expected"):
            prepared(**{name: value})
