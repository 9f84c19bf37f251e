from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import pytest
import torch
from cuda_cases import attention_layers, bytes_out, feed_forward_layers, known_sums, stream_map
from op_checks import needs_native
from q_checks import assert_compiles_and_exports, assert_tensor_is_checked, both_backends, random_packed_weight

import mvit_kernels as mk
from mvit_kernels import reference

SHAPES = [((1, 1, 1, 1), (1, 1)), ((2, 16, 4, 6), (2, 2)), ((3, 33, 6, 5), (3, 1))]
prepare = mk.ops.prepare_qseparable_attention_block


def by_the_definition(layers: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
    norm, qkv, context, key, gate, out = layers
    normal = norm(x)
    values = qkv(normal)
    ph, pw = context.patch_size
    mixed = context(values[:, 0], normal.permute(0, 2, 3, 1))
    keys = key(mixed.unflatten(1, (ph, pw)).permute(0, 3, 1, 2))
    gated = gate(values[:, 1:].permute(0, 2, 3, 1), keys.permute(0, 2, 3, 1).flatten(1, 2))
    y: torch.Tensor = out(gated.permute(0, 3, 1, 2), residual=x)
    return y


@both_backends
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_ops_one_after_another(shape, backend: str, poison) -> None:
    size, patch = shape
    for more in ({}, {"bits": 6, "zero_point": 10}, {"decay": 0.0, "zero_point": -20}, {"decay": 3.0, "zero_point": 255}):
        layers, x = attention_layers(size[1], patch=patch, backend="reference", **more), stream_map(*size)
        expected = by_the_definition(layers, x)
        block = prepare(*layers, backend=backend)
        y, sums = block(x, collect=True)
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(sums, reference.stream_sums(y.permute(0, 2, 3, 1).reshape(-1, size[1]), size[0]))
        assert torch.equal(block(x.contiguous()), expected)
        assert torch.equal(block(x.repeat_interleave(2, 3)[..., ::2]), expected)
    assert size[1] == 1 or len(expected.unique()) > 20


def test_every_part_shows() -> None:
    """What the tests compare depends on each of the ops: their results are not all the same byte."""
    norm, qkv, context, key, gate, _ = attention_layers(16)
    x = stream_map(2, 16, 8, 8)
    normal = norm(x)
    values = qkv(normal)
    mixed = context(values[:, 0], normal.permute(0, 2, 3, 1))
    keys = key(mixed.unflatten(1, (2, 2)).permute(0, 3, 1, 2))
    gated = gate(values[:, 1:].permute(0, 2, 3, 1), keys.permute(0, 2, 3, 1).flatten(1, 2))
    for each in (normal, values[:, 0], values[:, 1:], mixed, keys, gated):
        assert len(each.unique()) > 20
    assert not any(((each == 0) | (each == 255)).float().mean() > 0.7 for each in (normal, values, mixed, gated))


@both_backends
def test_sums_that_are_known_are_taken(backend: str) -> None:
    layers, x = attention_layers(16), stream_map(3, 16, 4, 4)
    block = prepare(*layers, backend=backend)
    for pieces in (0, 1, 7):
        assert torch.equal(block(x, known_sums(x, pieces)), block(x))
    sums = known_sums(x, 0)
    assert sums is not None
    assert not torch.equal(block(x, 4 * sums), block(x))


def test_no_images() -> None:
    y, sums = prepare(*attention_layers(16))(torch.empty(0, 16, 2, 2, dtype=torch.int16), collect=True)
    assert (y.shape, sums.shape) == ((0, 16, 2, 2), (0, 2))


def test_automatic_choice_takes_the_kernels() -> None:
    x, layers = stream_map(2, 16, 8, 6), attention_layers(16)
    expected = prepare(*layers, backend="reference")(x)
    block = prepare(*layers)
    assert torch.equal(block(x), expected)
    with mk.use_backend("reference"):
        assert torch.equal(block(x), expected)


@needs_native
def test_what_the_kernels_do_not_take_is_done_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the six ops by what takes its own operand."""
    from mvit_kernels.ops import qseparable_attention_block as op

    x, layers = stream_map(1, 16, 4, 4), attention_layers(16)
    expected, asked = prepare(*layers)(x), []

    def watched(choice: Any) -> Any:
        def choose(wanted: str, operand: torch.Tensor, *more: Any) -> Any:
            asked.append((choice.op, wanted, operand.dtype))
            return choice(wanted, operand, *more)

        return _Choice({}, choose)

    for name in ("choose_qnorm", "choose_context", "choose_gate"):
        monkeypatch.setattr(op, name, watched(getattr(op, name)))
    assert torch.equal(prepare(*layers, backend="reference")(x), expected)
    assert asked == [
        ("qnorm", "auto", torch.int16), ("qseparable_context", "auto", torch.uint8), ("qseparable_gate", "auto", torch.uint8)
    ]  # fmt: skip


class _Choice(NamedTuple):
    implementations: dict[str, Any]
    choose: Any

    def __call__(self, *arguments: Any) -> Any:
        return self.choose(*arguments)


def test_tables_of_contexts_are_checked_and_kept() -> None:
    of_context = {"x_scale": 0.1, "x_zero_point": 3}
    table = reference.exponential_table(0.04)
    for wrong, error, message in (
        (table.long(), TypeError, "table: expected"), (table[:3], ValueError, "table: expected 256 values, got 3"),
        (table - table[0], ValueError, re.escape("table: expected values in [0, 2^16], the first not 0")),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            mk.ops.prepare_qseparable_context(wrong, **of_context)
    context = mk.ops.prepare_qseparable_context(table, patch_size=[2, 2], **of_context)
    table.zero_()
    assert int(context.table[0]) == 2**16
    assert context.patch_size == (2, 2)


def test_compiled_and_exported() -> None:
    block = prepare(*attention_layers(16), backend="cpu")
    draws = [([stream_map(batch, 16, side, side)]) for batch, side in ((2, 8), (3, 10))]
    assert_compiles_and_exports(lambda x: block(x, collect=True)[0], *draws)


def test_layers_that_do_not_fit_are_refused() -> None:
    layers = attention_layers(16)
    _, qkv, context, key, gate, out = layers
    for at, other, message in (
        (0, key, "norm: expected a QNorm, got QConv2d"),
        (2, gate, "context: expected a QSeparableContext, got QSeparableGate"),
        (5, gate, "out: expected a QConv2d, got QSeparableGate"),
    ):
        with pytest.raises(TypeError, match=f"qseparable_attention_block: {message}"):
            prepare(*layers[:at], other, *layers[at + 1 :])  # type: ignore[arg-type]
    other = attention_layers(24)
    pixels = feed_forward_layers("layer", 16, 16)[0]
    affine = mk.ops.prepare_qnorm("group", scale=0.1, out_scale=0.1, out_zero_point=0, weight=torch.ones(16), bias=torch.zeros(16))
    wide = mk.ops.prepare_qconv2d(random_packed_weight(17, 9 * 16), 0.1, 3, 0.01, kernel_size=3, **bytes_out(17))
    curved = feed_forward_layers("group", 16, 17)[1]
    relu = mk.ops.prepare_qconv2d(random_packed_weight(16, 16), 0.1, 3, 0.01, kernel_size=1, activation="relu")
    to_floats = mk.ops.prepare_qseparable_context(context.table, x_scale=0.03, x_zero_point=40)
    for at, wrong, message in (
        (0, pixels, "norm: expected one of images without weight and bias, got one of pixels without"),
        (0, affine, "norm: expected one of images without weight and bias, got one of images with weight"),
        (0, attention_layers(16, zero_point=41)[0], r"context: expected scale and zero-point of the norm, \(.*, 41\), got \(.*, 40\)"),
        (1, out, r"qkv: expected a layer to torch\.uint8, got one to torch\.int16"),
        (1, wide, "qkv: expected a 1x1 convolution of stride 1 and one input, got 3x3"),
        (1, other[1], "qkv: expected a layer from 16 to 17 channels, as out has 16, got one from 24 to 25"),
        (1, curved, "qkv: expected a layer without an activation"),
        (2, to_floats, r"context: expected a layer to torch\.uint8, got one to torch\.float32"),
        (3, qkv, r"key: expected a layer to torch\.float32, got one to torch\.uint8"),
        (3, relu, "key: expected a layer without an activation"),
        (4, attention_layers(16, patch=(1, 2))[4], r"gate: expected the patch_size of the context, \(2, 2\), got \(1, 2\)"),
        (4, attention_layers(16, zero_point=41)[4], r"gate: expected the zero-point of values, \[40\], got 41"),
        (5, other[5], "qkv: expected a layer from 24 to 25 channels, as out has 24, got one from 16 to 17"),
    ):
        with pytest.raises(ValueError, match=f"qseparable_attention_block: {message}"):
            prepare(*layers[:at], wrong, *layers[at + 1 :])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend: expected one of"):
        prepare(*layers, backend="fpga")(stream_map(1, 16, 4, 4))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(1, 17, 2, 2, dtype=torch.int16),), "x: expected 16 channels, got shape"),
        ((torch.zeros(1, 16, 2, 2, dtype=torch.uint8),), "x: expected dtype int16"),
        ((torch.zeros(1, 16, 2, 3, dtype=torch.int16),), r"x: expected height and width that are multiples of \(2, 2\), got 2 x 3"),
        ((stream_map(2, 16, 2, 2), torch.zeros(3, 2, dtype=torch.int64)), "sums: expected those of 2 images, got 3"),
        ((stream_map(2, 16, 2, 2), torch.zeros(2, 2)), "sums: expected dtype int64"),
        ((stream_map(2, 16, 2, 2), [0, 0]), "sums: expected a tensor, got list"),
        ((3,), "x: expected a tensor, got int"),
    ],
)
def test_wrong_arguments(inputs: tuple[Any, ...], message: str) -> None:
    block = prepare(*attention_layers(16))
    with pytest.raises((TypeError, ValueError), match=f"qseparable_attention_block: {message}"):
        block(*inputs)


def given_to_the_op(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    """The arguments of a call of the op, and their names."""
    given: list[Any] = []

    def call(*arguments: Any, **_: Any) -> tuple[None, None]:
        given.extend(arguments)
        return None, None

    block = prepare(*attention_layers(16))
    monkeypatch.setattr(sys.modules["mvit_kernels.ops.qseparable_attention_block"], "_call", call)
    block(stream_map(1, 16, 4, 4))
    return given, [each.name for each in torch.ops.mvit_kernels.qseparable_attention_block.default._schema.arguments]


TENSORS = "qkv_weight", "qkv_channels", "table", "key_weight", "key_channels", "out_weight", "out_channels"


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_the_op_are_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = given_to_the_op(monkeypatch)
    assert_tensor_is_checked(torch.ops.mvit_kernels.qseparable_attention_block, given, name, name.replace("_", ": "))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bits", [8, 8], r"bits: expected those of three weights, got \[8, 8\]"),
        ("bits", [8, 7, 8], "key: weight: expected 8 or 6 bits"),
        ("dim", 24, "qkv: weight: "),
        ("patch_size", [0, 2], "patch_size: expected two positive integers"),
        ("v_bits", 7, "v_bits: expected 8 or 6"),
    ],
)
def test_settings_of_the_op_are_checked(name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, names = given_to_the_op(monkeypatch)
    at = names.index(name)
    with pytest.raises(ValueError, match=f"qseparable_attention_block: {message}"):
        torch.ops.mvit_kernels.qseparable_attention_block(*given[:at], value, *given[at + 1 :])
