"""qavg_pool on the last maps of the networks, against PyTorch's quantized pooling and a copy that moves as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import bytes_like, copy_of_bytes

from mvit_kernels import ops


@pytest.mark.parametrize("size", [(1, 320, 8, 8), (1, 512, 8, 8), (1, 640, 8, 8), (8, 640, 8, 8), (8, 1024, 8, 8)], ids=str)
def test_qavg_pool(in_turn, size):
    x = bytes_like(size)
    theirs = torch._make_per_tensor_quantized_tensor(x, 0.03, 120)
    contenders = {
        "cpu": functools.partial(ops.qavg_pool, x, a_scale=0.03, a_zero_point=120, out_scale=0.03, out_zero_point=120, backend="cpu"),
        "torch": functools.partial(torch.nn.functional.adaptive_avg_pool2d, theirs, 1),
        "copy": copy_of_bytes(x.numel()),
    }
    assert (contenders["torch"]().int_repr()[..., 0, 0].int() - contenders["cpu"]().int()).abs().max() <= 1
    in_turn(f"{size}", contenders, 30, 4)
