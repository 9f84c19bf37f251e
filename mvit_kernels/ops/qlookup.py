"""Any function of a quantized value, by a table of 256 bytes: schema, checks, fake and backends."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import dense_in_own_format, direct, empty_in_own_format, in_format_of, raise_status, register

OP = "qlookup"
Tensor = torch.Tensor
_kernels = triton_support.Kernels(OP)


def qlookup(x: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    """y = table[x].

    Args:
        x: uint8 of any shape. Dense NCHW and channels_last maps are read in place, other strides are copied.
        table: (256,) uint8; `reference.activation_table` makes that of an activation.
        backend: None for automatic choice, or the name of one.

    Returns:
        uint8, shape and memory format of x.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.
    """
    checks.all_tensors(OP, x=x, table=table)
    checks.backend(OP, backend)
    return _call(x, table, backend=backend)


def _check(x: Tensor, table: Tensor) -> None:
    checks.tensor(OP, "x", x, x.ndim, (torch.uint8,))
    checks.tensor(OP, "table", table, 1, (torch.uint8,))
    if table.shape[0] != 256 or table.device != x.device:
        raise ValueError(f"{OP}: table: expected shape (256,) on {x.device}, got {tuple(table.shape)} on {table.device}")


# --- backends ---


def _cpu_forward(x: Tensor, table: Tensor) -> Tensor:
    y = empty_in_own_format(x, torch.uint8)
    x, _ = dense_in_own_format(x)
    table = table.contiguous()
    status = native.qlookup(x.numel(), table.data_ptr(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, (torch.uint8,))


def _triton_forward(x: Tensor, table: Tensor) -> Tensor:
    y = empty_in_own_format(x, torch.uint8)
    _kernels.qlookup(dense_in_own_format(x)[0], table.contiguous(), y)
    return y


def _reference_forward(x: Tensor, table: Tensor) -> Tensor:
    return in_format_of(x, reference.qlookup(x, table))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(x: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    _check(x, table)
    return choose(backend, x).forward(x, table)


def _forward_fake(x: Tensor, table: Tensor, *, backend: str | None = None) -> Tensor:
    _check(x, table)
    return empty_in_own_format(x, torch.uint8)


_op = register(OP, "(Tensor x, Tensor table, *, str? backend=None) -> Tensor", _forward, _forward_fake)
_call = direct(_op, _forward, tensors=2)
