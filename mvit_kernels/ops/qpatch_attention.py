"""Softmax attention of MobileViT inside pixel phases (arXiv 2110.02178, section 3.1) on bytes: schema, checks, fake and backends."""

from __future__ import annotations

from typing import Any

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown
from mvit_kernels.reference.patch_attention import default_scale

from . import checks, counts, cuda_support, qchecks, triton_support
from .attention import address, channels_side_by_side
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import direct, raise_status, register
from .placed import Placed

OP = "qpatch_attention"
Tensor = torch.Tensor
SMALLEST, LARGEST = 2.0**-64, 2.0**64
TABLE = Placed(reference.ATTENTION_TABLE)
_kernels = triton_support.Kernels(OP)


def qpatch_attention(
    qkv: Tensor, heads: int, *, q_scale: Any, q_zero_point: Any, k_scale: Any, v_scale: Any, v_zero_point: Any, out_scale: Any,
    out_zero_point: Any, out_bits: int = 8, patch_size: tuple[int, int] = (2, 2), scale: float | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """y[n] = sum_m softmax_m(scale q[n].k[m]) v[m] among the pixels of a phase, in each head, from bytes to bytes.

    Sums are exact integers and exponentials are bytes, so that the bits are the same everywhere. The zero-point of k cancels.

    Args:
        qkv: (B, H, W, 3d) uint8, channels in the order q (d), k (d), v (d), any strides; real q = q_scale * (q - q_zero_point), and k and v
            likewise. H and W are multiples of the patch.
        heads: how many; they divide d, and each has c = d / heads channels.
        q_scale, k_scale, v_scale, out_scale: a positive number each.
        q_zero_point, v_zero_point, out_zero_point: integers of at most 2^20 in size; real y = out_scale * (y - out_zero_point).
        out_bits: 8 or 6: bytes of y are at most 2^out_bits - 1.
        patch_size: (ph, pw); phase (y mod ph) pw + x mod pw; (1, 1) is attention among all pixels.
        scale: a positive number; None is c^-0.5.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, H, W, d) uint8, contiguous; the same on every backend: see `reference.qpatch_attention`.

    Raises:
        TypeError, ValueError: wrong arguments, sums that may not fit in int32 (more than 33025 pixels in a phase, or zero-points far from
            0 .. 255), or the requested backend cannot take the call.

    Source: MobileViT, arXiv 2110.02178, section 3.1; attention: arXiv 1706.03762, equation 1.
    """
    checks.is_tensor(OP, "qkv", qkv)
    if isinstance(heads, bool) or not isinstance(heads, (int, torch.SymInt)):
        raise TypeError(f"{OP}: heads: expected an integer, got {shown(heads)}")
    checks.pair(OP, "patch_size", patch_size)
    checks.backend(OP, backend)
    return _call(
        qkv, heads, patch_size, qchecks.scale(OP, "q_scale", q_scale), qchecks.zero_point(OP, "q_zero_point", q_zero_point, near=True),
        qchecks.scale(OP, "k_scale", k_scale), qchecks.scale(OP, "v_scale", v_scale),
        qchecks.zero_point(OP, "v_zero_point", v_zero_point, near=True), None if scale is None else qchecks.scale(OP, "scale", scale),
        qchecks.scale(OP, "out_scale", out_scale), qchecks.zero_point(OP, "out_zero_point", out_zero_point, near=True),
        qchecks.bits(OP, "out_bits", out_bits), backend=backend,
    )  # fmt: skip


def _check(qkv: Tensor, heads: int, patch_size: list[int], q_zero_point: int, v_zero_point: int, out_bits: int) -> tuple[int, int]:
    checks.tensor(OP, "qkv", qkv, 4, (torch.uint8,))
    if heads < 1:
        raise ValueError(f"{OP}: heads: expected at least 1, got {heads}")
    _, height, width, channels = qkv.shape
    if channels % (3 * heads) != 0:
        raise ValueError(f"{OP}: qkv: expected channels that are a multiple of 3 * heads = {3 * heads}, got {channels}")
    patch = checks.patch_size(OP, patch_size)
    checks.whole_patches(OP, "qkv", height, width, patch)
    qchecks.bits(OP, "out_bits", out_bits)
    pixels = height // patch[0] * (width // patch[1])
    for name, zero_point, terms in (("q_zero_point", q_zero_point, channels // (3 * heads)), ("v_zero_point", v_zero_point, pixels)):
        if terms * 255 * max(abs(zero_point), abs(255 - zero_point)) >= 2**31 - 1:
            raise ValueError(f"{OP}: {name}: expected sums of {terms} products that fit in int32, got zero-point {zero_point}")
    return patch


def _factors(qkv: Tensor, heads: int, q_scale: float, k_scale: float, v_scale: float, scale: float | None, out_scale: float) -> Any:
    scale = default_scale(qkv.shape[3] // 3, heads) if scale is None else scale
    f, g = reference.attention_factors(q_scale, k_scale, v_scale, out_scale, scale)
    for name, factor, what in (("q_scale", f, "q_scale * k_scale * scale"), ("out_scale", g, "v_scale / out_scale")):
        if not SMALLEST <= factor <= LARGEST:
            raise ValueError(f"{OP}: {name}: expected {what} between 2^-64 and 2^64, got a factor of {factor:g}")
    return f, g


# --- backends ---


def _cpu(
    qkv: Tensor, heads: int, patch: tuple[int, int], q_zero_point: int, v_zero_point: int, f: float, g: float, out_zero_point: int,
    out_bits: int,
) -> Tensor:  # fmt: skip
    qkv = channels_side_by_side(qkv)
    batch, height, width, channels = qkv.shape
    y = torch.empty(batch, height, width, channels // 3, dtype=torch.uint8)
    status = native.qpatch_attention(
        (batch, channels // 3, height, width), heads, patch, qkv.data_ptr(), qkv.stride()[:3], q_zero_point, v_zero_point, f, g,
        reference.ATTENTION_TABLE.data_ptr(), out_zero_point, out_bits, y.data_ptr(), y.stride()[:3], torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


_DEEPEST_CUDA = 64  # channels of a head: csrc/cuda/ops/qpatch_attention.h
_MOST_BYTES = 2**31 - 1  # of an image: its offsets are of 32 bits


def _cuda_refuse(qkv: Tensor, heads: int, patch: tuple[int, int], q_zero_point: int) -> str | None:
    if (reason := cuda_support.refuse(qkv)) is not None:
        return reason
    _, height, width, channels = qkv.shape
    depth, length = channels // (3 * heads), height // patch[0] * (width // patch[1])
    if depth > _DEEPEST_CUDA:
        return f"it takes heads of at most {_DEEPEST_CUDA} channels, got {depth}"
    if not 0 <= q_zero_point <= 255:
        return f"it takes a q_zero_point in 0 .. 255, got {q_zero_point}"
    if (height - 1) * qkv.stride(1) + (width - 1) * qkv.stride(2) + channels > _MOST_BYTES or height * width * channels // 3 > _MOST_BYTES:
        return f"it takes images of at most {_MOST_BYTES} bytes from first to last"
    return cuda_support.refuse_shared(qkv, cuda_support.native.qpatch_attention_shared(heads, length, depth))


def _cuda(
    qkv: Tensor, heads: int, patch: tuple[int, int], q_zero_point: int, v_zero_point: int, f: float, g: float, out_zero_point: int,
    out_bits: int,
) -> Tensor:  # fmt: skip
    qkv = channels_side_by_side(qkv)
    batch, height, width, channels = qkv.shape
    y = qkv.new_empty(batch, height, width, channels // 3)
    (table,) = TABLE.on(qkv.device)
    cuda_support.native.qpatch_attention(
        *cuda_support.place(qkv), (batch, channels // 3, height, width), heads, patch, qkv.data_ptr(), qkv.stride()[:3], q_zero_point,
        v_zero_point, f, g, address(table), out_zero_point, out_bits, y.data_ptr(),
    )  # fmt: skip
    return y


_DEEPEST_TRITON = 256  # channels of a head: a program has them all in registers


def _triton_refuse(qkv: Tensor, heads: int, *_: object) -> str | None:
    depth = qkv.shape[3] // (3 * heads)
    if depth > _DEEPEST_TRITON:
        return f"it takes heads of at most {_DEEPEST_TRITON} channels, got {depth}"
    return counts.refuse(counts.pixels(qkv)) or triton_support.refuse(qkv, (torch.uint8,))


def _triton(
    qkv: Tensor, heads: int, patch: tuple[int, int], q_zero_point: int, v_zero_point: int, f: float, g: float, out_zero_point: int,
    out_bits: int,
) -> Tensor:  # fmt: skip
    qkv = channels_side_by_side(qkv)
    y = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    (table,) = TABLE.on(qkv.device)
    _kernels.qpatch_attention(qkv, heads, patch, q_zero_point, v_zero_point, f, g, table, out_zero_point, out_bits, y)
    return y


choose = Choice(
    OP,
    cuda=Implementation(_cuda, refuse=_cuda_refuse),
    triton=Implementation(_triton, refuse=_triton_refuse),
    cpu=Implementation(_cpu, refuse=refuse_off_cpu),
    reference=Implementation(reference.qpatch_attention),
)


# --- registration ---


def _attention(
    qkv: Tensor, heads: int, patch_size: list[int], q_scale: float, q_zero_point: int, k_scale: float, v_scale: float, v_zero_point: int,
    scale: float | None, out_scale: float, out_zero_point: int, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    patch = _check(qkv, heads, patch_size, q_zero_point, v_zero_point, out_bits)
    f, g = _factors(qkv, heads, q_scale, k_scale, v_scale, scale, out_scale)
    chosen = choose(backend, qkv, heads, patch, q_zero_point)
    return chosen.forward(qkv, heads, patch, q_zero_point, v_zero_point, f, g, out_zero_point, out_bits)


def _fake(
    qkv: Tensor, heads: int, patch_size: list[int], q_scale: float, q_zero_point: int, k_scale: float, v_scale: float, v_zero_point: int,
    scale: float | None, out_scale: float, out_zero_point: int, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(qkv, heads, patch_size, q_zero_point, v_zero_point, out_bits)
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


_op = register(
    OP,
    "(Tensor qkv, int heads, int[] patch_size, float q_scale, int q_zero_point, float k_scale, float v_scale, int v_zero_point,"
    " float? scale, float out_scale, int out_zero_point, int out_bits, *, str? backend=None) -> Tensor",
    _attention,
    _fake,
)
_call = direct(_op, _attention, tensors=1)
