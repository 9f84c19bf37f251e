"""Unfold and fold of pixel phases (MobileViT, arXiv 2110.02178, section 3.1), in plain torch.

Pixel (y, x) of a map belongs to phase p = ph_w * (y mod ph_h) + (x mod ph_w) and is patch n = (y div ph_h) * (W / ph_w) + (x div ph_w).
"""

from __future__ import annotations

import torch


def unfold_patches(x: torch.Tensor, patch_size: tuple[int, int] = (2, 2)) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, P, N) with P = ph * pw phases and N = H * W / P patches. H and W must be multiples of the patch."""
    batch, channels, height, width = x.shape
    ph, pw = patch_size
    phases = x.reshape(batch, channels, height // ph, ph, width // pw, pw).permute(0, 1, 3, 5, 2, 4)
    return phases.reshape(batch, channels, ph * pw, (height // ph) * (width // pw))


def fold_patches(p: torch.Tensor, output_size: tuple[int, int], patch_size: tuple[int, int] = (2, 2)) -> torch.Tensor:
    """(B, C, P, N) -> (B, C, H, W), the inverse of `unfold_patches`; output_size is (H, W)."""
    batch, channels = p.shape[:2]
    height, width = output_size
    ph, pw = patch_size
    grid = p.reshape(batch, channels, ph, pw, height // ph, width // pw).permute(0, 1, 4, 2, 5, 3)
    return grid.reshape(batch, channels, height, width)
