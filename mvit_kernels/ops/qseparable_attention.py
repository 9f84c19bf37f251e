"""Separable self-attention (arXiv 2206.02680, equation 3) on bytes, in two halves around the key projection: schemas, checks, fakes,
backends, and what is prepared once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mvit_kernels import reference
from mvit_kernels.messages import shown

from . import checks, counts, qchecks, triton_support
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import direct, raise_status, register
from .placed import Placed

CONTEXT, GATE = "qseparable_context", "qseparable_gate"
Tensor = torch.Tensor
SMALLEST, LARGEST = 2.0**-64, 2.0**64
_kernels = triton_support.Kernels("qseparable_attention")


class Context(NamedTuple):
    """The quantization of a context, checked, as the schema has it."""

    x_scale: float
    x_zero_point: int
    out_scale: float | None
    out_zero_point: int
    out_bits: int


class Gate(NamedTuple):
    """The quantization of a gate, checked, as the schema has it."""

    v_scale: float
    v_zero_point: int
    out_scale: float
    out_zero_point: int
    out_bits: int


class QSeparableContext:
    """A context whose quantization is checked: call it with scores (B, H, W) and x (B, H, W, d), both uint8."""

    def __init__(self, table: Tensor, settings: Context, patch_size: tuple[int, int], backend: str | None) -> None:
        self.table, self.settings, self.patch_size, self.backend = table, settings, patch_size, backend
        self._placed = Placed(table)

    def __call__(self, scores: Tensor, x: Tensor) -> Tensor:
        """(B, ph pw, d). The table is copied to the device of x by the first call there."""
        (table,) = (self.table,) if x.is_cpu else self._placed.on(x.device)
        y: Tensor = _context_call(scores, x, table, self.patch_size, *self.settings, backend=self.backend)
        return y


class QSeparableGate:
    """A gate whose quantization is checked: call it with v (B, H, W, d) uint8 and a context (B, ph pw, d) float32."""

    def __init__(self, settings: Gate, patch_size: tuple[int, int], backend: str | None) -> None:
        self.settings, self.patch_size, self.backend = settings, patch_size, backend

    def __call__(self, v: Tensor, context: Tensor) -> Tensor:
        checks.all_tensors(GATE, v=v, context=context)
        y: Tensor = _gate_call(v, context, self.patch_size, *self.settings, backend=self.backend)
        return y


def prepare_qseparable_context(
    table: Tensor, *, x_scale: Any, x_zero_point: Any, out_scale: Any = None, out_zero_point: Any = None, out_bits: int = 8,
    patch_size: tuple[int, int] = (2, 2), backend: str | None = None,
) -> QSeparableContext:  # fmt: skip
    """Check once what calls of `qseparable_context` with the same quantization need; arguments as there."""
    checks.all_tensors(CONTEXT, table=table)
    checks.pair(CONTEXT, "patch_size", patch_size)
    checks.backend(CONTEXT, backend)
    settings = _context_settings(x_scale, x_zero_point, out_scale, out_zero_point, out_bits)
    _check_size(table)
    table = table.to("cpu", copy=True).contiguous()  # of its own: it is checked here and never again
    _check_table(table)
    return QSeparableContext(table, settings, (patch_size[0], patch_size[1]), backend)


def prepare_qseparable_gate(
    *, v_scale: Any, v_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int = 8, patch_size: tuple[int, int] = (2, 2),
    backend: str | None = None,
) -> QSeparableGate:  # fmt: skip
    """Check once what calls of `qseparable_gate` with the same quantization need; arguments as there."""
    checks.pair(GATE, "patch_size", patch_size)
    checks.backend(GATE, backend)
    settings = _gate_settings(v_scale, v_zero_point, out_scale, out_zero_point, out_bits)
    return QSeparableGate(settings, (patch_size[0], patch_size[1]), backend)


def qseparable_context(
    scores: Tensor, x: Tensor, table: Tensor, *, x_scale: Any, x_zero_point: Any, out_scale: Any = None, out_zero_point: Any = None,
    out_bits: int = 8, patch_size: tuple[int, int] = (2, 2), backend: str | None = None,
) -> Tensor:  # fmt: skip
    """sum_n softmax_n(q) x_n over the pixels n of each phase of an image: what the key projection is applied to, once a phase.

    Exponentials are fixed-point numbers and all sums exact integers, so that no order of summation shows.

    Args:
        scores: q (B, H, W) uint8, any strides; its zero-point does not matter.
        x: (B, H, W, d) uint8, real = x_scale * (x - x_zero_point), any strides: the normalised input of the projection, or keys.
        table: `exponential_table(scale of the scores)`, (256,) int32 with values in [0, 2^16] and the first not 0; on a GPU they are not
            checked, as that would wait for it.
        x_scale, x_zero_point: a positive number; any int32.
        out_scale, out_zero_point: a positive number and an integer of at most 2^20 in size: y in bytes. None: y in float32.
        out_bits: 8 or 6: bytes of y are at most 2^out_bits - 1.
        patch_size: (ph, pw); phase (y mod ph) pw + x mod pw, and H and W are multiples of it.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, ph pw, d), uint8 or float32; the same on every backend: see `reference.qseparable_context`.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take the call.

    Source: MobileViTv2, arXiv 2206.02680, equation 3.
    """
    checks.all_tensors(CONTEXT, scores=scores, x=x, table=table)
    checks.pair(CONTEXT, "patch_size", patch_size)
    checks.backend(CONTEXT, backend)
    settings = _context_settings(x_scale, x_zero_point, out_scale, out_zero_point, out_bits)
    return _context_call(scores, x, table, patch_size, *settings, backend=backend)


def qseparable_gate(
    v: Tensor, context: Tensor, *, v_scale: Any, v_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int = 8,
    patch_size: tuple[int, int] = (2, 2), backend: str | None = None,
) -> Tensor:  # fmt: skip
    """relu(v) times the context of each pixel's phase, as bytes.

    Args:
        v: (B, H, W, d) uint8, real = v_scale * (v - v_zero_point), any strides.
        context: (B, ph pw, d) float32, what the key projection made of `qseparable_context`.
        v_scale, out_scale: a positive number each.
        v_zero_point, out_zero_point: integers of at most 2^20 in size; real y = out_scale * (y - out_zero_point).
        out_bits, patch_size, backend: as of `qseparable_context`.

    Returns:
        (B, H, W, d) uint8, contiguous; the same on every backend: see `reference.qseparable_gate`.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take the call.
    """
    checks.all_tensors(GATE, v=v, context=context)
    checks.pair(GATE, "patch_size", patch_size)
    checks.backend(GATE, backend)
    settings = _gate_settings(v_scale, v_zero_point, out_scale, out_zero_point, out_bits)
    return _gate_call(v, context, patch_size, *settings, backend=backend)


def _context_settings(x_scale: Any, x_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int) -> Context:
    to, zero_point = None, 0
    if out_scale is None:
        if isinstance(out_zero_point, Tensor) or out_zero_point not in (None, 0):
            raise ValueError(f"{CONTEXT}: out_zero_point: expected None without an out_scale, got {shown(out_zero_point)}")
    else:
        if out_zero_point is None:
            raise ValueError(f"{CONTEXT}: out_zero_point: expected an integer with an out_scale, got None")
        to = qchecks.scale(CONTEXT, "out_scale", out_scale)
        zero_point = qchecks.zero_point(CONTEXT, "out_zero_point", out_zero_point, near=True)
    return Context(
        qchecks.scale(CONTEXT, "x_scale", x_scale), qchecks.zero_point(CONTEXT, "x_zero_point", x_zero_point), to, zero_point,
        qchecks.bits(CONTEXT, "out_bits", out_bits),
    )  # fmt: skip


def _gate_settings(v_scale: Any, v_zero_point: Any, out_scale: Any, out_zero_point: Any, out_bits: int) -> Gate:
    v_scale, out_scale = qchecks.scale(GATE, "v_scale", v_scale), qchecks.scale(GATE, "out_scale", out_scale)
    if not SMALLEST <= v_scale / out_scale <= LARGEST:
        raise ValueError(f"{GATE}: out_scale: expected v_scale / out_scale between 2^-64 and 2^64, got {v_scale / out_scale:g}")
    return Gate(
        v_scale, qchecks.zero_point(GATE, "v_zero_point", v_zero_point, near=True), out_scale,
        qchecks.zero_point(GATE, "out_zero_point", out_zero_point, near=True), qchecks.bits(GATE, "out_bits", out_bits),
    )  # fmt: skip


def _check_context(scores: Tensor, x: Tensor, table: Tensor, patch_size: list[int]) -> tuple[int, int]:
    patch = _check_map(CONTEXT, "x", x, patch_size)
    checks.tensor(CONTEXT, "scores", scores, 3, (torch.uint8,))
    _check_size(table)
    if scores.shape != x.shape[:3]:
        raise ValueError(f"{CONTEXT}: scores: expected shape {tuple(x.shape[:3])}, got {tuple(scores.shape)}")
    _on_device(CONTEXT, x, scores=scores, table=table)
    return patch


def _check_size(table: Tensor) -> None:
    checks.tensor(CONTEXT, "table", table, 1, (torch.int32,))
    if table.shape[0] != 256:
        raise ValueError(f"{CONTEXT}: table: expected 256 values, got {table.shape[0]}")


def _check_table(table: Tensor) -> None:
    """Sums of 256 terms then fit in 32 bits, and there is something to divide by."""
    low, high, first = int(table.min()), int(table.max()), int(table[0])
    if low < 0 or high > 2**16 or first == 0:
        raise ValueError(f"{CONTEXT}: table: expected values in [0, 2^16], the first not 0, got [{low}, {high}], the first {first}")


def _check_gate(v: Tensor, context: Tensor, patch_size: list[int]) -> tuple[int, int]:
    patch = _check_map(GATE, "v", v, patch_size)
    checks.tensor(GATE, "context", context, 3, (torch.float32,))
    expected = (v.shape[0], patch[0] * patch[1], v.shape[3])
    if context.shape != expected:
        raise ValueError(f"{GATE}: context: expected shape {expected}, got {tuple(context.shape)}")
    _on_device(GATE, v, context=context)
    return patch


def _check_map(op: str, name: str, x: Tensor, patch_size: list[int]) -> tuple[int, int]:
    checks.tensor(op, name, x, 4, (torch.uint8,))
    if 0 in x.shape[1:3]:
        raise ValueError(f"{op}: {name}: expected at least one pixel, got shape {tuple(x.shape)}")
    patch = checks.patch_size(op, patch_size)
    checks.whole_patches(op, name, x.shape[1], x.shape[2], patch)
    return patch


def _on_device(op: str, x: Tensor, **tensors: Tensor) -> None:
    for name, each in tensors.items():
        if each.device != x.device:
            raise ValueError(f"{op}: {name}: expected device {x.device}, got {each.device}")


# --- backends ---


def _walkable(x: Tensor) -> Tensor:
    """x (B, H, W, d) itself where the channels of a pixel stand side by side, else a copy."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _cpu_context(
    scores: Tensor, x: Tensor, table: Tensor, patch: tuple[int, int], x_scale: float, x_zero_point: int, out_scale: float | None,
    out_zero_point: int, out_bits: int,
) -> Tensor:  # fmt: skip
    x, table = _walkable(x), table.contiguous()
    batch, height, width, dim = x.shape
    to_bytes = out_scale is not None
    y = torch.empty(batch, patch[0] * patch[1], dim, dtype=torch.uint8 if to_bytes else torch.float32)
    status = native.qseparable_context(
        (batch, dim, height, width), patch, scores.data_ptr(), scores.stride(), x.data_ptr(), x.stride()[:3], table.data_ptr(),
        x_zero_point, x_scale if out_scale is None else x_scale / out_scale, to_bytes, out_zero_point, out_bits, y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        _check_table(table)  # the kernel looked at it
        raise_status(CONTEXT, status)
    return y


def _cpu_gate(
    v: Tensor, context: Tensor, patch: tuple[int, int], v_scale: float, v_zero_point: int, out_scale: float, out_zero_point: int,
    out_bits: int,
) -> Tensor:  # fmt: skip
    v, context = _walkable(v), context.contiguous()
    batch, height, width, dim = v.shape
    y = torch.empty(v.shape, dtype=torch.uint8)
    status = native.qseparable_gate(
        (batch, dim, height, width), patch, v.data_ptr(), v.stride()[:3], v_zero_point, context.data_ptr(), v_scale / out_scale,
        out_zero_point, out_bits, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(GATE, status)
    return y


def _reference_context(scores: Tensor, x: Tensor, table: Tensor, *settings: Any) -> Tensor:
    _check_table(table)
    return reference.qseparable_context(scores, x, table, *settings)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return counts.refuse(counts.pixels(x)) or triton_support.refuse(x, (torch.uint8,))


def _triton_context(
    scores: Tensor, x: Tensor, table: Tensor, patch: tuple[int, int], x_scale: float, x_zero_point: int, out_scale: float | None,
    out_zero_point: int, out_bits: int,
) -> Tensor:  # fmt: skip
    if not table.is_cuda:
        _check_table(table)
    y = x.new_empty(x.shape[0], patch[0] * patch[1], x.shape[3], dtype=torch.float32 if out_scale is None else torch.uint8)
    _kernels.qseparable_context(
        scores, _walkable(x), table.contiguous(), patch, x_scale, x_zero_point, out_scale, out_zero_point, out_bits, y
    )
    return y


def _triton_gate(v: Tensor, context: Tensor, *settings: Any) -> Tensor:
    y = v.new_empty(v.shape)
    _kernels.qseparable_gate(_walkable(v), context.contiguous(), *settings, y)
    return y


choose_context = Choice(
    CONTEXT,
    triton=Implementation(_triton_context, refuse=_triton_refuse),
    cpu=Implementation(_cpu_context, refuse=refuse_off_cpu),
    reference=Implementation(_reference_context),
)
choose_gate = Choice(
    GATE,
    triton=Implementation(_triton_gate, refuse=_triton_refuse),
    cpu=Implementation(_cpu_gate, refuse=refuse_off_cpu),
    reference=Implementation(reference.qseparable_gate),
)


# --- registration ---


def _context(
    scores: Tensor, x: Tensor, table: Tensor, patch_size: list[int], x_scale: float, x_zero_point: int, out_scale: float | None,
    out_zero_point: int, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    patch = _check_context(scores, x, table, patch_size)
    qchecks.bits(CONTEXT, "out_bits", out_bits)
    forward = choose_context(backend, x).forward
    return forward(scores, x, table, patch, x_scale, x_zero_point, out_scale, out_zero_point, out_bits)


def _context_fake(
    scores: Tensor, x: Tensor, table: Tensor, patch_size: list[int], x_scale: float, x_zero_point: int, out_scale: float | None,
    out_zero_point: int, out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    patch = _check_context(scores, x, table, patch_size)
    qchecks.bits(CONTEXT, "out_bits", out_bits)
    return x.new_empty(x.shape[0], patch[0] * patch[1], x.shape[3], dtype=torch.float32 if out_scale is None else torch.uint8)


def _gate(
    v: Tensor, context: Tensor, patch_size: list[int], v_scale: float, v_zero_point: int, out_scale: float, out_zero_point: int,
    out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    patch = _check_gate(v, context, patch_size)
    qchecks.bits(GATE, "out_bits", out_bits)
    return choose_gate(backend, v).forward(v, context, patch, v_scale, v_zero_point, out_scale, out_zero_point, out_bits)


def _gate_fake(
    v: Tensor, context: Tensor, patch_size: list[int], v_scale: float, v_zero_point: int, out_scale: float, out_zero_point: int,
    out_bits: int, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check_gate(v, context, patch_size)
    return v.new_empty(v.shape)


_context_op = register(
    CONTEXT,
    "(Tensor scores, Tensor x, Tensor table, int[] patch_size, float x_scale, int x_zero_point, float? out_scale, int out_zero_point,"
    " int out_bits, *, str? backend=None) -> Tensor",
    _context,
    _context_fake,
)
_context_call = direct(_context_op, _context, tensors=3)
_gate_op = register(
    GATE,
    "(Tensor v, Tensor context, int[] patch_size, float v_scale, int v_zero_point, float out_scale, int out_zero_point, int out_bits, *,"
    " str? backend=None) -> Tensor",
    _gate,
    _gate_fake,
)
_gate_call = direct(_gate_op, _gate, tensors=2)
