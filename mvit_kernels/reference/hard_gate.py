"""A gate of every element by hard-sigmoid (MobileNetV3, arXiv 1905.02244, section 5.2), as Mobile-Former has it, in plain torch."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def hard_gate(x: Tensor, u: Tensor) -> Tensor:
    """x hard_sigmoid(u), hard_sigmoid(u) = min(max(u + 3, 0), 6) / 6, operation by operation; both of the same shape."""
    return x * ((u + 3).clamp(0, 6) / _six(u))


def hard_gate_backward(dy: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and u; none of u where the gate is fully open or closed."""
    return dy * ((u + 3).clamp(0, 6) / _six(u)), (dy * x / 6).masked_fill((u <= -3) | (u >= 3), 0)


def _six(like: Tensor) -> Tensor:
    """As a tensor: a division by a Python number may become a product."""
    return torch.full_like(like, 6.0)
