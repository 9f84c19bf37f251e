"""`pool_mixer` of bytes: schema, checks, fake and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import dense, direct, empty_in_format, in_channels_last, is_channels_last, raise_status, register
from .placed import Placed

OP = "qpool_mixer"
Tensor = torch.Tensor
_kernels = triton_support.Kernels(OP)


def qpool_mixer(
    x: Tensor, scale: Tensor, *, a_scale: Any, a_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int = 8,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Every pixel of a quantized map, moved towards the mean of its 3x3 neighbourhood by a factor for each channel; see `pool_mixer`.

    Args:
        x: (B, C, H, W) uint8, at least one channel and pixel. Runs on channels_last memory, other strides are copied to it and back.
        scale: (C,) finite floats, the factors.
        a_scale, a_zero_point, out_scale, out_zero_point: a number and an integer each, |zero_point| <= 2^20: sums are exact.
        out_bits: 8 or 6.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, H, W) uint8, in the memory format of x.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.all_tensors(OP, x=x, scale=scale)
    checks.backend(OP, backend)
    settled = _settle(scale, a_scale, a_zero_point, out_scale, out_zero_point, out_bits)
    checks.image(OP, "x", x, (torch.uint8,))
    if scale.shape[0] != x.shape[1]:
        raise ValueError(f"{OP}: scale: expected {x.shape[1]} floats, got {scale.dtype} of shape {tuple(scale.shape)}")
    return _call(x, *settled, backend=backend)


class QPoolMixer:
    """What `prepare_qpool_mixer` makes: call it with x. Its factors are copied to the device of x by the first call there."""

    def __init__(self, factors: tuple[Tensor, Tensor], points: tuple[int, int], out_bits: int, backend: str | None) -> None:
        self._factors, self._settings, self.backend = Placed(*factors), (*points, out_bits), backend

    def __call__(self, x: Tensor) -> Tensor:
        if type(x) is not torch.Tensor:
            checks.is_tensor(OP, "x", x)
        return _call(x, *self._factors.on(x.device), *self._settings, backend=self.backend)


def prepare_qpool_mixer(
    scale: Tensor, *, a_scale: Any, a_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int = 8, backend: str | None = None
) -> QPoolMixer:
    """Compute once what calls of `qpool_mixer` with the same factors need; arguments as there."""
    checks.all_tensors(OP, scale=scale)
    checks.backend(OP, backend)
    keep, move, *points, bits = _settle(scale, a_scale, a_zero_point, out_scale, out_zero_point, out_bits)
    return QPoolMixer((keep, move), (points[0], points[1]), bits, backend)


def _settle(
    scale: Tensor, a_scale: Any, a_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int
) -> tuple[Tensor, Tensor, int, int, int]:
    """The arguments of the op behind x."""
    a_scale, out_scale = qchecks.scale(OP, "a_scale", a_scale), qchecks.scale(OP, "out_scale", out_scale)
    a_zero_point, out_zero_point = (
        qchecks.zero_point(OP, name, value, near=True)
        for name, value in (("a_zero_point", a_zero_point), ("out_zero_point", out_zero_point))
    )
    bits = qchecks.bits(OP, "out_bits", out_bits)
    if scale.ndim != 1 or not scale.is_floating_point():
        raise ValueError(f"{OP}: scale: expected floats of shape (C,), got {scale.dtype} of shape {tuple(scale.shape)}")
    return *reference.pool_factors(scale, a_scale, out_scale), a_zero_point, out_zero_point, bits


def _check(x: Tensor, keep: Tensor, move: Tensor, a_zero_point: int, out_zero_point: int, out_bits: int) -> None:
    qchecks.bits(OP, "out_bits", out_bits)
    checks.image(OP, "x", x, (torch.uint8,))
    for name, value in (("keep", keep), ("move", move)):
        checks.prepared(OP, name, value, torch.float32, (x.shape[1],), x.device)
    for name, zero_point in (("a_zero_point", a_zero_point), ("out_zero_point", out_zero_point)):
        qchecks.zero_point(OP, name, zero_point, near=True)


# --- backends ---


def _cpu_forward(x: Tensor, keep: Tensor, move: Tensor, a_zero_point: int, out_zero_point: int, out_bits: int) -> Tensor:
    def fill(x: Tensor, y: Tensor) -> None:
        status = native.qpool_mixer(
            x.shape, x.data_ptr(), a_zero_point, keep.data_ptr(), move.data_ptr(), out_zero_point, out_bits, y.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        if status:
            raise_status(OP, status)

    return in_channels_last(x, fill)


def _reference_forward(x: Tensor, *settings: Any) -> Tensor:
    return dense(reference.qpool_mixer(x, settings[2], settings[0], settings[1], *settings[3:]), is_channels_last(x))


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, (torch.uint8,))


def _triton_forward(x: Tensor, *settings: Any) -> Tensor:
    return in_channels_last(x, lambda x, y: _kernels.qpool_mixer(x, *settings, y))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(
    x: Tensor, keep: Tensor, move: Tensor, a_zero_point: int, out_zero_point: int, out_bits: int, *, backend: str | None = None
) -> Tensor:
    _check(x, keep, move, a_zero_point, out_zero_point, out_bits)
    return choose(backend, x).forward(x, keep, move, a_zero_point, out_zero_point, out_bits)


def _forward_fake(
    x: Tensor, keep: Tensor, move: Tensor, a_zero_point: int, out_zero_point: int, out_bits: int, *, backend: str | None = None
) -> Tensor:
    _check(x, keep, move, a_zero_point, out_zero_point, out_bits)
    return empty_in_format(x, tuple(x.shape), is_channels_last(x))


_op = register(
    OP,
    "(Tensor x, Tensor keep, Tensor move, int a_zero_point, int out_zero_point, int out_bits, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = direct(_op, _forward, tensors=3)
