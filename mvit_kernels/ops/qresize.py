"""Bilinear resizing of a quantized map: schema, checks, fake and backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import dense, direct, empty_in_format, raise_status, register

OP = "qresize"
Tensor = torch.Tensor
_kernels = triton_support.Kernels(OP)


def qresize(x: Tensor, output_size: tuple[int, int], *, align_corners: bool = False, backend: str | None = None) -> Tensor:
    """torch.nn.functional.interpolate(x, output_size, mode="bilinear") of a quantized map, whose scale and zero-point stay what they are.

    Coordinates are torch's, in float64; the weights of both axes are rounded to multiples of 2^-11, sums of weights times bytes are exact,
    and y = rint(float32(sum) * 2^-22), ties to even. That is at most 5/8 from the exact result, so at most one step from its rounding.

    Args:
        x: (B, C, H, W) uint8, at least one channel and pixel. channels_last is read in place, other strides are copied to it first.
        output_size: (height, width), both positive.
        align_corners: as of torch.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, *output_size) uint8, always channels_last.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.is_tensor(OP, "x", x)
    checks.pair(OP, "output_size", output_size)
    if not isinstance(align_corners, bool):
        raise TypeError(f"{OP}: align_corners: expected True or False, got {shown(align_corners)}")
    checks.backend(OP, backend)
    return _call(x, output_size, align_corners, backend=backend)


def _check(x: Tensor, output_size: Sequence[int]) -> tuple[int, int, int, int]:
    checks.image(OP, "x", x, (torch.uint8,))
    checks.pair(OP, "output_size", output_size)
    height, width = output_size
    if height < 1 or width < 1:
        raise ValueError(f"{OP}: output_size: expected two positive integers, got {(height, width)}")
    return x.shape[0], x.shape[1], height, width


# --- backends ---


def _cpu_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool) -> Tensor:
    x = dense(x, channels_last=True)
    y = empty_in_format(x, (x.shape[0], x.shape[1], *output_size), channels_last=True)
    status = native.qresize(x.shape, output_size, align_corners, x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool) -> Tensor:
    return dense(reference.qresize(x, output_size, align_corners), channels_last=True)


def _triton_refuse(x: Tensor, output_size: tuple[int, int]) -> str | None:
    return triton_support.refuse_rows(x, (torch.uint8,), x.shape[0] * output_size[0] * output_size[1])


def _triton_forward(x: Tensor, output_size: tuple[int, int], align_corners: bool) -> Tensor:
    y = empty_in_format(x, (x.shape[0], x.shape[1], *output_size), channels_last=True)
    _kernels.qresize(dense(x, channels_last=True), align_corners, y)
    return y


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(x: Tensor, output_size: Sequence[int], align_corners: bool = False, *, backend: str | None = None) -> Tensor:
    _, _, height, width = _check(x, output_size)
    return choose(backend, x, (height, width)).forward(x, (height, width), align_corners)


def _forward_fake(x: Tensor, output_size: Sequence[int], align_corners: bool = False, *, backend: str | None = None) -> Tensor:
    return empty_in_format(x, _check(x, output_size), channels_last=True)


_op = register(
    OP, "(Tensor x, SymInt[] output_size, bool align_corners=False, *, str? backend=None) -> Tensor", _forward, _forward_fake
)  # fmt: skip
_call = direct(_op, _forward)
