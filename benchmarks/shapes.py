"""What the operators are timed on: the maps inside the attention blocks of MobileViTv2 at 256 x 256, one image, float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Block(NamedTuple):
    """Stage 3, 4 or 5 of a MobileViTv2: maps (1, d, side, side)."""

    width: float
    stage: int
    d: int
    side: int

    def __str__(self) -> str:
        return f"v2-{self.width} stage {self.stage} {self.d}x{self.side}x{self.side}"

    def randn(self, channels: int, layout: str) -> torch.Tensor:
        """A map of the block with another number of channels."""
        x = torch.randn(1, channels, self.side, self.side)
        return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


BLOCKS = [
    Block(width, stage, round(width * d), side) for width in (0.5, 1.0, 2.0) for stage, d, side in ((3, 128, 32), (4, 192, 16), (5, 256, 8))
]
PATCH = (2, 2)


def copy_of(*tensors: torch.Tensor) -> Callable[[], torch.Tensor]:
    """torch's copy of half as many elements as these tensors have: it moves as many bytes as reading or writing each of them once."""
    elements = sum(x.numel() for x in tensors) // 2
    source, target = torch.randn(elements), torch.empty(elements)
    return lambda: target.copy_(source)


MAPS = [(1, 64, 128, 128), (1, 128, 64, 64), (1, 128, 32, 32), (1, 192, 16, 16), (8, 128, 32, 32)]
"""(B, C, H, W) of maps of the networks, for ops on bytes."""


def bytes_like(size: tuple[int, ...]) -> torch.Tensor:
    """Random bytes, channels_last."""
    return torch.randint(0, 256, size, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def copy_of_bytes(count: int) -> Callable[[], torch.Tensor]:
    """torch's copy that reads and writes so many bytes together."""
    source, target = torch.zeros(count // 2, dtype=torch.uint8), torch.empty(count // 2, dtype=torch.uint8)
    return lambda: target.copy_(source)
