"""`attention` on bytes: schema, checks, fake and backends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mvit_kernels import reference
from mvit_kernels.reference import ATTENTION_TABLE, Mixtures, QMixtures

from . import checks, cuda_support, qchecks, triton_support
from .attention import MOST_MIXED_HEADS, address, channels_side_by_side
from .backend import Choice, Implementation, native, refuse_off_cpu
from .library import direct, raise_status, register
from .packing import PANEL
from .placed import Placed
from .qpatch_attention import TABLE

OP = "qattention"
EXACT = 2**24  # whole numbers below it are exact in float32
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor
Optional = torch.Tensor | None


def qattention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, q_scale: Any, q_zero_point: Any, k_scale: Any, k_zero_point: Any, v_scale: Any,
    v_zero_point: Any, out_scale: Any, out_zero_point: Any, scale: float, bias: Optional = None, mix_scores: Optional = None,
    mix_weights: Optional = None, mix_bias: Optional = None, out_bits: int = 8, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """`attention` from bytes to bytes: exact sums, exponentials of a table, weights of 8 bits (9, with a sign, where they are mixed).

    Args:
        q: (B, N, H c), k: (B, M, H c), v: (B, M, H d) uint8, as of `attention`; c max|q - zero_point| max|k - zero_point| must be below
            2^24 and 255 M max|v - zero_point| below 2^31: up to 258 channels of a head and 33025 keys, where zero-points are bytes.
        q_scale, q_zero_point, ...: a number and an integer each, |zero_point| <= 2^20.
        scale, bias, mix_scores, mix_weights, mix_bias: as of `attention`, floats; at most 32 heads are mixed.
        out_bits: 8 or 6.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, N, H d) uint8, contiguous.

    Raises:
        TypeError, ValueError: wrong arguments, or the requested backend cannot take them.

    `prepare_qattention` computes once what does not depend on q, k and v.
    """
    checks.all_tensors(OP, q=q, k=k, v=v)
    cuda_support.unprepared(OP, q)
    handle = prepare_qattention(
        heads, q_scale=q_scale, q_zero_point=q_zero_point, k_scale=k_scale, k_zero_point=k_zero_point, v_scale=v_scale,
        v_zero_point=v_zero_point, out_scale=out_scale, out_zero_point=out_zero_point, scale=scale, bias=bias, mix_scores=mix_scores,
        mix_weights=mix_weights, mix_bias=mix_bias, out_bits=out_bits, backend=backend,
    )  # fmt: skip
    return handle(q, k, v)


class QAttention:
    """What `prepare_qattention` makes: call it with q, k and v.

    Attributes:
        mixtures: in steps of the table, bias as the kernel reads it: (H, M, N to whole panels).
        bias_shape: (H, N, M), as it was given; None without a bias.
        zero_points: of q, k and v. out_zero_point, out_bits: of the result.
    """

    def __init__(
        self, heads: int, mixtures: QMixtures, bias_shape: tuple[int, ...] | None, zero_points: tuple[int, int, int], out_zero_point: int,
        out_bits: int, backend: str | None,
    ) -> None:  # fmt: skip
        self.bias_shape = bias_shape
        self.heads, self.mixtures, self.zero_points = heads, mixtures, zero_points
        self._placed = Placed(*mixtures[:4])
        self.out_zero_point, self.out_bits, self.backend = out_zero_point, out_bits, backend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        checks.all_tensors(OP, q=q, k=k, v=v)
        if self.bias_shape is not None and q.ndim == k.ndim == 3 and self.bias_shape[1:] != (q.shape[1], k.shape[1]):
            expected = (self.heads, q.shape[1], k.shape[1])
            raise ValueError(f"{OP}: bias: expected shape {expected}, got {self.bias_shape}")
        mixtures = self.mixtures[:4] if q.is_cpu else self._placed.on(q.device)
        return _call(
            q, k, v, *mixtures, self.heads, *self.zero_points, *self.mixtures[4:], self.out_zero_point, self.out_bits,
            backend=self.backend,
        )  # fmt: skip


def prepare_qattention(
    heads: int, *, q_scale: Any, q_zero_point: Any, k_scale: Any, k_zero_point: Any, v_scale: Any, v_zero_point: Any, out_scale: Any,
    out_zero_point: Any, scale: float, bias: Optional = None, mix_scores: Optional = None, mix_weights: Optional = None,
    mix_bias: Optional = None, out_bits: int = 8, backend: str | None = None,
) -> QAttention:  # fmt: skip
    """The handle of `qattention` for these settings."""
    checks.integer(OP, "heads", heads)
    checks.tensors(OP, bias=bias, mix_scores=mix_scores, mix_weights=mix_weights, mix_bias=mix_bias)
    checks.backend(OP, backend)
    scales = [qchecks.scale(OP, name, value) for name, value in (("q_scale", q_scale), ("k_scale", k_scale), ("v_scale", v_scale))]
    scales += [qchecks.scale(OP, "out_scale", out_scale), qchecks.scale(OP, "scale", scale)]
    points = {"q_zero_point": q_zero_point, "k_zero_point": k_zero_point, "v_zero_point": v_zero_point, "out_zero_point": out_zero_point}
    *zero_points, out = (qchecks.zero_point(OP, name, value, near=True) for name, value in points.items())
    for name, x, size in (
        ("mix_scores", mix_scores, (heads, heads)),
        ("mix_weights", mix_weights, (heads, heads)),
        ("mix_bias", mix_bias, (heads,)),
    ):
        if x is not None and (x.shape != size or not x.is_floating_point()):
            raise ValueError(f"{OP}: {name}: expected floats of shape {size}, got {x.dtype} of shape {tuple(x.shape)}")
    if heads > MOST_MIXED_HEADS and any(each is not None for each in (mix_scores, mix_weights, mix_bias)):
        raise ValueError(f"{OP}: heads: expected at most {MOST_MIXED_HEADS} where they are mixed, got {heads}")
    if bias is not None and (bias.ndim != 3 or bias.shape[0] != heads or not bias.is_floating_point()):
        raise ValueError(f"{OP}: bias: expected floats of shape ({heads}, N, M), got {bias.dtype} of shape {tuple(bias.shape)}")
    mixtures = reference.quantized_mixtures(Mixtures(bias, mix_scores, mix_weights, mix_bias), *scales)
    if mixtures.bias is not None:
        across = mixtures.bias.transpose(1, 2)
        mixtures = mixtures._replace(bias=F.pad(across, (0, -across.shape[2] % PANEL)).contiguous())
    return QAttention(
        heads,
        mixtures,
        None if bias is None else tuple(bias.shape),
        (zero_points[0], zero_points[1], zero_points[2]),
        out,
        qchecks.bits(OP, "out_bits", out_bits),
        backend,
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, shift: Optional, heads: int,
    q_zero_point: int, k_zero_point: int, v_zero_point: int, steps: float, ratio: float, out_zero_point: int, out_bits: int,
) -> None:  # fmt: skip
    for name, x in (("q", q), ("k", k), ("v", v)):
        checks.tensor(OP, name, x, 3, (torch.uint8,))
    batch, queries, channels = q.shape
    if heads < 1 or channels % heads:
        raise ValueError(f"{OP}: heads: expected a number that divides the {channels} channels of q, got {heads}")
    if k.shape[0] != batch or k.shape[2] != channels or k.shape[1] < 1:
        raise ValueError(f"{OP}: k: expected shape ({batch}, M, {channels}) with M >= 1, got {tuple(k.shape)}")
    if v.shape[:2] != k.shape[:2] or v.shape[2] % heads:
        raise ValueError(f"{OP}: v: expected shape ({batch}, {k.shape[1]}, a multiple of {heads}), got {tuple(v.shape)}")
    if bias is not None:
        checks.prepared(OP, "bias", bias, torch.float32, (heads, k.shape[1], -(-queries // PANEL) * PANEL), q.device)
    for name, value, size in (
        ("mix_scores", mix_scores, (heads, heads)),
        ("mix_weights", mix_weights, (heads, heads)),
        ("shift", shift, (heads,)),
    ):
        if value is not None:
            checks.prepared(OP, name, value, torch.float32, size, q.device)
    if not fits(channels // heads, k.shape[1], q_zero_point, k_zero_point, v_zero_point):
        raise ValueError(
            f"{OP}: k: expected sums of products below 2^24, and 2^31 over keys, got {channels // heads} channels a head, {k.shape[1]} keys"
            f" and zero-points {q_zero_point}, {k_zero_point}, {v_zero_point}"
        )


def fits(depth: int, keys: int, q_zero_point: int = 0, k_zero_point: int = 0, v_zero_point: int = 0) -> bool:
    """Whether all sums of products are exact: of channels in float32, over keys in blocks of 256 of them, which are carried on in int32."""
    q, k, v = (max(abs(point), abs(255 - point)) for point in (q_zero_point, k_zero_point, v_zero_point))
    block = keys if keys <= 258 else 256
    return depth * q * k < EXACT and block * 255 * v < EXACT and keys * 255 < EXACT and keys * 255 * v < 2**31


# --- backends ---


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, shift: Optional, heads: int,
    q_zero_point: int, k_zero_point: int, v_zero_point: int, steps: float, ratio: float, out_zero_point: int, out_bits: int,
) -> Tensor:  # fmt: skip
    q, k, v = map(channels_side_by_side, (q, k, v))
    y = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    status = native.qattention(
        q.shape, v.shape[1:], heads, q.data_ptr(), q.stride()[:2], k.data_ptr(), k.stride()[:2], v.data_ptr(), v.stride()[:2],
        (q_zero_point, k_zero_point, v_zero_point), address(bias), 0 if bias is None else bias.shape[2], steps, address(mix_scores),
        address(mix_weights), address(shift), ratio, ATTENTION_TABLE.data_ptr(), out_zero_point, out_bits, y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y


def _reference_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, shift: Optional, heads: int,
    q_zero_point: int, k_zero_point: int, v_zero_point: int, steps: float, ratio: float, out_zero_point: int, out_bits: int,
) -> Tensor:  # fmt: skip
    across = None if bias is None else bias[:, :, : q.shape[1]].transpose(1, 2)
    mixtures = QMixtures(across, mix_scores, mix_weights, shift, steps, ratio)
    return reference.qattention(q, k, v, heads, (q_zero_point, k_zero_point, v_zero_point), mixtures, out_zero_point, out_bits)


_DEEPEST_TRITON = 256  # channels of a head: a program has them all in registers
_MOST_MIXED_KEYS_TRITON = 512  # a program has the weights of all of them in its registers


def _triton_refuse(q: Tensor, v: Tensor, mix_weights: Optional, heads: int) -> str | None:
    depth = max(q.shape[2], v.shape[2]) // heads
    if depth > _DEEPEST_TRITON:
        return f"it takes heads of at most {_DEEPEST_TRITON} channels, got {depth}"
    if mix_weights is not None and v.shape[1] > _MOST_MIXED_KEYS_TRITON:
        return f"it takes at most {_MOST_MIXED_KEYS_TRITON} keys where their weights are mixed, got {v.shape[1]}"
    return triton_support.refuse(q, (torch.uint8,))


def _triton_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, shift: Optional, heads: int,
    q_zero_point: int, k_zero_point: int, v_zero_point: int, steps: float, ratio: float, out_zero_point: int, out_bits: int,
) -> Tensor:  # fmt: skip
    q, k, v = map(channels_side_by_side, (q, k, v))
    y = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    (table,) = TABLE.on(q.device)
    _kernels.qattention(
        q, k, v, bias, mix_scores, mix_weights, shift, heads, q_zero_point, k_zero_point, v_zero_point, steps, ratio, table,
        out_zero_point, out_bits, y,
    )  # fmt: skip
    return y


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, refuse=_triton_refuse),
    cpu=Implementation(_cpu_forward, refuse=refuse_off_cpu),
    reference=Implementation(_reference_forward),
)


# --- registration ---


def _forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any, backend: str | None = None) -> Tensor:
    _check(q, k, v, *settings)
    return choose(backend, q, v, settings[2], settings[4]).forward(q, k, v, *settings)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *settings: Any, backend: str | None = None) -> Tensor:
    _check(q, k, v, *settings)
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


_op = register(
    OP,
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mix_scores, Tensor? mix_weights, Tensor? shift, int heads, int q_zero_point,"
    " int k_zero_point, int v_zero_point, float steps, float ratio, int out_zero_point, int out_bits, *, str? backend=None) -> Tensor",
    _forward,
    _forward_fake,
)
_call = direct(_op, _forward, tensors=7)
