"""Matrix product with norm, split input, activation, residual and collected moments: schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    empty_moments,
    fresh,
    narrow,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    wide,
    wide_dtype,
    widen,
)
from .packing import by_dtype, pack_matrix, packed

OP = "gemm"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor
Optional = torch.Tensor | None


def gemm(
    a: Tensor, weight: Tensor, bias: Tensor | None = None, *, second: Tensor | None = None, moments: Tensor | None = None,
    layer_norm: bool = False, eps: float = 1e-5, activation: str | None = None, residual: Tensor | None = None,
    collect: int = 0, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """y = act(cat(norm(a), second) weight^T + bias) + residual, in one pass.

    Args:
        a: (M, K) float32, bfloat16, float16 or float64, any strides; rows of stride 1 are read in place.
        weight: (N, K), or (N, K + K2) with `second`; float32 or the dtype of a. Its packed form is kept while it lives and does not change.
        bias: (N,) or None.
        second: (M, K2), as if it stood beside a; no concatenation is made. Not together with a norm.
        moments: (G, 2) float64, mean and variance of each of G groups of M / G rows of a, which is centred by the mean and divided by
            sqrt(variance + eps) while it is loaded. GroupNorm with one group has a group an image; its gamma and beta belong in weight and
            bias. The gradient is that of the norm, in which the moments change with a.
        layer_norm: the same with the mean and variance of each row, which are computed on the way (and differentiated).
        activation: None, "relu", "silu", "gelu" (the exact one), "relu6" or "hard_swish".
        residual: (M, N), dtype of a; added last.
        collect: how many groups of rows of y to give the moments of; as many as `moments` has, if both are given.
        backend: None for automatic choice, or the name of one.

    Returns:
        y (M, N), dtype of a; with `collect`, (y, moments (collect, 2) float64). Sums are float32 (float64 of float64); of a in
        bfloat16, x and weight are rounded to it before they are multiplied.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.
    """
    checks.all_tensors(OP, a=a, weight=weight)
    checks.tensors(OP, bias=bias, second=second, moments=moments, residual=residual)
    checks.backend(OP, backend)
    call = _call if type(eps) is float else _forward_op  # which converts what is like a number, and refuses the rest
    y, collected = call(
        a, weight, bias, second, moments, residual, layer_norm, eps, activation or "none", collect, backend=backend
    )  # fmt: skip
    return (y, collected) if collect else y


def _check(
    a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, residual: Optional, layer_norm: bool, activation: str,
    collect: int,
) -> None:  # fmt: skip
    checks.tensor(OP, "a", a, 2, FLOAT_DTYPES)
    rows, depth = a.shape
    checks.parameter(OP, "weight", weight, 2, a)
    if second is not None:
        checks.tensor(OP, "second", second, 2)
        checks.like(OP, "second", second, a, (rows, second.shape[1]))
        depth += second.shape[1]
        if layer_norm or moments is not None:
            raise ValueError(f"{OP}: second: expected None together with a norm, got a tensor")
    columns = weight.shape[0]
    if weight.shape[1] != depth:
        raise ValueError(f"{OP}: weight: expected shape (N, {depth}), got {tuple(weight.shape)}")
    if bias is not None:
        checks.parameter(OP, "bias", bias, 1, a, (columns,))
    if residual is not None:
        checks.like(OP, "residual", residual, a, (rows, columns))
    if layer_norm and moments is not None:
        raise ValueError(f"{OP}: moments: expected None together with layer_norm, got a tensor")
    if layer_norm and depth == 0:
        raise ValueError(f"{OP}: a: expected at least one column for layer_norm, got shape {tuple(a.shape)}")
    if moments is not None:
        checks.moments(OP, moments, a)
        checks.whole_groups(OP, "moments", moments.shape[0], rows)
    if collect:
        checks.whole_groups(OP, "collect", collect, rows)
        if moments is not None and moments.shape[0] != collect:
            raise ValueError(f"{OP}: collect: expected as many groups as moments has, {moments.shape[0]}, got {collect}")
    checks.activation(OP, activation)


# --- backends ---


def walkable_rows(x: Tensor) -> Tensor:
    """x (M, K) itself where its rows are contiguous, else a copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


_PACK = by_dtype(pack_matrix)


def _cpu_forward(
    a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, residual: Optional, layer_norm: bool, eps: float,
    activation: str, collect: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    matrix = packed(_PACK[a.dtype], weight, bias)
    (rows, depth), columns = a.shape, weight.shape[0]
    a = walkable_rows(a)
    y = fresh(a.new_empty(rows, columns))
    collected = empty_moments(collect, y)
    groups = collect or 1
    if moments is not None:
        moments, groups = moments.contiguous(), moments.shape[0]
    if second is not None:
        second = walkable_rows(second)
    if residual is not None:
        residual = walkable_rows(residual)
    if groups == 0:
        return y, collected
    status = native.gemm(
        FLOAT_CODES[a.dtype], groups, rows // groups, depth, columns, a.data_ptr(), a.stride(0),
        0 if second is None else second.data_ptr(), 0 if second is None else second.shape[1], 0 if second is None else second.stride(0),
        matrix.weight.data_ptr(), matrix.bias.data_ptr(), 0 if moments is None else moments.data_ptr(), layer_norm, eps,
        reference.ACTIVATIONS.index(activation), 0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0), y.data_ptr(), columns, collected.data_ptr() if collect else 0,
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y, collected


def _triton_refuse(a: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(a, FLOAT_CODES)


@dataclass(frozen=True)
class TritonWeight:
    """The recipe of `mvit_kernels.triton_kernels.gemm.Weight` for rows of that dtype and a second input of so many channels."""

    dtype: torch.dtype
    second_channels: int = 0

    def __call__(self, weight: Tensor, bias: Optional) -> Any:
        return _kernels.arrange(weight, bias, self.dtype, self.second_channels)


def _triton_forward(
    a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, residual: Optional, layer_norm: bool, eps: float,
    activation: str, collect: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    matrix = packed(TritonWeight(a.dtype, 0 if second is None else second.shape[1]), weight, bias)
    y = a.new_empty(a.shape[0], weight.shape[0])
    second, residual = (None if each is None else walkable_rows(each) for each in (second, residual))
    collected = _kernels.gemm(
        walkable_rows(a), matrix, y, second=second, moments=None if moments is None else moments.contiguous(), layer_norm=layer_norm,
        eps=eps, activation=activation, residual=residual, collect=collect,
    )  # fmt: skip
    return y, collected


def _reference_forward(
    a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, residual: Optional, layer_norm: bool, eps: float,
    activation: str, collect: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, weight, bias, second, residual = widen(a, a, weight, bias, second, residual)
    y = reference.gemm(x, weight, bias, second, moments, residual, layer_norm, eps, activation).to(a.dtype)
    collected = reference.moments_of(y, collect) if collect else torch.empty(0, 2, dtype=torch.float64, device=a.device)
    return y, collected


def _reference_backward(
    dy: Tensor, a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, layer_norm: bool, eps: float,
    activation: str, *, cast: Callable[..., list[Any]] = widen,
) -> tuple[Tensor, ...]:  # fmt: skip
    """cast: `widen` or `narrow`, of all tensors."""
    dtype = weight.dtype
    dy, x, weight, bias, beside = cast(a, dy, a, weight, bias, second)
    da, dweight, dbias, dsecond = reference.gemm_backward(dy, x, weight, bias, beside, moments, layer_norm, eps, activation)
    # The results of an op share no memory. The bias may have another dtype than the weight.
    dsecond = dsecond.to(a.dtype).clone(memory_format=torch.contiguous_format)
    return da.to(a.dtype).contiguous(), dweight.to(dtype).contiguous(), wide(dbias), dsecond


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, functools.partial(_reference_backward, cast=narrow), _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient is three plain products: torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    a: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, moments: Optional = None, residual: Optional = None,
    layer_norm: bool = False, eps: float = 1e-5, activation: str = "none", collect: int = 0, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(a, weight, bias, second, moments, residual, layer_norm, activation, collect)
    return choose(backend, a).forward(a, weight, bias, second, moments, residual, layer_norm, eps, activation, collect)


def _forward_fake(
    a: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, moments: Optional = None, residual: Optional = None,
    layer_norm: bool = False, eps: float = 1e-5, activation: str = "none", collect: int = 0, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(a, weight, bias, second, moments, residual, layer_norm, activation, collect)
    return a.new_empty(a.shape[0], weight.shape[0]), a.new_empty(collect, 2, dtype=torch.float64)


def _backward(
    dy: Tensor, a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, layer_norm: bool, eps: float,
    activation: str, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    checks.like(f"{OP}_backward", "dy", dy, a, (a.shape[0], weight.shape[0]))
    backward = choose(backend, a).backward
    assert backward is not None
    return backward(dy, a, weight, bias, second, moments, layer_norm, eps, activation)


def _backward_fake(
    dy: Tensor, a: Tensor, weight: Tensor, bias: Optional, second: Optional, moments: Optional, layer_norm: bool, eps: float,
    activation: str, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    beside = 0 if second is None else second.shape[1]
    dbias = a.new_empty(weight.shape[0], dtype=wide_dtype(a))
    return a.new_empty(a.shape), weight.new_empty(weight.shape), dbias, a.new_empty(a.shape[0], beside)


_forward_op = register(
    OP,
    "(Tensor a, Tensor weight, Tensor? bias=None, Tensor? second=None, Tensor? moments=None, Tensor? residual=None, bool layer_norm=False,"
    " float eps=1e-05, str activation='none', int collect=0, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor a, Tensor weight, Tensor? bias, Tensor? second, Tensor? moments, bool layer_norm, float eps, str activation,"
    " str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, a: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, moments: Optional = None,
    residual: Optional = None, layer_norm: bool = False, eps: float = 1e-5, activation: str = "none", collect: int = 0, *,
    backend: str | None = None,
) -> None:  # fmt: skip
    ctx.save_for_backward(a, weight, bias, second, moments)
    ctx.settings = layer_norm, eps, activation
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.residual = residual is not None
    ctx.backend = choose.backend(backend, a)  # the backward may run on another thread, outside the use_backend block of the forward


def _gradient(ctx: Any, dy: Tensor, _: object) -> tuple[Optional, ...]:
    a, weight, bias, second, moments = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        da, dweight, dbias, dsecond = _reference_backward(dy, a, weight, bias, second, moments, *ctx.settings)
    else:
        da, dweight, dbias, dsecond = _backward_op(dy, a, weight, bias, second, moments, *ctx.settings, ctx.backend)
    return (
        da, dweight, None if bias is None else dbias.to(ctx.bias_dtype), None if second is None else dsecond, None,
        dy if ctx.residual else None, None, None, None, None,
    )  # fmt: skip


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=6, inputs=(0, 3, 4, 5))
