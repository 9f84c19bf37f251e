"""A 1x1 or a depthwise convolution with a dynamic ReLU behind it in one pass: schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation
from .conv2d import choose as choose_conv2d
from .depthwise_conv2d import arrange as arrange_taps
from .depthwise_conv2d import choose as choose_depthwise_conv2d
from .dynamic_relu import choose as choose_dynamic_relu
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
    refuse_off_floats,
    register,
    register_autograd,
    widen,
)
from .packing import packed

OP = "conv2d_dynamic_relu"
_products, _filters = triton_support.Kernels("conv2d"), triton_support.Kernels("depthwise_conv2d")
Tensor = torch.Tensor
Optional = torch.Tensor | None


def conv2d_dynamic_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, *, stride: int = 1, backend: str | None = None
) -> Tensor:  # fmt: skip
    """max(a t, b t) of t = conv2d(x, weight, padding=k // 2) + bias, with the slopes a and b that `dynamic_relu` has of u; by Triton t is
    not in memory.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel; channels_last is read in place, other strides
            are copied to it first.
        weight: (N, C, 1, 1), or of a depthwise convolution (m C, 1, 3, 3), whose channels are those of `depthwise_conv2d`; float32 or the
            dtype of x.
        bias: (N,) or None.
        u: (B, 2 N), dtype of x.
        stride: 1 or 2.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, N, ceil(H / stride), ceil(W / stride)), dtype of x, always channels_last. Gradients are torch's own, of any backend.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: DY-ReLU, arXiv 2003.10027, equation 3, without intercepts; Mobile-Former, arXiv 2108.05895.
    """
    checks.all_tensors(OP, x=x, weight=weight, u=u)
    checks.tensors(OP, bias=bias)
    checks.integer(OP, "stride", stride)
    checks.backend(OP, backend)
    return _call(x, weight, bias, u, stride, backend=backend)


def _check(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int) -> None:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.parameter(OP, "weight", weight, 4, x)
    (columns, *window), channels = weight.shape, x.shape[1]
    if columns == 0 or (window != [channels, 1, 1] and (window != [1, 3, 3] or columns % channels)):
        raise ValueError(
            f"{OP}: weight: expected shape (N, {channels}, 1, 1) or (a multiple of {channels}, 1, 3, 3), got {tuple(weight.shape)}"
        )  # fmt: skip
    if bias is not None:
        checks.parameter(OP, "bias", bias, 1, x, (columns,))
    checks.tensor(OP, "u", u, 2)
    checks.like(OP, "u", u, x, (x.shape[0], 2 * columns))
    checks.stride(OP, stride)


# --- backends ---


def _is_depthwise(weight: Tensor) -> bool:
    return weight.shape[2] == 3


def _cpu_forward(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int) -> Tensor:
    if _is_depthwise(weight):
        between = choose_depthwise_conv2d.implementations["cpu"].forward(x, weight, bias, stride, "none")
    else:
        between = choose_conv2d.implementations["cpu"].forward(x, weight, bias, None, None, stride, "none")
    y: Tensor = choose_dynamic_relu.implementations["cpu"].forward(between, u)
    return dense(y, channels_last=True)  # a map of one pixel or channel is in both formats


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


def _triton_forward(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int) -> Tensor:
    x, u = in_format(x, channels_last=True), u.contiguous()
    y = empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)
    if _is_depthwise(weight):
        _filters.forward(x, packed(arrange_taps, weight, bias), y, stride=stride, u=u)
    else:
        _products.conv2d(x, packed(TritonWeight(x.dtype, 0), weight, bias), y, stride=stride, u=u)
    return y


def _reference_forward(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int) -> Tensor:
    dtype = x.dtype
    x, weight, bias, u = widen(x, x, weight, bias, u)
    return dense(reference.conv2d_dynamic_relu(x, weight, bias, u, stride).to(dtype), channels_last=True)


def _reference_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int, *, cast: Callable[..., list[Any]] = widen
) -> tuple[Tensor, ...]:
    """cast: `widen` or `narrow`, of all tensors."""
    dtype, weight_dtype, channels_last = x.dtype, weight.dtype, is_channels_last(x)
    dy, x, weight, bias, u = cast(x, dy, x, weight, bias, u)
    dx, dweight, dbias, du = reference.conv2d_dynamic_relu_backward(dy, x, weight, bias, u, stride)
    return dense(dx.to(dtype), channels_last), dweight.to(weight_dtype).contiguous(), dbias.to(weight_dtype), du.to(dtype)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, functools.partial(_reference_backward, cast=narrow), _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int = 1, *, backend: str | None = None) -> Tensor:
    _check(x, weight, bias, u, stride)
    return choose(backend, x).forward(x, weight, bias, u, stride)


def _forward_fake(x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int = 1, *, backend: str | None = None) -> Tensor:
    _check(x, weight, bias, u, stride)
    return empty_in_format(x, out_size(x, weight.shape[0], stride), channels_last=True)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int, backend: str | None
) -> tuple[Tensor, ...]:  # fmt: skip
    checks.like(f"{OP}_backward", "dy", dy, x, out_size(x, weight.shape[0], stride))
    backward = choose(backend, x).backward
    assert backward is not None
    return backward(dy, x, weight, bias, u, stride)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int, backend: str | None
) -> tuple[Tensor, ...]:  # fmt: skip
    dx = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]), u.new_empty(u.shape)


_forward_op = register(
    OP, "(Tensor x, Tensor weight, Tensor? bias, Tensor u, int stride=1, *, str? backend=None) -> Tensor", _forward, _forward_fake
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor u, int stride, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(ctx: Any, x: Tensor, weight: Tensor, bias: Optional, u: Tensor, stride: int = 1, *, backend: str | None = None) -> None:
    ctx.save_for_backward(x, weight, bias, u)
    ctx.stride = stride
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.backend = choose.backend(backend, x)  # the backward may run on another thread, outside the use_backend block of the forward


def _gradient(ctx: Any, dy: Tensor) -> tuple[Optional, ...]:
    x, weight, bias, u = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        dx, dweight, dbias, du = _reference_backward(dy, x, weight, bias, u, ctx.stride)
    else:
        dx, dweight, dbias, du = _backward_op(dy, x, weight, bias, u, ctx.stride, ctx.backend)
    return dx, dweight, None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype), du, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=4, inputs=(0, 3))
