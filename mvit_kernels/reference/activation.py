"""The activation functions of epilogues, in plain torch, and their derivatives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

ACTIVATIONS = ("none", "relu", "silu", "gelu")


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """ "none", "relu", "silu" (x sigmoid(x)) or "gelu" (x Phi(x), the exact one)."""
    if activation == "none":
        return x
    return {"relu": torch.relu, "silu": F.silu, "gelu": F.gelu}[activation](x)


def activate_backward(dy: torch.Tensor, x: torch.Tensor, activation: str) -> torch.Tensor:
    """dy times the derivative at x."""
    if activation == "none":
        return dy
    if activation == "relu":
        return dy.masked_fill(x <= 0, 0)
    if activation == "silu":
        gate = torch.sigmoid(x)
        return dy * gate * (1 + x * (1 - gate))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density)
