"""Convolution, 1x1 or 3x3, with a second input, activation and residual: schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .gemm import TritonWeight
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    in_format,
    is_channels_last,
    narrow,
    out_size,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    widen,
)  # fmt: skip
from .packing import by_dtype, pack_convolution, pack_convolution_by_planes, pack_winograd, packed

OP = "conv2d"
_kernels = triton_support.Kernels(OP)
FEWEST_CHANNELS = 16  # for minimal filtering, on either side
MOST_PLANES = 4  # channels of an image, which a 3x3 convolution reads plane by plane
Tensor = torch.Tensor
Optional = torch.Tensor | None


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, second: Tensor | None = None, stride: int = 1,
    activation: str | None = None, residual: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """act(conv2d(cat(x, second), weight, padding=k // 2) + bias) + residual, in one pass.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. channels_last is read in place, and so are
            contiguous images of up to 4 channels by 3x3; other strides are copied to channels_last first.
        weight: (N, C, k, k), or (N, C + C2, k, k) with `second`; k = 1 or 3; float32 or the dtype of x. Its packed form is kept while it
            lives and does not change.
        bias: (N,) or None.
        second: (B, C2, H, W), as if its channels stood behind those of x; no concatenation is made.
        stride: 1 or 2.
        activation: None, "relu", "silu", "gelu" (the exact one), "relu6" or "hard_swish".
        residual: (B, N, ceil(H / stride), ceil(W / stride)), dtype of x; added last.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, N, ceil(H / stride), ceil(W / stride)), dtype of x, always channels_last. Sums are float32 (float64 of float64);
        weights of a map of bfloat16 are rounded to it.
        Gradients are torch's own, of any backend.

    With stride 1, 3x3 and at least 16 channels on either side, the cpu backend multiplies 16 times for 2 x 2 pixels instead of 36 (minimal
    filtering, csrc/cpu/ops/winograd.h): the error is about that of a direct sum, but NaN and infinity reach whole tiles of 2 x 2 pixels.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.
    """
    checks.is_tensor(OP, "x", x)
    checks.is_tensor(OP, "weight", weight)
    checks.tensors(OP, bias=bias, second=second, residual=residual)
    checks.integer(OP, "stride", stride)
    checks.backend(OP, backend)
    return _call(x, weight, bias, second, residual, stride, activation or "none", backend=backend)


def _check(x: Tensor, weight: Tensor, bias: Optional, second: Optional, residual: Optional, stride: int, activation: str) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.parameter(OP, "weight", weight, 4, x)
    channels = x.shape[1]
    if second is not None:
        checks.like(OP, "second", second, x, (x.shape[0], *second.shape[1:2], *x.shape[2:]))
        channels += second.shape[1]
    size = tuple(weight.shape)
    if size[0] == 0 or size[1] != channels or size[2:] not in ((1, 1), (3, 3)):
        raise ValueError(f"{OP}: weight: expected shape (N, {channels}, k, k) with k = 1 or 3, got {size}")
    if bias is not None:
        checks.parameter(OP, "bias", bias, 1, x, size[:1])
    checks.stride(OP, stride)
    if residual is not None:
        checks.like(OP, "residual", residual, x, out_size(x, weight.shape[0], stride))
    checks.activation(OP, activation)


# --- backends ---


# Conv2dMethod of csrc/cpu/ops/conv2d.h, and the form of the weight that goes with it.
_GATHERED, _PLANES, _WINOGRAD = range(3)
_PACK = by_dtype(pack_convolution)
_RECIPES = {_PLANES: pack_convolution_by_planes, _WINOGRAD: pack_winograd}


def _method(x: Tensor, weight: Tensor, second: Optional, stride: int) -> int:
    (_, channels, height, width), (columns, both, kernel, _) = x.shape, weight.shape
    if kernel == 1:
        return _GATHERED
    if second is None and 1 < channels <= MOST_PLANES and x.stride(3) == 1 and x.stride(1) != 1:
        return _PLANES
    return _WINOGRAD if stride == 1 and filtering_pays(both, columns, height, width, x.dtype) else _GATHERED


def filtering_pays(channels: int, columns: int, height: int, width: int, dtype: torch.dtype) -> bool:
    """Whether minimal filtering costs less than the definition, of a 3x3 convolution with stride 1: tiles of 2 x 2 pixels cost 16
    multiplications instead of 36, wherever they end, and transforms that need channels to pay. Its multiplications are of float32: with
    AMX those of bfloat16 cost less than that, and with AVX512-BF16, half, still more."""
    if dtype == torch.bfloat16 and native is not None and native.isa() == "amx":
        return False
    tiles = ((height + 1) // 2) * ((width + 1) // 2)
    return channels >= FEWEST_CHANNELS and columns >= FEWEST_CHANNELS and 16 * tiles <= 7 * height * width


def _cpu_forward(x: Tensor, weight: Tensor, bias: Optional, second: Optional, residual: Optional, stride: int, activation: str) -> Tensor:
    size, kernel, columns, method = x.shape, weight.shape[2], weight.shape[0], _method(x, weight, second, stride)
    matrix = packed(_PACK[x.dtype] if method == _GATHERED else _RECIPES[method], weight, bias)
    if method != _PLANES:
        x = in_format(x, channels_last=True)
    if second is not None:
        second = in_format(second, channels_last=True)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)
    status = native.conv2d(
        FLOAT_CODES[x.dtype], size, columns, kernel, stride, method, x.data_ptr(), x.stride(), 0 if second is None else second.data_ptr(),
        0 if second is None else second.shape[1], x.stride() if second is None else second.stride(), matrix.weight.data_ptr(),
        matrix.bias.data_ptr(), reference.ACTIVATIONS.index(activation), 0 if residual is None else residual.data_ptr(), y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(
    x: Tensor, weight: Tensor, bias: Optional, second: Optional, residual: Optional, stride: int, activation: str
) -> Tensor:
    beside = 0 if second is None else second.shape[1]
    matrix = packed(TritonWeight(x.dtype, beside), weight, bias)
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)
    if not _kernels.gathered(weight.shape[2], x.shape[1], beside):
        x = in_format(x, channels_last=True)
    if second is not None:
        second = in_format(second, channels_last=True)
    if residual is not None:
        residual = dense(residual, channels_last=True)
    _kernels.conv2d(x, matrix, y, second=second, stride=stride, activation=activation, residual=residual)
    return y


def _reference_forward(
    x: Tensor, weight: Tensor, bias: Optional, second: Optional, residual: Optional, stride: int, activation: str
) -> Tensor:
    dtype = x.dtype
    x, weight, bias, second, residual = widen(x, x, weight, bias, second, residual)
    return dense(reference.conv2d(x, weight, bias, second, residual, stride, activation).to(dtype), channels_last=True)


def _reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, second: Optional, stride: int, activation: str, *,
    cast: Callable[..., list[Any]] = widen,
) -> tuple[Tensor, ...]:  # fmt: skip
    """cast: `widen` or `narrow`, of all tensors."""
    dtype, weight_dtype, channels_last = x.dtype, weight.dtype, is_channels_last(x)
    dy, x, weight, bias, second = cast(x, dy, x, weight, bias, second)
    dx, dweight, dbias, dsecond = reference.conv2d_backward(dy, x, weight, bias, second, stride, activation)
    return (
        dense(dx.to(dtype), channels_last), dweight.to(weight_dtype).contiguous(), dbias.to(weight_dtype),
        dense(dsecond.to(dtype), channels_last),
    )  # fmt: skip


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, functools.partial(_reference_backward, cast=narrow), _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient of a convolution is torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    x: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, residual: Optional = None, stride: int = 1,
    activation: str = "none", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, weight, bias, second, residual, stride, activation)
    return choose(backend, x).forward(x, weight, bias, second, residual, stride, activation)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, residual: Optional = None, stride: int = 1,
    activation: str = "none", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, weight, bias, second, residual, stride, activation)
    return empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, second: Optional, stride: int, activation: str, backend: str | None
) -> tuple[Tensor, ...]:
    checks.like(f"{OP}_backward", "dy", dy, x, out_size(x, weight.shape[0], stride))
    backward = choose(backend, x).backward
    assert backward is not None
    return backward(dy, x, weight, bias, second, stride, activation)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, second: Optional, stride: int, activation: str, backend: str | None
) -> tuple[Tensor, ...]:
    channels_last, size = is_channels_last(x), tuple(x.shape)
    beside = 0 if second is None else second.shape[1]
    return (
        empty_in_format(x, size, channels_last), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]),
        empty_in_format(x, (size[0], beside, *size[2:]), channels_last),
    )  # fmt: skip


_forward_op = register(
    OP,
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? second=None, Tensor? residual=None, int stride=1, str activation='none', *,"
    " str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor? second, int stride, str activation, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, x: Tensor, weight: Tensor, bias: Optional = None, second: Optional = None, residual: Optional = None, stride: int = 1,
    activation: str = "none", *, backend: str | None = None,
) -> None:  # fmt: skip
    ctx.save_for_backward(x, weight, bias, second)
    ctx.settings = stride, activation
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.residual = residual is not None
    ctx.backend = choose.backend(backend, x)  # the backward may run on another thread, outside the use_backend block of the forward


def _gradient(ctx: Any, dy: Tensor) -> tuple[Optional, ...]:
    x, weight, bias, second = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        dx, dweight, dbias, dsecond = _reference_backward(dy, x, weight, bias, second, *ctx.settings)
    else:
        dx, dweight, dbias, dsecond = _backward_op(dy, x, weight, bias, second, *ctx.settings, ctx.backend)
    return (
        dx, dweight, None if bias is None else dbias.to(ctx.bias_dtype), None if second is None else dsecond,
        dy if ctx.residual else None, None, None,
    )  # fmt: skip


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=5, inputs=(0, 3, 4))
