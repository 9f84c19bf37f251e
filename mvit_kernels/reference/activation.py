"""The activation functions of epilogues, in plain torch, and their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS = ("none", "relu", "silu", "gelu", "relu6", "hard_swish")

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
}

_aten = torch.ops.aten
_BACKWARD: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "relu": lambda dy, x: _aten.threshold_backward(dy, x, 0),
    "silu": _aten.silu_backward,
    "gelu": _aten.gelu_backward,
    "relu6": lambda dy, x: _aten.hardtanh_backward(dy, x, 0, 6),
    "hard_swish": _aten.hardswish_backward,
}


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """ "none", "relu", "silu" (x sigmoid(x)), "gelu" (x Phi(x), the exact one), "relu6" (min(max(x, 0), 6)) or "hard_swish"
    (x min(max(x / 6 + 1 / 2, 0), 1))."""
    return x if activation == "none" else _FUNCTIONS[activation](x)


def activate_backward(dy: torch.Tensor, x: torch.Tensor, activation: str) -> torch.Tensor:
    """dy times the derivative at x. Of 16-bit floats by torch's own kernels, which compute in float32 and round once."""
    if activation == "none":
        return dy
    if dy.dtype in (torch.float16, torch.bfloat16):
        return _BACKWARD[activation](dy, x)
    if activation == "relu":
        return dy.masked_fill(x <= 0, 0)
    if activation == "relu6":
        return dy.masked_fill((x <= 0) | (x >= 6), 0)
    if activation == "hard_swish":
        return dy * torch.where(x.abs() < 3, x / 3 + 0.5, (x >= 3).to(x.dtype))
    if activation == "silu":
        gate = torch.sigmoid(x)
        return dy * gate * (1 + x * (1 - gate))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density)
