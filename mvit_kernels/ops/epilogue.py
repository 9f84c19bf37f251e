"""What stands behind an op whose own CPU kernel ends with its result: a residual and an activation, in place."""

from __future__ import annotations

import torch

from mvit_kernels import reference

from .backend import native
from .library import FLOAT_CODES


def finish_in_place(y: torch.Tensor, activation: str, residual: torch.Tensor | None = None) -> int:
    """y = act(y + residual), of dense tensors in the same order; the kernel's status."""
    if activation == "none" and residual is None:
        return 0
    status: int = native.add(
        FLOAT_CODES[y.dtype], y.numel(), reference.ACTIVATIONS.index(activation), y.data_ptr(),
        0 if residual is None else residual.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return status
