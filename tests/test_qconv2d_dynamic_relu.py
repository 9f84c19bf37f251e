"""A convolution of bytes with a dynamic ReLU and bytes behind it: those of the three ops, one after another."""

from __future__ import annotations

import pytest
import torch
from q_checks import assert_compiles_and_exports, assert_tensor_is_checked, byte_map, random_weight

from mvit_kernels import ops

Tensor = torch.Tensor
OUT = {"out_scale": 0.03, "out_zero_point": 100}
# batch, channels, height, width, columns
SIZES = [(1, 1, 1, 1, 1), (2, 19, 5, 3, 21), (3, 64, 7, 7, 40)]


def layer_of(
    size: tuple[int, ...], kernel: int, stride: int = 1, bits: int = 8, **changes: object
) -> ops.QConv2d | ops.QDepthwiseConv2d:  # fmt: skip
    """To floats; of a depthwise convolution with two filters for each channel where its columns are odd."""
    settings = {"a_scale": 0.02, "a_zero_point": 113, **changes}
    if kernel == 1:
        _, channels, _, _, columns = size
        weight = ops.pack_weight(random_weight(columns, channels, 1, 1, bits=bits), bits=bits)
        scales = {"w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns)}
        return ops.prepare_qconv2d(weight, kernel_size=1, stride=stride, **scales, **settings)
    wide = size[1] * (1 + size[4] % 2)
    scales = {"w_scale": torch.rand(wide) * 0.01 + 1e-3, "bias": torch.randn(wide)}
    return ops.prepare_qdepthwise_conv2d(random_weight(wide, 1, 3, 3, bits=8), stride=stride, **scales, **settings)


def inputs_of(size: tuple[int, ...], kernel: int) -> tuple[Tensor, Tensor]:
    columns = size[4] if kernel == 1 else size[1] * (1 + size[4] % 2)
    return byte_map(*size[:4]), 2 * torch.randn(size[0], 2 * columns)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kernel", "stride", "bits"), [(1, 1, 8), (1, 1, 6), (3, 1, 8), (3, 2, 8)])
def test_it_is_the_three_ops(size, kernel: int, stride: int, bits: int, backend: str) -> None:
    layer, (x, u) = layer_of(size, kernel, stride, bits), inputs_of(size, kernel)
    u[0, 0] = u[-1, -1] = float("nan")  # of a first slope, and of a second
    for out in (OUT, {"out_scale": 1e-4, "out_zero_point": 3, "out_bits": 6}, {"out_scale": 2.0**-126, "out_zero_point": 2**20}):
        fused = ops.prepare_qconv2d_dynamic_relu(layer, **out, backend=backend)
        y = fused(x, u)
        bits = out.get("out_bits", 8)
        assert torch.equal(y, ops.quantize(ops.dynamic_relu(layer(x), u), out["out_scale"], out["out_zero_point"], bits=bits))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert fused(x[:0], u[:0]).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_torch_asks_of_ops(kernel: int) -> None:
    fused = ops.prepare_qconv2d_dynamic_relu(layer_of(SIZES[1], kernel), **OUT)
    draws = [inputs_of((batch, 19, 5, 2 + batch, 21), kernel) for batch in (2, 3)]
    assert_compiles_and_exports(lambda x, u: fused(x, u), *draws)
    channels, zero_point, *weight = fused._placed.on(torch.device("cpu"))
    weight = weight or [fused.layer.weight.data]
    op, given = torch.ops.mvit_kernels.qconv2d_dynamic_relu, (*draws[0], *weight, channels, zero_point, *fused._form, 1)
    torch.library.opcheck(op, given)
    for name in ("weight", "channels", "zero_point"):
        assert_tensor_is_checked(op, given, name, name)


def test_wrong_arguments() -> None:
    prepare, size, (x, u) = ops.prepare_qconv2d_dynamic_relu, SIZES[1], inputs_of(SIZES[1], 1)
    layer = layer_of(size, 1)
    for error, message, give in (
        (TypeError, "layer: expected a QDepthwiseConv2d, got int", lambda: prepare(3, **OUT)),
        (ValueError, "layer: expected a layer to torch.float32, got one to torch.uint8", lambda: prepare(
            layer_of(size, 1, out_dtype=torch.uint8, out_scale=0.1, out_zero_point=3), **OUT)),
        (ValueError, "layer: expected one without an activation, got relu", lambda: prepare(layer_of(size, 3, activation="relu"), **OUT)),
        (ValueError, "layer: expected a 1x1 convolution of stride 1", lambda: prepare(layer_of(size, 1, stride=2), **OUT)),
        (ValueError, "out_zero_point: expected", lambda: prepare(layer, out_scale=0.1, out_zero_point=2**21)),
        (ValueError, "x: expected 19 channels, got shape", lambda: prepare(layer, **OUT)(x[:, 1:], u)),
        (ValueError, "x: expected a number of channels that divides 38", lambda: prepare(layer_of(size, 3), **OUT)(x[:, 1:], u)),
        (ValueError, r"u: expected shape \(2, 42\) on cpu, got \(2, 41\)", lambda: prepare(layer, **OUT)(x, u[:, 1:])),
        (TypeError, "u: expected", lambda: prepare(layer, **OUT)(x, u.half())),
    ):  # fmt: skip
        with pytest.raises(error, match=f"qconv2d_dynamic_relu: {message}"):
            give()
