"""Norms of an int16 residual stream, quantized: schema, checks, fake and backends."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from mvit_kernels import reference

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .gemm import walkable_rows
from .library import direct, raise_status, register

OP = "qnorm"
Tensor = torch.Tensor
Optional = torch.Tensor | None
LARGEST_GROUP = 2**33  # values of int16 whose squares add up in int64
_kernels = triton_support.Kernels(OP)


class Norm(NamedTuple):
    """A norm whose quantization is checked, as the schemas of the ops have it."""

    scale: float
    out_scale: float
    out_zero_point: int
    eps: float
    bits: int


def qnorm(
    x: Tensor, sums: Tensor | None = None, *, groups: int | None = None, scale: Any, out_scale: Any, out_zero_point: Any,
    eps: float = 1e-5, bits: int = 8, weight: Tensor | None = None, bias: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(variance + eps) of an int16 residual stream, as bytes for the integer product behind the norm.

    gamma and beta belong in weight and bias of that product, if products are all that take the result. Where it is the only reader,
    `qnorm_gemm` does both at once.

    Args:
        x: (M, K) int16, real = scale * x; rows of stride 1 are read in place.
        sums: (G, 2) int64, sum and sum of squares of each of G groups of M / G rows, as `qgemm(..., collect=G)` gives them: GroupNorm with
            one group has a group an image. None: they are computed here.
        groups: without sums, the number of groups; None: each row is normalised by itself, as LayerNorm does.
        scale, out_scale: a positive number each.
        out_zero_point: an integer, |out_zero_point| <= 2^20; real y = out_scale * (y - out_zero_point).
        eps: added to the variance; positive.
        bits: 8 or 6: bytes of y are at most 2^bits - 1.
        weight, bias: (K,) finite floats, both or neither: gamma and beta.
        backend: None for automatic choice, or the name of one.

    Returns:
        (M, K) uint8; the same on every backend: see `reference.qnorm`.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take the call.

    Source: GroupNorm, arXiv 1803.08494; LayerNorm, arXiv 1607.06450.
    """
    checks.all_tensors(OP, x=x)
    checks.tensors(OP, sums=sums, weight=weight, bias=bias)
    checks.backend(OP, backend)
    if groups is not None:
        checks.integer(OP, "groups", groups)
    norm = norm_of(OP, scale, out_scale, out_zero_point, eps, bits)
    if weight is None and bias is None:
        return _call(x, sums, *norm, groups, backend=backend)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None or value.shape != x.shape[-1:] or not value.is_floating_point():
            got = "None" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"{OP}: {name}: expected {x.shape[-1] if x.ndim else 0} floats beside the other, got {got}")
    assert weight is not None
    assert bias is not None
    affine = (each.to(x.device) for each in reference.norm_affine(weight, bias, norm.out_scale))
    return _call(x, sums, *norm._replace(out_scale=1.0), groups, *affine, backend=backend)


def norm_of(op: str, scale: Any, out_scale: Any, out_zero_point: Any, eps: float, bits: int, prefix: str = "out") -> Norm:
    """Checks the quantization of a norm; the arguments of its result are called `prefix`_scale and so on."""
    if not isinstance(eps, (int, float)) or not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps: expected a positive finite number, got {eps!r}")
    return Norm(
        qchecks.scale(op, "scale", scale),
        qchecks.scale(op, f"{prefix}_scale", out_scale),
        qchecks.zero_point(op, f"{prefix}_zero_point", out_zero_point, near=True),
        float(eps),
        qchecks.bits(op, "bits" if prefix == "out" else f"{prefix}_bits", bits),
    )


def check_stream(op: str, x: Tensor, sums: Optional, groups: int | None = None) -> None:
    checks.tensor(op, "x", x, 2, (torch.int16,))
    group = x.shape[1]
    if groups is not None:
        if sums is not None:
            raise ValueError(f"{op}: groups: expected None with sums, got {groups}")
        checks.whole_groups(op, "groups", groups, x.shape[0])
        group *= x.shape[0] // max(groups, 1)
    if sums is not None:
        checks.tensor(op, "sums", sums, 2, (torch.int64,))
        if sums.shape[1] != 2 or sums.device != x.device:
            raise ValueError(f"{op}: sums: expected shape (G, 2) on {x.device}, got {tuple(sums.shape)} on {sums.device}")
        checks.whole_groups(op, "sums", sums.shape[0], x.shape[0])
        group *= x.shape[0] // max(sums.shape[0], 1)
    if group > LARGEST_GROUP:
        raise ValueError(f"{op}: x: expected groups of at most 2^33 values, got {group}")


# --- backends ---


def _cpu_forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None,
    gain: Optional = None, offset: Optional = None,
) -> Tensor:  # fmt: skip
    x = walkable_rows(x)
    rows, depth = x.shape
    y = torch.empty(rows, depth, dtype=torch.uint8)
    if groups is not None:
        sums = reference.stream_sums(x, groups)
    if sums is not None:
        sums = sums.contiguous()
    status = native.qnorm(
        rows, depth, x.data_ptr(), x.stride(0), 0 if sums is None else sums.shape[0], 0 if sums is None else sums.data_ptr(), scale,
        out_scale, out_zero_point, eps, bits, 0 if gain is None else gain.data_ptr(), 0 if offset is None else offset.data_ptr(),
        y.data_ptr(), depth, torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None,
    gain: Optional = None, offset: Optional = None,
) -> Tensor:  # fmt: skip
    sums = sums if groups is None else reference.stream_sums(x, groups)
    return reference.qnorm(x, sums, scale, out_scale, out_zero_point, eps, bits, gain, offset)


def _triton_refuse(x: Tensor, gain: Optional = None, *_: object) -> str | None:
    if gain is not None:
        return "it takes no weight and bias"
    return triton_support.refuse_rows(x, (torch.int16,))


def _triton_forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None,
    *_: object,
) -> Tensor:  # fmt: skip
    y = x.new_empty(x.shape, dtype=torch.uint8)
    groups = groups if groups is not None else x.shape[0] if sums is None else sums.shape[0]
    x = walkable_rows(x) if sums is None and groups == x.shape[0] else x.contiguous()
    sums = None if sums is None else sums.contiguous()
    _kernels.qnorm(x, sums, groups, scale, out_scale, out_zero_point, eps, bits, y)
    return y


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _check(x: Tensor, sums: Optional, bits: int, groups: int | None, gain: Optional, offset: Optional) -> None:
    check_stream(OP, x, sums, groups)
    qchecks.bits(OP, "bits", bits)
    if (gain is None) != (offset is None):
        raise ValueError(f"{OP}: gain: expected it and the offset, or neither, got one of them")
    for name, value in (("gain", gain), ("offset", offset)):
        if value is not None:
            checks.prepared(OP, name, value, torch.float32, (x.shape[1],), x.device)


def _forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None = None,
    gain: Optional = None, offset: Optional = None, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, sums, bits, groups, gain, offset)
    return choose(backend, x, gain).forward(x, sums, scale, out_scale, out_zero_point, eps, bits, groups, gain, offset)


def _forward_fake(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None = None,
    gain: Optional = None, offset: Optional = None, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(x, sums, bits, groups, gain, offset)
    return x.new_empty(x.shape, dtype=torch.uint8)


_op = register(
    OP,
    "(Tensor x, Tensor? sums, float scale, float out_scale, int out_zero_point, float eps, int bits, SymInt? groups=None,"
    " Tensor? gain=None, Tensor? offset=None, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = direct(_op, _forward, tensors=2)
