"""A gate of every element by hard-sigmoid (arXiv 1905.02244, section 5.2): schema, checks, fake, backward and backends."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import Choice, Implementation, native
from .library import FLOAT_CODES, FLOAT_DTYPES, fresh, raise_status, refuse_off_floats, widen
from .pairs import register_pair

OP = "hard_gate"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor


def hard_gate(x: Tensor, u: Tensor, *, backend: str | None = None) -> Tensor:
    """x hard_sigmoid(u), element by element; hard_sigmoid(u) = min(max(u + 3, 0), 6) / 6.

    Args:
        x: of any shape, float32, bfloat16, float16 or float64. What is not contiguous is copied.
        u: shape and dtype of x.
        backend: None for automatic choice, or the name of one.

    Returns:
        Shape and dtype of x, contiguous. 16-bit inputs are computed in float32.

    Raises:
        TypeError, ValueError: arguments of another dtype, size or device, or the requested backend cannot take them.

    Source: MobileNetV3, arXiv 1905.02244, section 5.2; Mobile-Former, arXiv 2108.05895.
    """
    checks.all_tensors(OP, x=x, u=u)
    checks.backend(OP, backend)
    return _call(x, u, backend=backend)


def _check(x: Tensor, u: Tensor) -> None:
    checks.tensor(OP, "x", x, x.ndim, FLOAT_DTYPES)
    checks.like(OP, "u", u, x, x.shape)


# --- backends ---


def _cpu_forward(x: Tensor, u: Tensor) -> Tensor:
    x, u = x.contiguous(), u.contiguous()
    y = fresh(torch.empty_like(x))
    status = native.hard_gate(FLOAT_CODES[x.dtype], x.numel(), x.data_ptr(), u.data_ptr(), y.data_ptr(), torch.get_num_threads())
    if status:
        raise_status(OP, status)
    return y


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse(x, FLOAT_CODES)


def _triton_forward(x: Tensor, u: Tensor) -> Tensor:
    x, u = x.contiguous(), u.contiguous()
    y = torch.empty_like(x)
    _kernels.forward(x, u, y)
    return y


def _reference_forward(x: Tensor, u: Tensor) -> Tensor:
    return reference.hard_gate(*widen(x, x, u)).to(x.dtype).contiguous()


def _reference_backward(dy: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    dx, du = reference.hard_gate_backward(*widen(x, dy, x, u))
    # In the memory order of what they are gradients of, as torch's own gradients are.
    return torch.empty_like(x).copy_(dx), torch.empty_like(u).copy_(du)


choose = Choice(
    OP,
    triton=Implementation(_triton_forward, _reference_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient is a few products: torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---

_call = register_pair(OP, "u", choose, _check, lambda x: x.new_empty(x.shape), lambda x, u: (torch.empty_like(x), torch.empty_like(u)))
