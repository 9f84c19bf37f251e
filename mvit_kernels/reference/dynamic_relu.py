"""Dynamic ReLU (arXiv 2003.10027, equation 3, without intercepts) as Mobile-Former (arXiv 2108.05895) has it, in plain torch."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def dynamic_relu(x: Tensor, u: Tensor) -> Tensor:
    """max(a x, b x) with a = 1 + clip(u[:, :C]) and b = clip(u[:, C:]), clip to [-1, 1], for each image and channel.

    x (B, C, ...), u (B, 2 C); returns (B, C, ...).
    """
    a, b = slopes(x, u)
    return torch.maximum(a * x, b * x)


def slopes(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """a and b (B, C, 1, ...), for x (B, C, ...)."""
    a, b = u.clamp(-1, 1).reshape(u.shape + (1,) * (x.ndim - 2)).chunk(2, dim=1)
    return 1 + a, b


def dynamic_relu_backward(dy: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and u.

    The larger of the two products takes dy, half each where they are equal; dx is dy times its slope, and the slope's gradient the sum
    over pixels of dy x. From the ends of the clip on nothing comes back, as torch has it of a hard-sigmoid.
    """
    a, b = slopes(x, u)
    first, second = a * x, b * x
    share = (first > second).to(x.dtype) + 0.5 * (first == second).to(x.dtype)  # of the first; NaN: the second
    dx = dy * torch.lerp(b.expand_as(x), a.expand_as(x), share)
    pixels = list(range(2, x.ndim))
    sums = [(dy * x * part).sum(pixels) if pixels else dy * x * part for part in (share, 1 - share)]
    return dx, torch.cat(sums, dim=1).masked_fill((u <= -1) | (u >= 1), 0)
