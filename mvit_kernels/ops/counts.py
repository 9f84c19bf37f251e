"""What the kernels of a GPU count in 32 bits: pixels of maps (B, C, H, W), rows (..., C). Elements they count in 64."""

from __future__ import annotations

import torch

MOST = 2**31 - 2**12  # less than 2^31 by more than a tile has


def rows(x: torch.Tensor) -> int:
    """Pixels of a map, rows of anything else."""
    return x.numel() // max(x.shape[1 if x.ndim == 4 else -1], 1)


def pixels(x: torch.Tensor) -> int:
    """Of a map (B, H, W, C)."""
    return x.shape[0] * x.shape[1] * x.shape[2]


def refuse(*counted: int) -> str | None:
    """Why kernels cannot take a call with so many of them, in x or in what is made of it; or None."""
    most = max(counted)
    return f"it has no kernel for {MOST} pixels or rows and more, got {most}" if most >= MOST else None
