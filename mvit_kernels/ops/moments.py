"""Mean and variance of images, for ops that collect them beside a kernel that does not."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from . import triton_support
from .library import FLOAT_CODES

_kernels = triton_support.Kernels("moments")


def moments_of(y: torch.Tensor, images: int) -> torch.Tensor:
    """(images, 2) float64 of a dense y, images of equal size behind each other: by kernels on a GPU, else by plain torch."""
    if y.is_cuda and triton_support.refuse(y, FLOAT_CODES) is None:
        return _kernels.collect(y, images)
    return reference.moments_of(y, images)
