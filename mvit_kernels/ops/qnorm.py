"""Norms of an int16 residual stream, quantized: schema, checks, fake and backends."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .gemm import walkable_rows
from .library import direct, raise_status, register
from .placed import Placed

OP = "qnorm"
NORMS = ("group", "layer")
Tensor = torch.Tensor
Optional = torch.Tensor | None
LARGEST_GROUP = 2**33  # values of int16 whose squares add up in int64
MOST_COMBINED = 256  # pieces of sums that every program or warp of a kernel puts together by itself
_kernels = triton_support.Kernels(OP)


class Norm(NamedTuple):
    """A norm whose quantization is checked, as the schemas of the ops have it."""

    scale: float
    out_scale: float
    out_zero_point: int
    eps: float
    bits: int


class QNorm:
    """A norm of maps whose quantization is computed: call it with a stream x (B, C, H, W) int16 and, of a norm of images, with their sums
    if they are known: (B, 2) or (B, pieces, 2) int64."""

    def __init__(self, kind: str, norm: Norm, gain: Optional, offset: Optional, backend: str | None) -> None:
        self.kind, self.norm, self.backend = kind, norm, backend
        self.affine = gain is not None
        self._placed = Placed(gain, offset)

    def __call__(self, x: Tensor, sums: Optional = None) -> Tensor:
        """y (B, C, H, W) uint8, in channels_last memory."""
        checks.all_tensors(OP, x=x)
        checks.tensors(OP, sums=sums)
        check_maps(OP, x, sums, self.kind)
        pixels = x.permute(0, 2, 3, 1)
        groups = x.shape[0] if self.kind == "group" and sums is None else None
        affine = self._placed.on(x.device) if self.affine else ()
        y: Tensor = _call(pixels.reshape(-1, x.shape[1]), sums, *self.norm, groups, *affine, backend=self.backend)
        return y.reshape(pixels.shape).permute(0, 3, 1, 2)


def prepare_qnorm(
    kind: str, *, scale: Any, out_scale: Any, out_zero_point: Any, eps: float = 1e-5, bits: int = 8, weight: Tensor | None = None,
    bias: Tensor | None = None, backend: str | None = None,
) -> QNorm:  # fmt: skip
    """Compute once what calls of `qnorm` with the same quantization need. kind: "group", GroupNorm with one group (MobileViTv2), or
    "layer", LayerNorm of each pixel (MobileViT); the other arguments as of `qnorm`."""
    checks.backend(OP, backend)
    checks.tensors(OP, weight=weight, bias=bias)
    if kind not in NORMS:
        raise ValueError(f"{OP}: kind: expected one of {', '.join(NORMS)}, got {shown(kind)}")
    return QNorm(kind, *_prepared(norm_of(OP, scale, out_scale, out_zero_point, eps, bits), weight, bias), backend)


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
            one group has a group an image. Or (G, pieces, 2), of pieces of each group. None: they are computed here.
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
    norm, *affine = _prepared(norm, weight, bias, x.shape[-1] if x.ndim else 0)
    return _call(x, sums, *norm, groups, *(None if each is None else each.to(x.device) for each in affine), backend=backend)


def _prepared(norm: Norm, weight: Optional, bias: Optional, channels: int | None = None) -> tuple[Norm, Optional, Optional]:
    """(norm, gain, offset) as the op takes them."""
    if weight is None and bias is None:
        return norm, None, None
    if channels is None:
        channels = max(0 if each is None else each.numel() for each in (weight, bias))
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None or value.shape != (channels,) or not value.is_floating_point():
            got = "None" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"{OP}: {name}: expected {channels} floats beside the other, got {got}")
    assert weight is not None
    assert bias is not None
    return norm._replace(out_scale=1.0), *reference.norm_affine(weight, bias, norm.out_scale)


def norm_of(op: str, scale: Any, out_scale: Any, out_zero_point: Any, eps: float, bits: int, prefix: str = "out") -> Norm:
    """Checks the quantization of a norm; the arguments of its result are called `prefix`_scale and so on."""
    if not isinstance(eps, (int, float)) or not 0 < eps < math.inf:
        raise ValueError(f"{op}: eps: expected a positive finite number, got {shown(eps)}")
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
        check_sums(op, sums, x.device)
        checks.whole_groups(op, "sums", sums.shape[0], x.shape[0])
        group *= x.shape[0] // max(sums.shape[0], 1)
    if group > LARGEST_GROUP:
        raise ValueError(f"{op}: x: expected groups of at most 2^33 values, got {group}")


def check_maps(op: str, x: Tensor, sums: Optional, norm: str = "group") -> None:
    """x (B, C, H, W), and what is known of its images."""
    checks.image(op, "x", x, (torch.int16,))
    check_known(op, sums, norm)
    if sums is not None:
        check_sums(op, sums, x.device)
        if sums.shape[0] != x.shape[0]:
            raise ValueError(f"{op}: sums: expected those of {x.shape[0]} images, got {sums.shape[0]}")


def check_known(op: str, sums: Optional, norm: str) -> None:
    if sums is not None and norm == "layer":
        raise ValueError(f"{op}: sums: expected None with a norm of each pixel, got a tensor")


def check_sums(op: str, sums: Tensor, device: torch.device) -> None:
    checks.tensor(op, "sums", sums, 3 if sums.ndim == 3 else 2, (torch.int64,))
    if sums.shape[-1] != 2 or sums.device != device:
        raise ValueError(f"{op}: sums: expected shape (G, 2) or (G, pieces, 2) on {device}, got {tuple(sums.shape)} on {sums.device}")
    if sums.ndim == 3 and sums.shape[1] == 0:
        raise ValueError(f"{op}: sums: expected at least one piece of each group, got shape {tuple(sums.shape)}")


# --- backends ---


def whole_sums(sums: Optional) -> Optional:
    """(G, 2), of sums of groups or of their pieces."""
    return sums.sum(1) if sums is not None and sums.ndim == 3 else sums


def combined_sums(sums: Optional) -> Optional:
    """As kernels of a GPU take them, contiguous: at most MOST_COMBINED pieces, since each of their programs or warps adds up all of them,
    and as each has a piece of what they collect, that is the square of their number."""
    if sums is not None and sums.ndim == 3 and sums.shape[1] > MOST_COMBINED:
        sums = whole_sums(sums)
    return None if sums is None else sums.contiguous()


def pieces_of_sums(x: Tensor, groups: int) -> Tensor:
    """(G, pieces, 2) int64: sums of pieces of each group of rows of x (M, K), by a kernel on a GPU, else by plain torch."""
    if x.is_cuda and x.numel() and _triton_refuse(x) is None:
        pieces: Tensor = _kernels.stream_sums(x.contiguous(), groups)
        return pieces
    return reference.stream_sums(x, groups)[:, None]


def cuda_norm(
    sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int
) -> tuple[int, int, float, float, int, float, int]:
    """The arguments of `norm_of` in python/bind_cuda.cpp."""
    pieces = sums.shape[1] if sums is not None and sums.ndim == 3 else 1
    return 0 if sums is None else sums.data_ptr(), pieces, scale, out_scale, out_zero_point, eps, bits


def _cpu_forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None,
    gain: Optional = None, offset: Optional = None,
) -> Tensor:  # fmt: skip
    x = walkable_rows(x)
    rows, depth = x.shape
    y = torch.empty(rows, depth, dtype=torch.uint8)
    sums = whole_sums(sums) if groups is None else reference.stream_sums(x, groups)
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
    sums = whole_sums(sums) if groups is None else reference.stream_sums(x, groups)
    return reference.qnorm(x, sums, scale, out_scale, out_zero_point, eps, bits, gain, offset)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, (torch.int16,))


def _triton_forward(
    x: Tensor, sums: Optional, scale: float, out_scale: float, out_zero_point: int, eps: float, bits: int, groups: int | None,
    gain: Optional = None, offset: Optional = None,
) -> Tensor:  # fmt: skip
    y = x.new_empty(x.shape, dtype=torch.uint8)
    groups = groups if groups is not None else x.shape[0] if sums is None else sums.shape[0]
    x = walkable_rows(x) if sums is None and groups == x.shape[0] else x.contiguous()
    _kernels.qnorm(x, combined_sums(sums), groups, scale, out_scale, out_zero_point, eps, bits, gain, offset, y)
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
    return choose(backend, x).forward(x, sums, scale, out_scale, out_zero_point, eps, bits, groups, gain, offset)


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
