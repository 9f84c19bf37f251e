"""qattention: equal bits on every instruction set and in plain torch, near the attention of what the bytes stand for."""

from __future__ import annotations

import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, random_bytes
from test_attention import MIXTURES, SIZES, make, plain

from mvit_kernels import ops
from mvit_kernels.ops.qattention import fits

Tensor = torch.Tensor
SETTINGS = {
    "q_scale": 0.02, "q_zero_point": 120, "k_scale": 0.03, "k_zero_point": 131, "v_scale": 0.05, "v_zero_point": 100, "out_scale": 0.1,
    "out_zero_point": 127,
}  # fmt: skip


def bytes_of(size: tuple[int, ...]) -> list[Tensor]:
    return [random_bytes(*x.shape) for x in make(size, ())[:3]]


def parameters(size: tuple[int, ...], mixed: str) -> dict[str, Tensor]:
    names = ("bias", "mix_scores", "mix_weights", "mix_bias")
    return {name: x for name, x in zip(names, make(size, MIXTURES[mixed])[3:], strict=True) if x is not None}


def attend(inputs: list[Tensor], size: tuple[int, ...], backend: str, **changes: object) -> Tensor:
    return ops.qattention(*inputs, size[3], **(SETTINGS | {"scale": size[4] ** -0.5} | changes), backend=backend)


@pytest.mark.parametrize("mixed", MIXTURES)
@pytest.mark.parametrize("size", [*(size for size in SIZES if fits(size[4], size[2])), (2, 6, 140, 2, 6, 6)], ids=str)
def test_the_same_bits(size, mixed: str, isa: str, poison) -> None:
    inputs, held = bytes_of(size), parameters(size, mixed)
    for changes in ({}, {"out_bits": 6, "out_zero_point": 30}, {"q_zero_point": 0, "k_zero_point": 255, "v_zero_point": 255}):
        y = attend(inputs, size, "cpu", **held, **changes)
        assert torch.equal(y, attend(inputs, size, "reference", **held, **changes))
    assert y.numel() < 20 or len(attend(inputs, size, "cpu", **held, out_scale=0.5).unique()) > 3


@needs_native
@pytest.mark.parametrize("mixed", ["none", "weights", "all"])
def test_the_same_bits_of_many_queries(mixed: str) -> None:
    """Thousands of weights: one rounding too many in a scale of theirs turns some byte over."""
    size = (16, 49, 49, 8, 32, 128)
    inputs, held = bytes_of(size), parameters(size, mixed)
    settings = {**held, "out_scale": 0.05}
    assert torch.equal(attend(inputs, size, "cpu", **settings), attend(inputs, size, "reference", **settings))


@pytest.mark.parametrize("keys", [259, 512, 3000])
def test_many_keys(keys: int, isa: str, poison) -> None:
    """Sums over them are carried on in int32, exact where float32 no longer is."""
    size = (2, 4, keys, 2, 6, 5)
    inputs = bytes_of(size)
    inputs[2][0] = 255
    for changes in ({}, {"v_zero_point": 0}, {"v_zero_point": 255, "out_bits": 6}):
        settings = {"q_scale": 1e-4, "out_scale": 1.0, **changes}  # nearly the mean of all
        assert torch.equal(attend(inputs, size, "cpu", **settings), attend(inputs, size, "reference", **settings))
    assert fits(6, 33025)
    assert not fits(6, 33026)


@pytest.mark.parametrize("extreme", [0, 255])
@pytest.mark.parametrize("mixed", ["none", "all"])
def test_extremes(mixed: str, extreme: int, isa: str) -> None:
    """The largest sums that are exact, all keys alike, scores far apart."""
    size = (1, 3, 258, 2, 258, 4)
    inputs = [torch.full_like(x, extreme) for x in bytes_of(size)]
    inputs[1][0, 7] = 255 - extreme
    held = {name: 1e4 * x for name, x in parameters(size, mixed).items()}
    far = {"q_zero_point": 255 - extreme, "k_zero_point": 255 - extreme, "v_zero_point": 255 - extreme}
    for changes in ({}, far):
        assert torch.equal(attend(inputs, size, "cpu", **held, **changes), attend(inputs, size, "reference", **held, **changes))


def test_sums_up_to_the_last_exact_one(isa: str) -> None:
    """273 x 241 x 255 = 2^24 - 1."""
    size = (1, 3, 5, 1, 273, 4)
    inputs = bytes_of(size)
    inputs[0][0, 0], inputs[1][0, 0] = 255, 255
    points = {"q_zero_point": 14, "k_zero_point": 0}
    assert torch.equal(attend(inputs, size, "cpu", **points), attend(inputs, size, "reference", **points))
    with pytest.raises(ValueError, match=r"qattention: k: expected sums of products below 2\^24, .* got 274 channels a head"):
        attend(bytes_of((1, 3, 5, 1, 274, 4)), size, "cpu", **points)


@pytest.mark.parametrize("mixed", MIXTURES)
def test_near_attention(mixed: str) -> None:
    """Weights have 8 bits, or 9 where they are mixed: what they add is a step or two of the result."""
    size = (2, 49, 49, 8, 32, 16)
    inputs, held = bytes_of(size), parameters(size, mixed)
    reals = [
        SETTINGS[f"{name}_scale"] * (x.double() - SETTINGS[f"{name}_zero_point"]) for name, x in zip("qkv", inputs, strict=True)
    ]  # fmt: skip
    names = ("bias", "mix_scores", "mix_weights", "mix_bias")
    exact = plain(*reals, *(held[name].double() if name in held else None for name in names), heads=8)
    out_scale = float(exact.abs().max()) / 127
    y = attend(inputs, size, "reference", **held, out_scale=out_scale)
    error = out_scale * (y.double() - 127) - exact
    assert error.abs().max() <= 3 * out_scale
    assert error.square().mean().sqrt() <= 0.6 * out_scale


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    size = (3, 70, 150, 4, 8, 24)
    inputs = bytes_of(size)
    draws = [parameters(size, mixed) for mixed in ("bias", "all")]
    assert_same_bits_with_any_threads(lambda: [attend(inputs, size, "cpu", **held) for held in draws], threads)


def test_any_strides(backend: str) -> None:
    tokens = random_bytes(2, 5, 7, 24).flatten(1, 2)
    q, k, v = tokens[..., :8], tokens[:, ::2, 8:16], tokens[:, ::2, 16:]
    size = (2, 35, 18, 2, 4, 4)
    expected = attend([each.contiguous() for each in (q, k, v)], size, "reference")
    assert torch.equal(attend([q, k, v.mT.contiguous().mT], size, backend), expected)


def test_opcheck_and_compile() -> None:
    size = (2, 5, 6, 2, 3, 4)
    inputs = bytes_of(size)
    handle = ops.prepare_qattention(2, **SETTINGS, scale=0.5, **parameters(size, "all"))
    settings = (*handle.mixtures[:4], 2, *handle.zero_points, *handle.mixtures[4:], handle.out_zero_point, 8)
    torch.library.opcheck(torch.ops.mvit_kernels.qattention, (*inputs, *settings))
    assert_compiles_and_exports(handle, inputs)


def bad(**changes: object):
    q, k, v = bytes_of((1, 3, 4, 2, 3, 2))
    good = {"q": q, "k": k, "v": v, "heads": 2, "scale": 1.0, **SETTINGS}
    return lambda: ops.qattention(**(good | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(q=None), TypeError, "qattention: q: expected a tensor, got NoneType"),
        (bad(q=torch.zeros(1, 3, 6)), TypeError, "qattention: q: expected dtype uint8, got float32"),
        (bad(heads=4), ValueError, "qattention: heads: expected a number that divides the 6 channels of q, got 4"),
        (
            bad(k=random_bytes(1, 33026, 6), v=random_bytes(1, 33026, 4), v_zero_point=0),
            ValueError,
            "k: expected sums of products below",
        ),
        (bad(q_scale=0.0), ValueError, "qattention: q_scale: expected a positive finite value"),
        (bad(v_zero_point=2**21), ValueError, r"qattention: v_zero_point: expected \|zero_point\| <= 2\^20"),
        (bad(bias=torch.zeros(3, 3, 4)), ValueError, r"qattention: bias: expected floats of shape \(2, N, M\)"),
        (bad(bias=torch.zeros(2, 40, 4)), ValueError, r"qattention: bias: expected shape \(2, 3, 4\), got \(2, 40, 4\)"),
        (bad(bias=torch.zeros(2, 2, 4)), ValueError, r"qattention: bias: expected shape \(2, 3, 4\), got \(2, 2, 4\)"),
        (bad(bias=torch.zeros(2, 3, 5)), ValueError, r"qattention: bias: expected shape \(2, 3, 4\), got \(2, 3, 5\)"),
        (bad(mix_bias=torch.zeros(3)), ValueError, r"qattention: mix_bias: expected floats of shape \(2,\)"),
        (bad(out_bits=7), ValueError, "qattention: out_bits: expected 8 or 6, got 7"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
