"""Bilinear resizing of a map with an activation behind it: schema, checks, fake, backward and backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .epilogue import finish_in_place
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    is_channels_last,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    wide,
)

OP = "resize"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor


def resize(
    x: Tensor, output_size: tuple[int, int], *, align_corners: bool = False, activation: str | None = None, backend: str | None = None
) -> Tensor:
    """act(torch.nn.functional.interpolate(x, output_size, mode="bilinear")): each pixel of the result is a weighted sum of the four of x
    around it.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64, at least one channel and pixel. channels_last is read in place, other strides
            are copied to it first.
        output_size: (height, width), both positive.
        align_corners: as of torch.
        activation: None, or one of reference.ACTIVATIONS, of the weighted sum.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, *output_size), dtype of x, always channels_last. Sums are float32 (float64 of a float64 x).

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.

    Source: as EfficientFormerV2 has it behind the attention of its stride-2 blocks (arXiv 2212.08059, section 3.2).
    """
    checks.is_tensor(OP, "x", x)
    checks.pair(OP, "output_size", output_size)
    if not isinstance(align_corners, bool):
        raise TypeError(f"{OP}: align_corners: expected True or False, got {shown(align_corners)}")
    checks.backend(OP, backend)
    return _call(x, output_size, align_corners, activation or "none", backend=backend)


def _check(x: Tensor, output_size: Sequence[int], activation: str) -> tuple[int, int, int, int]:
    checks.image(OP, "x", x, FLOAT_DTYPES)
    checks.pair(OP, "output_size", output_size)
    height, width = output_size
    if height < 1 or width < 1:
        raise ValueError(f"{OP}: output_size: expected two positive integers, got {(height, width)}")
    checks.activation(OP, activation)
    return x.shape[0], x.shape[1], height, width


# --- backends ---


def _cpu_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool, activation: str) -> Tensor:
    x = dense(x, channels_last=True)
    y = empty_in_format(x, (x.shape[0], x.shape[1], *output_size), channels_last=True)
    status = native.resize(
        FLOAT_CODES[x.dtype], x.shape, output_size, align_corners, x.data_ptr(), y.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    if status := status or finish_in_place(y, activation):
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, output_size: tuple[int, int]) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES, x.shape[0] * output_size[0] * output_size[1])


def _triton_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool, activation: str) -> Tensor:
    y = empty_in_format(x, (x.shape[0], x.shape[1], *output_size), channels_last=True)
    _kernels.forward(dense(x, channels_last=True), align_corners, activation, y)
    return y


def _reference_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool, activation: str) -> Tensor:
    return dense(reference.resize(wide(x), output_size, align_corners, activation).to(x.dtype), channels_last=True)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_floats),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, output_size: Sequence[int], align_corners: bool = False, activation: str = "none", *, backend: str | None = None
) -> Tensor:
    _, _, height, width = _check(x, output_size, activation)
    return choose(backend, x, (height, width)).forward(x, (height, width), align_corners, activation)


def _forward_fake(
    x: Tensor, output_size: Sequence[int], align_corners: bool = False, activation: str = "none", *, backend: str | None = None
) -> Tensor:
    return empty_in_format(x, _check(x, output_size, activation), channels_last=True)


def _backward(dy: Tensor, x: Tensor, align_corners: bool, activation: str) -> Tensor:
    """Torch's own, whatever computed the forward. In the memory order of x."""
    return dense(reference.resize_backward(wide(dy), wide(x), align_corners, activation).to(x.dtype), is_channels_last(x))


def _backward_fake(dy: Tensor, x: Tensor, align_corners: bool, activation: str) -> Tensor:
    return empty_in_format(x, tuple(x.shape), is_channels_last(x))


def _setup(
    ctx: Any, x: Tensor, output_size: Sequence[int], align_corners: bool = False, activation: str = "none", *, backend: str | None = None
) -> None:
    ctx.save_for_backward(x)
    ctx.settings = align_corners, activation


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        return _backward(dy, x, *ctx.settings)
    return _backward_op(dy, x, *ctx.settings)


_op = register(
    OP,
    "(Tensor x, SymInt[] output_size, bool align_corners=False, str activation='none', *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward", "(Tensor dy, Tensor x, bool align_corners, str activation) -> Tensor", _backward, _backward_fake
)  # fmt: skip
_call = register_autograd(_op, _forward, _setup, lambda ctx, dy: (_gradient(ctx, dy), None, None, None))
