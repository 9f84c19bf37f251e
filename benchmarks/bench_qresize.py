"""qresize on odd maps of hybrid networks, against PyTorch's interpolation of bytes and of floats, and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch.nn.functional as F
from shapes import bytes_like, copy_of_bytes

from mvit_kernels import ops


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "output_size"), [((1, 128, 31, 31), (32, 32)), ((1, 192, 15, 15), (16, 16)), ((8, 256, 8, 8), (7, 7))])
def test_qresize(in_turn, size, output_size, align_corners):
    x = bytes_like(size)
    floats = x.float()
    interpolate = functools.partial(F.interpolate, size=output_size, mode="bilinear", align_corners=align_corners)
    contenders = {
        "cpu": functools.partial(ops.qresize, x, output_size, align_corners=align_corners, backend="cpu"),
        "torch, bytes": functools.partial(interpolate, x),
        "torch, floats": functools.partial(interpolate, floats),
    }
    y = contenders["cpu"]()
    assert (y - contenders["torch, floats"]()).abs().max() <= 0.63
    contenders["copy"] = copy_of_bytes(x.numel() + y.numel())
    in_turn(f"{size} to {output_size}{' by corners' if align_corners else ''}", contenders, 20, 2)
