"""Which backend comes first on a GPU where kernels of CUDA and of Triton take the same call."""

from __future__ import annotations

import torch

from . import triton_support

_tuning = triton_support.Kernels("tuning")


def in_order(op: str, x: torch.Tensor, sizes: tuple[int, ...], cuda: bool) -> tuple[str, ...]:
    """The one that benchmarks/gpu_tune.py found faster for calls of this size on GPUs of this kind, or else CUDA's if `cuda`, by a rule of
    the op.

    sizes: of the call; the first is how many images there are. Where a compiler leaves them open, nothing was measured.
    """
    is_one_size = all(type(size) is int for size in sizes)
    if is_one_size and x.is_cuda and triton_support.refuse_gpu(x.device) is None:
        cuda = _tuning.choose(f"{op} backend", x, sizes, {"cuda": int(cuda)}, lambda: [{"cuda": int(not cuda)}])["cuda"]
    return ("cuda", "triton", "reference") if cuda else ("triton", "cuda", "reference")
