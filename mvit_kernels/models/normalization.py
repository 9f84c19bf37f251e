"""What networks want images as."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Normalization(NamedTuple):
    """What is subtracted from pixels in [0, 1], and what that is divided by: a number for each channel."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        """Images (..., C, H, W) -> the same shape."""
        mean, std = (x.new_tensor(each).reshape(-1, 1, 1) for each in self)
        return (x - mean) / std


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations of the training images of ImageNet."""
