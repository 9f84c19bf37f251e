"""Bits of the Triton kernels are those of plain torch (which test_qconv2d.py and test_qdepthwise_conv2d.py hold against convolutions)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import byte_map, random_weight
from triton_checks import DEVICE

from mvit_kernels import ops, reference

Tensor = torch.Tensor


def settings(columns: int, **changes):
    return {
        "a_scale": 0.02, "a_zero_point": 113, "w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns),
        "out_dtype": torch.uint8, "out_scale": 0.05, "out_zero_point": 100,
    } | changes  # fmt: skip


def check(op, x: Tensor, *arguments, **keywords) -> None:
    keywords = {name: value.to(DEVICE) if name in ("second", "residual") else value for name, value in keywords.items()}
    y = op(x.to(DEVICE), *arguments, backend="triton", **keywords)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, op(x.to(DEVICE), *arguments, backend="reference", **keywords))


@pytest.mark.parametrize("zero_point", [113, -1275, "many", slow("many bytes")])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "bits"), [(1, 8), (1, 6), (3, 8), (3, 6)])
def test_convolutions(kernel: int, bits: int, stride: int, zero_point) -> None:
    channels, columns = (19, 21) if bits == 8 else (36, 5)
    if zero_point == "many":
        zero_point = torch.randint(-300, 300, (channels,))
    elif zero_point == "many bytes":
        zero_point = torch.randint(0, 256, (channels,))
    weight = ops.pack_weight(random_weight(columns, channels, kernel, kernel, bits=bits), bits=bits)
    check(ops.qconv2d, byte_map(2, channels, 5, 3), weight, kernel_size=kernel, stride=stride, **settings(columns, a_zero_point=zero_point))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), slow((1, 4)), slow((9, 1)), slow((13, 14))], ids=str)
def test_the_border(size) -> None:
    """A map of one value tells real zeros outside of it from anything else: sums differ at its border only."""
    for zero_point in (0, 255, -7):
        x = torch.full((1, 4, *size), 200, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
        weight = ops.pack_weight(random_weight(3, 4, 3, 3))
        check(ops.qconv2d, x, weight, kernel_size=3, **settings(3, a_zero_point=zero_point))


@pytest.mark.parametrize("kernel", [1, 3])
def test_two_inputs(kernel: int) -> None:
    weight = ops.pack_weight(random_weight(7, 5 + 18, kernel, kernel))
    for zero_point in (113, 300):
        check(
            ops.qconv2d, byte_map(1, 5, 4, 5), weight, kernel_size=kernel, second=byte_map(1, 18, 4, 5),
            **settings(7, a_zero_point=zero_point),
        )  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [{"activation": "silu", "residual": torch.uint8}, slow({"out_dtype": torch.int16, "residual": torch.int16}), slow({"curve": True})],
    ids=str,
)
def test_epilogues(form) -> None:
    changes = dict(form)
    if residual := changes.pop("residual", None):
        changes["residual"] = byte_map(2, 9, 4, 3).to(residual)
        changes |= {"residual_scale": 0.1, "residual_zero_point": 90} if residual == torch.uint8 else {"out_zero_point": None}
    if changes.pop("curve", False):
        changes["table"] = reference.activation_curve("silu", 0.05, 100)
    check(ops.qconv2d, byte_map(2, 6, 4, 3), ops.pack_weight(random_weight(9, 6, 3, 3)), kernel_size=3, **settings(9, **changes))
    check(ops.qdepthwise_conv2d, byte_map(2, 9, 4, 3), random_weight(9, 1, 3, 3), **settings(9, **changes))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 5, 7, 4), slow((1, 1, 1, 1)), slow((1, 150, 3, 9)), slow((3, 17, 1, 20))], ids=str)
def test_depthwise(size, stride: int) -> None:
    for zero_point in (113, -1275, torch.randint(-300, 300, (size[1],))):
        check(
            ops.qdepthwise_conv2d,
            byte_map(*size),
            random_weight(size[1], 1, 3, 3),
            stride=stride,
            **settings(size[1], a_zero_point=zero_point),
        )


@pytest.mark.parametrize("stride", [1, 2])
def test_several_filters_of_a_channel(stride: int) -> None:
    for channels, times in ((3, 6), (20, 4)):
        count = channels * times
        points = torch.randint(-300, 300, (count,))
        for x in (byte_map(2, channels, 5, 4), byte_map(1, channels + 2, 3, 6)[:, 1:-1]):
            check(ops.qdepthwise_conv2d, x, random_weight(count, 1, 3, 3), stride=stride, **settings(count, a_zero_point=points))


def test_any_strides_and_empty() -> None:
    weight, taps = ops.pack_weight(random_weight(4, 5, 3, 3)), random_weight(5, 1, 3, 3)
    big = byte_map(3, 9, 8, 9)
    for x in (big[:, 2:7, 1:6, ::2], big.contiguous()[1:, :5, :3], byte_map(1, 5, 4, 6).transpose(2, 3), big[:0, :5]):
        check(ops.qconv2d, x, weight, kernel_size=3, **settings(4))
        check(ops.qdepthwise_conv2d, x, taps, **settings(5))
