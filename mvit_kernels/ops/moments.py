"""Mean and variance of images, for ops that collect them beside a kernel that does not."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from mvit_kernels import reference

from . import triton_support
from .library import FLOAT_CODES, dense_in_own_format

_kernels = triton_support.Kernels("moments")


def keeping_parts() -> AbstractContextManager[None]:
    """Inside, what ops on a GPU collect stays in parts, for ops on the same one: see `mvit_kernels/triton_kernels/moments.py`."""
    return _kernels.keeping_parts() if triton_support.installed() is None else contextlib.nullcontext()


def joined(moments: torch.Tensor | None) -> torch.Tensor | None:
    """(B, 2), of moments or of their parts."""
    return _kernels.joined(moments) if moments is not None and moments.ndim == 3 else moments


def collected_sums(pieces: torch.Tensor) -> torch.Tensor:
    """What an integer op gives that has made sums of pieces of its images (B, pieces, 2): those inside of `keeping_parts`, else (B, 2)."""
    return pieces if triton_support.installed() is None and _kernels.keeps_parts() else pieces.sum(1)


def moments_of(y: torch.Tensor, images: int) -> torch.Tensor:
    """(images, 2) float64 of y, images of equal size behind each other: by kernels on a GPU, else by plain torch."""
    if _on_gpu(y) and triton_support.refuse(y, FLOAT_CODES) is None:
        return _kernels.collect(dense_in_own_format(y)[0], images)
    return reference.moments_of(y, images)


def _on_gpu(y: torch.Tensor) -> bool:
    return y.is_cuda
