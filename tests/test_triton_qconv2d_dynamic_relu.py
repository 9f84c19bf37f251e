"""Bits of the Triton kernels are those of plain torch (which test_qconv2d_dynamic_relu.py holds against the three ops)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import byte_map
from test_qconv2d_dynamic_relu import OUT, SIZES, inputs_of, layer_of
from triton_checks import DEVICE

from mvit_kernels import ops

Tensor = torch.Tensor


def check(layer: ops.QConv2d | ops.QDepthwiseConv2d, x: Tensor, u: Tensor, **out: object) -> None:
    y, expected = (
        ops.prepare_qconv2d_dynamic_relu(layer, **{**OUT, **out}, backend=backend)(x.to(DEVICE), u.to(DEVICE))
        for backend in ("triton", "reference")
    )
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [*SIZES, slow((5, 36, 12, 13, 70))], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "bits"), [(1, 1, 8), (1, 1, 6), (3, 1, 8), (3, 2, 8)])
def test_convolutions(size, kernel: int, stride: int, bits: int) -> None:
    """Images that end within tiles, whose slopes differ."""
    layer, (x, u) = layer_of(size, kernel, stride, bits), inputs_of(size, kernel)
    u[0, 0], u[-1, -1] = float("nan"), float("inf")
    check(layer, x, u)
    check(layer, x, u, out_scale=1e-4, out_zero_point=3, out_bits=6)
    check(layer, x, u, out_scale=2.0**-126, out_zero_point=-(2**20))


@pytest.mark.parametrize("kernel", [1, 3])
def test_zero_points_that_are_no_bytes(kernel: int) -> None:
    size = SIZES[1]
    check(layer_of(size, kernel, a_zero_point=-1275), *inputs_of(size, kernel))


@pytest.mark.parametrize("kernel", [1, 3])
def test_any_strides_and_empty(kernel: int) -> None:
    layer, wide = layer_of((1, 4, 0, 0, 7), kernel), byte_map(4, 4, 6, 8)
    columns = 7 if kernel == 1 else 8
    for x in (wide.contiguous(), wide[:, :, ::2], wide.mT, byte_map(4, 8, 6, 8)[:, 2:6], wide[:0]):
        check(layer, x, torch.randn(x.shape[0], 4 * columns)[:, ::2])
