from __future__ import annotations

import sys

import pytest
import torch
from cuda_cases import bytes_out, inverted_residual_layers, random_residual
from op_checks import needs_native
from q_checks import assert_compiles_and_exports, assert_tensor_is_checked, both_backends, byte_map

import mvit_kernels as mk

SHAPES = [((1, 3, 1, 1), 5, 2), ((2, 16, 9, 7), 40, 24), ((1, 33, 5, 18), 70, 33)]


@both_backends
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_three_layers(shape, stride: int, backend: str, poison) -> None:
    size, hidden, columns = shape
    settings = bytes_out(columns, residual_scale=0.07, residual_zero_point=3)
    for curve, residual in (("silu", None), ("gelu", torch.uint8), (None, torch.int16)):
        layers = inverted_residual_layers(size[1], hidden, columns, stride, curve=curve, settings=settings, backend="reference")
        expand, depthwise, reduce = layers
        x = byte_map(*size)
        added = random_residual(residual, size[0], columns, (size[2] - 1) // stride + 1, (size[3] - 1) // stride + 1)
        y = mk.ops.prepare_qinverted_residual(*layers, backend=backend)(x, added)
        assert torch.equal(y, reduce(depthwise(expand(x)), residual=added))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_automatic_choice_takes_the_kernels() -> None:
    x = byte_map(2, 16, 9, 7)
    layers = inverted_residual_layers(16, 40, 24, 1)
    expected = mk.ops.prepare_qinverted_residual(*layers, backend="reference")(x)
    assert torch.equal(mk.ops.prepare_qinverted_residual(*layers)(x), expected)
    with mk.use_backend("reference"):
        assert torch.equal(mk.ops.prepare_qinverted_residual(*layers)(x), expected)


@needs_native
def test_compiled_and_exported() -> None:
    block = mk.ops.prepare_qinverted_residual(*inverted_residual_layers(16, 40, 24, 2), backend="cpu")
    assert_compiles_and_exports(lambda x: block(x), *([byte_map(batch, 16, side, side)] for batch, side in ((2, 8), (3, 9))))


def test_layers_that_do_not_fit_are_refused() -> None:
    expand, depthwise, reduce = inverted_residual_layers(16, 40, 24, 1)
    prepare = mk.ops.prepare_qinverted_residual
    with pytest.raises(TypeError, match="depthwise: expected a QDepthwiseConv2d, got QConv2d"):
        prepare(expand, reduce, reduce)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected as many channels as expand gives and reduce takes, got 24, 40 and 40"):
        prepare(reduce, depthwise, reduce)
    with pytest.raises(ValueError, match="expected as many channels as expand gives and reduce takes, got 40, 40 and 16"):
        prepare(expand, depthwise, expand)
    floats = inverted_residual_layers(16, 40, 40, 1, settings={"out_dtype": torch.float32})[2]
    with pytest.raises(ValueError, match=r"expand: expected a layer to torch\.uint8, got one to torch\.float32"):
        prepare(floats, depthwise, reduce)
    wide = mk.ops.pack_weight(torch.ones(40, 16, 3, 3, dtype=torch.int8))
    filter3 = mk.ops.prepare_qconv2d(wide, 0.1, 3, 0.01, kernel_size=3, **bytes_out(40))
    with pytest.raises(
        ValueError, match="expand: expected a 1x1 convolution of stride 1 and one input, got 3x3 of stride 1 with 0 channels"
    ):
        prepare(filter3, depthwise, reduce)
    with pytest.raises(ValueError, match="backend: expected one of"):
        prepare(expand, depthwise, reduce, backend="fpga")(byte_map(1, 16, 4, 4))
    block = prepare(expand, depthwise, reduce)
    with pytest.raises(ValueError, match="x: expected 16 channels, got shape"):
        block(byte_map(1, 17, 4, 4))
    with pytest.raises(ValueError, match="residual"):
        block(byte_map(1, 16, 4, 4), byte_map(1, 24, 4, 4))


TENSORS = (
    "expand_weight expand_channels expand_table filter_weight zero_point blocks filter_channels filter_table reduce_weight reduce_channels"
)


@pytest.mark.parametrize("name", [*TENSORS.split(), "residual"])
def test_tensors_of_the_op_are_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, given = torch.ops.mvit_kernels.qinverted_residual, []
    settings = bytes_out(24, residual_scale=0.07, residual_zero_point=3)
    block = mk.ops.prepare_qinverted_residual(*inverted_residual_layers(16, 40, 24, 1, settings=settings))
    monkeypatch.setattr(sys.modules["mvit_kernels.ops.qinverted_residual"], "_call", lambda *args, **_: given.extend(args))
    block(byte_map(1, 16, 4, 4), byte_map(1, 24, 4, 4))
    shown = name.replace("_weight", ": weight").replace("_channels", ": channels").replace("_table", ": table")
    assert_tensor_is_checked(op, given, name, f"({shown}|filter_weight)")


def test_forms_of_the_op_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    op, given = torch.ops.mvit_kernels.qinverted_residual, []
    block = mk.ops.prepare_qinverted_residual(*inverted_residual_layers(16, 40, 24, 1))
    monkeypatch.setattr(sys.modules["mvit_kernels.ops.qinverted_residual"], "_call", lambda *args, **_: given.extend(args))
    block(byte_map(1, 16, 4, 4))
    at = [each.name for each in op.default._schema.arguments].index("expand_form")
    for forms, message in (
        (([40, 16], [24, 40, 8]), "expand_form: expected columns, depth and bits"),
        (([40, 16, 8], [24, 41, 8]), "reduce_form: expected a depth of 40, got 41"),
        (([40, 16, 8], [24, 40, 7]), "reduce: weight: expected 8 or 6 bits"),
    ):
        with pytest.raises(ValueError, match=f"qinverted_residual: {message}"):
            op(*given[:at], *forms, *given[at + 2 :])
