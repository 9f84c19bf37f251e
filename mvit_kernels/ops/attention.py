"""Softmax attention with bias and talking heads (arXiv 1706.03762, 2003.02436): schema, checks, fake, backward and backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels import reference
from mvit_kernels.messages import shown
from mvit_kernels.reference import Mixtures

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .epilogue import finish_in_place
from .library import FLOAT_CODES, FLOAT_DTYPES, fresh, raise_status, refuse_off_floats, register, register_autograd, wide, widen
from .packing import PANEL, packed

OP = "attention"
_kernels = triton_support.Kernels(OP)
MOST_MIXED_HEADS = 32  # of csrc/cpu/ops/attention.h
_WIDEST_HEAD = 128  # channels that the Triton kernels keep in registers
Tensor = torch.Tensor
Optional = torch.Tensor | None


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, *, bias: Optional = None, scale: float | None = None, mix_scores: Optional = None,
    mix_weights: Optional = None, mix_bias: Optional = None, residual: Optional = None, activation: str | None = None,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """y[h, n] = act(sum_m w[h, n, m] v[h, m] + residual[h, n]), w = mix_weights softmax_m(mix_scores (scale q k^T) + bias) + mix_bias.

    Args:
        q: (B, N, H c), k: (B, M, H c), v: (B, M, H d): queries, keys and values of H heads, one after another; at least one key. float32,
            bfloat16, float16 or float64. Any strides; channels that do not lie side by side are copied.
        heads: H. Values may be wider or narrower than keys.
        bias: (H, N, M), added to the scores behind their mixture; None for none. float32 or the dtype of q, as are the next three.
        scale: a finite number; None is c^-0.5.
        mix_scores: (H, H), "talking heads": head h gets sum_g mix_scores[h, g] of the scores of head g. None: each its own.
        mix_weights, mix_bias: (H, H) and (H,), the same of what softmax gives, and what is added to it.
        residual: (B, N, H d), dtype of q, any strides; None for none.
        activation: None, or one of reference.ACTIVATIONS, of the sum with the residual.
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, N, H d), contiguous, of the dtype of q. 16-bit inputs are computed in float32, but where tensor cores, AVX512-BF16 or AMX
        multiply them: what these take is in 16 bits.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: arXiv 1706.03762, equation 1; talking heads: arXiv 2003.02436; as EfficientFormer (2206.01191, 2212.08059) and Mobile-Former
        (2108.05895) have it.
    """
    checks.all_tensors(OP, q=q, k=k, v=v)
    checks.tensors(OP, bias=bias, mix_scores=mix_scores, mix_weights=mix_weights, mix_bias=mix_bias, residual=residual)
    checks.integer(OP, "heads", heads)
    if scale is not None and type(scale) is not float:
        if isinstance(scale, bool) or not isinstance(scale, (int, float, torch.SymFloat)):
            raise TypeError(f"{OP}: scale: expected a number or None, got {shown(scale)}")
        scale = float(scale)
    checks.backend(OP, backend)
    return _call(
        q, k, v, bias, mix_scores, mix_weights, mix_bias, residual, heads, scale, activation or "none", backend=backend
    )  # fmt: skip


class _Problem(NamedTuple):
    """Arguments that belong together, checked."""

    tensors: tuple[Tensor, Tensor, Tensor]
    mixtures: Mixtures
    residual: Optional
    heads: int
    scale: float
    activation: str


def _check(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, mix_bias: Optional, residual: Optional,
    heads: int, scale: float | None, activation: str,
) -> _Problem:  # fmt: skip
    checks.tensor(OP, "q", q, 3, FLOAT_DTYPES)
    batch, queries, channels = q.shape
    if heads < 1 or channels % heads:
        raise ValueError(f"{OP}: heads: expected a number that divides the {channels} channels of q, got {heads}")
    for name, x in (("k", k), ("v", v)):
        checks.tensor(OP, name, x, 3, (q.dtype,))
        if x.device != q.device:
            raise ValueError(f"{OP}: {name}: expected device {q.device}, got {x.device}")
    if k.shape[0] != batch or k.shape[2] != channels or k.shape[1] < 1:
        raise ValueError(f"{OP}: k: expected shape ({batch}, M, {channels}) with M >= 1, got {tuple(k.shape)}")
    if v.shape[:2] != k.shape[:2] or v.shape[2] % heads:
        raise ValueError(f"{OP}: v: expected shape ({batch}, {k.shape[1]}, a multiple of {heads}), got {tuple(v.shape)}")
    parameters = (
        ("bias", bias, (heads, queries, k.shape[1])), ("mix_scores", mix_scores, (heads, heads)),
        ("mix_weights", mix_weights, (heads, heads)), ("mix_bias", mix_bias, (heads,)),
    )  # fmt: skip
    for name, parameter, size in parameters:
        if parameter is not None:
            checks.parameter(OP, name, parameter, len(size), q, size)
    if residual is not None:
        checks.like(OP, "residual", residual, q, (batch, queries, v.shape[2]))
    checks.activation(OP, activation)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{OP}: scale: expected a finite number, got {scale}")
    factor = max(channels // heads, 1) ** -0.5 if scale is None else scale
    return _Problem((q, k, v), Mixtures(bias, mix_scores, mix_weights, mix_bias), residual, heads, factor, activation)


# --- backends ---


def _cpu_refuse(q: Tensor, problem: Any = None, *_: object) -> str | None:
    if (reason := refuse_off_floats(q)) is not None:
        return reason
    if isinstance(problem, _Problem) and problem.heads > MOST_MIXED_HEADS and any(each is not None for each in problem.mixtures[1:]):
        return f"it mixes at most {MOST_MIXED_HEADS} heads"
    return None


def pack_bias(bias: Tensor) -> Tensor:
    """(H, N, M) as the kernel reads it: log2(e) bias as (H, M, N to whole panels), float32."""
    across = (bias.double() * math.log2(math.e)).float().transpose(1, 2)
    return F.pad(across, (0, -across.shape[2] % PANEL)).contiguous()


class Talking(NamedTuple):
    """Mixtures as the kernel reads them."""

    scores: Optional
    weights: Optional
    shift: Optional


def pack_mixtures(scores: Optional, weights: Optional, shift: Optional) -> Talking:
    """float32 and contiguous. A shift alone comes with weights that mix nothing."""
    if weights is None and shift is not None:
        weights = torch.eye(shift.shape[0], device=shift.device)
    return Talking(*(None if each is None else each.float().contiguous() for each in (scores, weights, shift)))


def _cpu_forward(problem: _Problem) -> Tensor:
    q, k, v = map(channels_side_by_side, problem.tensors)
    mixtures = problem.mixtures
    bias = None if mixtures.bias is None else packed(pack_bias, mixtures.bias)
    talking = _talking(mixtures)
    y = fresh(q.new_empty(q.shape[0], q.shape[1], v.shape[2]))
    status = native.attention(
        FLOAT_CODES[q.dtype], q.shape, v.shape[1:], problem.heads, problem.scale, q.data_ptr(), q.stride()[:2], k.data_ptr(),
        k.stride()[:2], v.data_ptr(), v.stride()[:2], address(bias), 0 if bias is None else bias.shape[2], *map(address, talking),
        y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    residual = None if problem.residual is None else problem.residual.contiguous()
    if status := status or finish_in_place(y, problem.activation, residual):
        raise_status(OP, status)
    return y


def _talking(mixtures: Mixtures) -> Talking:
    return packed(pack_mixtures, *mixtures[1:]) if any(each is not None for each in mixtures[1:]) else Talking(None, None, None)


def channels_side_by_side(x: Tensor) -> Tensor:
    """x as the kernels read it: itself, or a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def address(x: Optional) -> int:
    return 0 if x is None else x.data_ptr()


def _triton_refuse(q: Tensor, problem: Any = None, *_: object) -> str | None:
    if isinstance(problem, _Problem):
        widest = max(problem.tensors[0].shape[2], problem.tensors[2].shape[2]) // problem.heads
        if widest > _WIDEST_HEAD:
            return f"it has no kernel for heads of more than {_WIDEST_HEAD} channels, got {widest}"
    return triton_support.refuse(q, FLOAT_CODES)


def _triton_forward(problem: _Problem) -> Tensor:
    q, k, v = map(channels_side_by_side, problem.tensors)
    y = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    residual = None if problem.residual is None else problem.residual.contiguous()
    _kernels.forward(
        q, k, v, problem.mixtures.bias, *_talking(problem.mixtures), residual, problem.activation, problem.heads, problem.scale, y
    )  # fmt: skip
    return y


def _reference_forward(problem: _Problem) -> Tensor:
    return _ended(problem, problem.activation).to(problem.tensors[0].dtype).contiguous()


def _ended(problem: _Problem, activation: str) -> Tensor:
    """The result with another activation, as wide as it is computed."""
    (q, k, v), mixtures = _wide(problem)
    y = reference.attention(q, k, v, problem.heads, problem.scale, mixtures)
    return reference.activate(y if problem.residual is None else y + problem.residual, activation)


def _wide(problem: _Problem) -> tuple[list[Tensor], Mixtures]:
    q = problem.tensors[0]
    return widen(q, *problem.tensors), Mixtures(*widen(q, *problem.mixtures))


def _reference_backward(dy: Tensor, problem: _Problem, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> list[Tensor]:
    """dq, dk, dv, and the gradients of those of the mixtures and of the residual that exist."""
    (q, k, v), mixtures = _wide(problem)
    dy = wide(dy)
    if problem.activation != "none":
        dy = reference.activate_backward(dy, _ended(problem, "none"), problem.activation)
    *gradients, of_mixtures = reference.attention_backward(dy, q, k, v, problem.heads, problem.scale, mixtures, product)
    given = [*problem.tensors, *(each for each in (*problem.mixtures, problem.residual) if each is not None)]
    found = [*gradients, *(each for each in of_mixtures if each is not None), dy]  # which ends where there is no residual
    # In the memory order of what they are gradients of, as torch's own gradients are.
    return [torch.empty_like(each).copy_(gradient) for gradient, each in zip(found, given, strict=False)]


def _triton_backward(dy: Tensor, problem: _Problem) -> list[Tensor]:
    """Products of 16-bit floats take them rounded, as those of tensor cores do; all between is float32."""
    dtype = problem.tensors[0].dtype
    return _reference_backward(dy, problem, lambda a, b: (a.to(dtype) @ b.to(dtype)).to(a.dtype))


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, _cpu_refuse),  # the gradient is products of matrices: torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, mix_bias: Optional, residual: Optional,
    heads: int, scale: float | None = None, activation: str = "none", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    problem = _check(q, k, v, bias, mix_scores, mix_weights, mix_bias, residual, heads, scale, activation)
    return choose(backend, q, problem).forward(problem)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, mix_bias: Optional, residual: Optional,
    heads: int, scale: float | None = None, activation: str = "none", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    _check(q, k, v, bias, mix_scores, mix_weights, mix_bias, residual, heads, scale, activation)
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


def _backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, mix_bias: Optional,
    residual: Optional, heads: int, scale: float | None, activation: str, backend: str | None,
) -> list[Tensor]:  # fmt: skip
    problem = _check(q, k, v, bias, mix_scores, mix_weights, mix_bias, residual, heads, scale, activation)
    checks.like(f"{OP}_backward", "dy", dy, q, (q.shape[0], q.shape[1], v.shape[2]))
    backward = choose(backend, q, problem).backward
    assert backward is not None
    return backward(dy, problem)


def _backward_fake(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Optional, mix_scores: Optional, mix_weights: Optional, mix_bias: Optional,
    residual: Optional, heads: int, scale: float | None, activation: str, backend: str | None,
) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(each) for each in (q, k, v, bias, mix_scores, mix_weights, mix_bias, residual) if each is not None]


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mix_scores, Tensor? mix_weights, Tensor? mix_bias, Tensor? residual"
_forward_op = register(
    OP, f"({_TENSORS}, int heads, float? scale=None, str activation='none', *, str? backend=None) -> Tensor", _forward, _forward_fake
)  # fmt: skip
_backward_op = register(
    f"{OP}_backward", f"(Tensor dy, {_TENSORS}, int heads, float? scale, str activation, str? backend) -> Tensor[]", _backward,
    _backward_fake,
)  # fmt: skip


def _setup(ctx: Any, *args: Any, backend: str | None = None) -> None:
    tensors, settings = args[:8], args[8:]
    ctx.save_for_backward(*tensors)
    ctx.settings = (*settings, *(None, "none")[len(settings) - 1 :])
    # The backward may run on another thread, outside the use_backend block of the forward.
    ctx.backend = choose.backend(backend, tensors[0], _check(*tensors, *ctx.settings))


def _gradient(ctx: Any, dy: Tensor) -> tuple[Optional, ...]:
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        found = iter(_reference_backward(dy, _check(*tensors, *ctx.settings)))
    else:
        found = iter(_backward_op(dy, *tensors, *ctx.settings, ctx.backend))
    return (*(None if each is None else next(found) for each in tensors), None, None, None)


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=8, inputs=(0, 1, 2, 7))
