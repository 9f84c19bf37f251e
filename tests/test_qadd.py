"""qadd: equal bits on every instruction set, in plain torch and to a loop of numpy; and how far `qactivate` is from the exact functions."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from op_checks import FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes

from mvit_kernels import ops, reference

Tensor = torch.Tensor
INF = float("inf")
# a_scale, a_zero_point, b_scale, b_zero_point, out_scale, out_zero_point
NUMBERS = [
    (0.031, 117, 0.054, 3, 0.07, 60),
    (0.1, 128, 0.013, 128, 0.06, 20),
    (0.031, 300, 0.7, -900, 0.9, -700),
    (1e-4, -(2**31), 1e-4, 2**31 - 1, 2.0, 128),
    (1e-39 * 2**5, 128, 1e-37, 10, 1e-36, 2**20),  # subnormal terms
    (2.0**126, 128, 2.0**126, 127, 2.0**100, 128),  # infinities, and NaN as their difference
    (0.25, 0, 0.25, 0, 0.5, 0),  # ties
    (0.25, 255, 0.25, 255, 0.5, 128),  # nothing positive, and -0
]
NAMES = ("a_scale", "a_zero_point", "b_scale", "b_zero_point", "out_scale", "out_zero_point")


def every_pair() -> tuple[Tensor, Tensor]:
    q = torch.arange(256, dtype=torch.uint8)
    return q[:, None].expand(256, 256).contiguous(), q.expand(256, 256).contiguous()


def oracle(a: Tensor, b: Tensor, numbers, activation: str, bits: int) -> Tensor:
    f = np.float32
    a_scale, a_zero_point, b_scale, b_zero_point, out_scale, out_zero_point = numbers
    with np.errstate(all="ignore"):
        x = (a.numpy().astype(np.int64) - a_zero_point).astype(f) * f(a_scale)
        t = x + (b.numpy().astype(np.int64) - b_zero_point).astype(f) * f(b_scale)
        if activation == "relu":
            t = np.where(t < 0, f(0), t)
        elif activation != "none":
            c = reference.segments(activation).numpy()
            size = np.abs(t)
            line = np.minimum(np.minimum(size * f(4), size * f(2) + f(8)), size + f(16))
            i = np.where(line < 31, line, 31).astype(np.int64)
            e = (c[2][i] * size + c[1][i]) * size + c[0][i]
            t = np.where(t < 0, f(0), t) + np.where(size > 16, f(0), e)
        t = t * f(1.0 / float(f(out_scale)))
        assert t.dtype == f
        q = np.rint(np.clip(np.where(np.isnan(t), -np.inf, t).astype(np.float64), -(2.0**40), 2.0**40)).astype(np.int64) + out_zero_point
    return torch.as_tensor(np.clip(q, 0, 2**bits - 1).astype(np.uint8))


@functools.cache
def expected_of_every_pair(numbers, activation: str, bits: int) -> Tensor:
    return oracle(*every_pair(), numbers, activation, bits)


@pytest.mark.parametrize("activation", reference.QACTIVATIONS)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_every_pair_of_bytes(numbers, activation: str, backend: str) -> None:
    a, b = every_pair()
    for bits in (8, 6) if numbers is NUMBERS[0] else (8,):
        y = ops.qadd(a, b, **dict(zip(NAMES, numbers, strict=True)), activation=activation, out_bits=bits, backend=backend)
        assert torch.equal(y, expected_of_every_pair(numbers, activation, bits))


SOME = dict(zip(NAMES, NUMBERS[0], strict=True))


@pytest.mark.parametrize("fmt", FORMATS)
def test_any_shape_and_strides(fmt: str, backend: str, poison) -> None:
    for size in ((), (1,), (3, 5), (2, 0, 4, 4), (2, 3, 4, 5), (1, 65, 3, 3), (2, 3, 4, 5, 6)):
        a, b = (random_bytes(*size) for _ in range(2))
        expected = oracle(a, b, NUMBERS[0], "none", 8)
        if len(size) == 4:
            a = a.contiguous(memory_format=FORMATS[fmt])
        y = ops.qadd(a, b, **SOME, backend=backend)
        assert torch.equal(y, expected)
        assert len(size) != 4 or y.is_contiguous(memory_format=FORMATS[fmt])
    big = random_bytes(4, 6, 8, 10)
    for a, b in ((big[:, :, ::2], big[:, :, 1::2]), (big[..., :8].transpose(2, 3), big[..., 2:])):
        assert torch.equal(ops.qadd(a, b, **SOME, backend=backend), oracle(a, b, NUMBERS[0], "none", 8))


def test_numbers_in_tensors() -> None:
    a, b = every_pair()
    tensors = {name: torch.tensor(value) for name, value in SOME.items()}
    assert torch.equal(ops.qadd(a, b, **tensors), ops.qadd(a, b, **SOME))


@pytest.mark.parametrize("activation", ["silu", "gelu", "hard_swish"])
def test_activations_are_near_the_exact_ones(activation: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 400_001), torch.tensor([-0.0, 1e-42, -1e-42])])
    exact = reference.exact_activation(x.double(), activation)
    assert (reference.qactivate(x, activation) - exact).abs().max() < 7e-5
    far = torch.tensor([-INF, -1e30, 1e30, INF, float("nan")])
    assert torch.equal(reference.qactivate(far, activation)[:4], torch.tensor([0.0, 0.0, 1e30, INF]))
    assert reference.qactivate(far, activation)[4].isnan()


@pytest.mark.parametrize("activation", ["silu", "gelu", "hard_swish"])
def test_bytes_of_activations_are_near_the_exact_ones(activation: str, isa: str) -> None:
    a, b = every_pair()
    y = ops.qadd(
        a, b, a_scale=0.05, a_zero_point=128, b_scale=1e-4, b_zero_point=128, out_scale=0.03, out_zero_point=20, activation=activation
    )
    exact = reference.exact_activation(0.05 * (a.double() - 128) + 1e-4 * (b.double() - 128), activation) / 0.03 + 20
    assert (y - exact.clamp(0, 255)).abs().max() <= 0.5 + 7e-5 / 0.03 + 1e-3


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    a, b = (random_bytes(300_001) for _ in range(2))
    assert_same_bits_with_any_threads(lambda: [ops.qadd(a, b, **SOME, activation="gelu", backend="cpu")], threads)


def test_opcheck() -> None:
    a = random_bytes(2, 3, 4, 5)
    for x in (a, a.contiguous(memory_format=torch.channels_last), a[..., ::2]):
        torch.library.opcheck(torch.ops.mvit_kernels.qadd, (x, x.clone(), *NUMBERS[0], "silu", 8))


def test_compiles_and_exports() -> None:
    draws = [(random_bytes(batch, 3, 4, 5), random_bytes(batch, 3, 4, 5)) for batch in (2, 5)]
    batch = axes(0)
    assert_compiles_and_exports(functools.partial(ops.qadd, **SOME, activation="silu"), *draws, dynamic=(batch, batch))


def bad(**changes: object):
    a = torch.zeros(2, 3, dtype=torch.uint8)
    return lambda: ops.qadd(**({"a": a, "b": a} | SOME | changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(a=None), TypeError, "qadd: a: expected a tensor, got NoneType"),
        (bad(b=1), TypeError, "qadd: b: expected a tensor, got int"),
        (bad(a=torch.zeros(2, 3)), TypeError, "qadd: a: expected dtype uint8, got float32"),
        (bad(b=torch.zeros(2, 3)), TypeError, "qadd: b: expected dtype uint8, got float32"),
        (bad(b=torch.zeros(3, 2, dtype=torch.uint8)), ValueError, r"qadd: b: expected shape \(2, 3\) on cpu, got \(3, 2\) on cpu"),
        (bad(activation="tanh"), ValueError, "qadd: activation: expected one of none, relu, silu, gelu, hard_swish, got 'tanh'"),
        (bad(out_bits=4), ValueError, "qadd: out_bits: expected 8 or 6, got 4"),
        (bad(a_scale=None), TypeError, "qadd: a_scale: expected a number, got None"),
        (bad(a_zero_point=1.0), TypeError, "qadd: a_zero_point: expected an integer, got 1.0"),
        (bad(b_zero_point=2**31), ValueError, "qadd: b_zero_point: expected an int32, got 2147483648"),
        (bad(out_zero_point=2**20 + 1), ValueError, r"qadd: out_zero_point: expected \|zero_point\| <= 2\^20, got 1048577"),
        *(
            (bad(**{name: value}), ValueError, f"qadd: {name}: expected a positive finite value between 2.-126 and 2.126, got")
            for name in ("a_scale", "b_scale", "out_scale")
            for value in (0.0, -1.0, float("nan"), INF, 1e-39)
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
