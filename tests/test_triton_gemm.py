from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from marks import slow
from triton_checks import DTYPES, assert_gradients, assert_rule, randn

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor
# (rows, columns, depth): one of each, tails of tiles, several tiles and steps of each, none of a depth.
SHAPES = [(37, 45, 80), slow((1, 1, 1)), slow((70, 16, 33)), slow((3, 8, 64)), slow((65, 130, 136)), slow((5, 6, 0))]


def make(rows: int, columns: int, depth: int, dtype: torch.dtype = torch.float32, mean: float = 0.0, second: int = 0) -> dict[str, Tensor]:
    inputs = {
        "a": (randn(rows, depth) + mean).to(dtype), "weight": randn(columns, depth + second, dtype=dtype) / max(depth + second, 1) ** 0.5,
        "bias": randn(columns, dtype=dtype),
    }  # fmt: skip
    return inputs | {"second": randn(rows, second, dtype=dtype)} if second else inputs


def check(inputs: dict[str, Tensor], **settings) -> Tensor:
    y = mk.ops.gemm(**inputs, **settings, backend="triton")
    exact = mk.ops.gemm(**{name: each if each is None else each.double() for name, each in inputs.items()}, **settings)
    assert_rule(y, mk.ops.gemm(**inputs, **settings, backend="reference"), exact)
    assert y.dtype == inputs["a"].dtype
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape, dtype: torch.dtype, poison) -> None:
    check(make(*shape, dtype), activation="silu")


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, slow("relu"), slow("silu"), "gelu"])
def test_epilogues_and_two_inputs(activation: str | None, dtype: torch.dtype) -> None:
    inputs = make(20, 24, 40, dtype, second=25)
    check(inputs | {"residual": randn(20, 24, dtype=dtype)}, activation=activation)
    check(inputs | {"bias": None}, activation=activation)


@pytest.mark.parametrize("dtype", [slow(torch.float32), slow(torch.float16), torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [slow(0.0), slow(3.0), 100.0])
def test_norms(mean: float, dtype: torch.dtype) -> None:
    inputs = make(34, 24, 72, dtype, mean)
    check(inputs, layer_norm=True)
    check(inputs, moments=reference.moments_of(inputs["a"], 2))


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)], ids=str)
@pytest.mark.parametrize("shape", [(130, 72, 144), slow((64, 5, 21)), slow((70, 130, 16))], ids=str)
def test_norms_of_rows_that_stay_in_registers(shape, dtype: torch.dtype, monkeypatch, poison) -> None:
    from mvit_kernels.triton_kernels import normed_gemm

    monkeypatch.setattr(normed_gemm, "processors", lambda _: 0)  # as where there are many rows
    inputs = make(*shape, dtype, 30.0)
    check(inputs, layer_norm=True, activation="silu")
    check(inputs, moments=reference.moments_of(inputs["a"], 2))
    wide = randn(shape[0], shape[2] + 8, dtype=dtype)
    check(inputs | {"a": wide[:, 8:], "bias": None}, layer_norm=True)
    wide[3, 9] = float("nan")
    y = mk.ops.gemm(wide[:, 8:], inputs["weight"], layer_norm=True, backend="triton")
    assert y.isnan().any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize("size", [(2, 64), slow((1, 48)), (3, 21), slow((4, 4))], ids=str)
def test_moments_are_those_of_what_is_written(size: tuple[int, int]) -> None:
    """Collected by tiles where they divide groups of rows, in a pass over y elsewhere."""
    groups, rows = size
    inputs = make(rows, 40, 24, torch.float16)
    inputs["bias"] += 5.0
    y, moments = mk.ops.gemm(**inputs, collect=groups, backend="triton")
    assert torch.allclose(moments, reference.moments_of(y, groups), rtol=1e-6)


def test_any_strides_float32_weights_and_nan() -> None:
    big = randn(40, 70, dtype=torch.float16)
    weight, residual = randn(9, 30) / 6, randn(20, 18, dtype=torch.float16)
    for a in (big[::2, 3:33], big[:20, ::2][:, :30], big[:1, :30].expand(20, -1), big[:30, :20].T):
        check({"a": a, "weight": weight.half(), "bias": None, "residual": residual[:, ::2]})
        y = mk.ops.gemm(a, weight, second=None, residual=residual[:, 9:], backend="triton")
        assert (y - mk.ops.gemm(a, weight, residual=residual[:, 9:], backend="reference")).abs().max() < 2e-2
    a = randn(17, 30)
    a[3, 4] = float("nan")
    for settings in ({}, {"layer_norm": True}, {"activation": "relu"}):
        assert mk.ops.gemm(a, weight, **settings, backend="triton").isnan().any(1).nonzero().tolist() == [[3]]


def test_empty() -> None:
    weight = randn(5, 7)
    for rows, groups in ((0, 0), (0, 2)):
        y, moments = mk.ops.gemm(randn(rows, 7), weight, collect=groups, backend="triton") if groups else (randn(0, 5), randn(0, 2))
        assert (y.shape, moments.shape) == ((rows, 5), (groups, 2))
    assert mk.ops.gemm(randn(4, 7), weight[:0], backend="triton").shape == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "how", [{"activation": "silu"}, {"activation": "gelu", "norm": "layer"}, {"norm": "group"}, {"second": True}], ids=str
)
def test_gradients_in_sixteen_bits(how: dict[str, Any], dtype: torch.dtype) -> None:
    """Products are in that dtype there, as torch's own are."""
    norm, activation, rows = how.get("norm"), how.get("activation", "none"), randn(24, 40, dtype=dtype)
    tensors = [rows, randn(30, 56 if "second" in how else 40, dtype=dtype) / 6, randn(30, dtype=dtype)]
    tensors += [randn(24, 16, dtype=dtype)] if "second" in how else []

    def ours(a: Tensor, weight: Tensor, bias: Tensor, second: Tensor | None = None) -> Tensor:
        moments = reference.moments_of(a.detach(), 3) if norm == "group" else None
        return mk.ops.gemm(
            a, weight, bias, second=second, moments=moments, layer_norm=norm == "layer", activation=activation, backend="triton"
        )

    def plain(a: Tensor, weight: Tensor, bias: Tensor, second: Tensor | None = None) -> Tensor:
        if norm is not None:
            groups = 3 if norm == "group" else len(a)
            a = F.layer_norm(a.reshape(groups, -1), (a.numel() // groups,)).reshape(a.shape)
        return reference.gemm(a, weight, bias, second, activation=activation)

    assert_gradients(ours, plain, tensors)


def test_weights_that_change_are_seen_and_gradients_arrive() -> None:
    inputs = make(6, 5, 7)
    for _ in range(2):
        check(inputs)
        inputs["weight"].mul_(2.0)
    results = []
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs.values()]
        mk.ops.gemm(*leaves, activation="silu", backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))
