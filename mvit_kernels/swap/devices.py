"""On which devices replaced modules run our ops."""

from __future__ import annotations

import torch

from mvit_kernels.ops.triton_support import refuse_gpu


def off_cpu(x: torch.Tensor) -> bool:
    """Whether x is where nothing is run again (`ops/replay.py`), no memory is read by the host, and convolutions give channels_last on."""
    return not x.is_cpu


@torch.compiler.assume_constant_result  # of a device that is known when code is compiled
def without_kernels(device: torch.device) -> str | None:
    """Why whole modules on the device run as torch's, or None.

    Every op has a Triton kernel, and without it would be several of torch's operations. On the CPU ops run in any case: that they are
    plain torch where kernels are not built is told when the package is imported.
    """
    if device.type == "cpu":
        return None
    return refuse_gpu(device) if device.type == "cuda" else f"there are no kernels for {device.type}"
