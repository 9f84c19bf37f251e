from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cuda_cases import bytes_out, feed_forward_layers, stream_map
from op_checks import needs_native
from q_checks import assert_compiles_and_exports, assert_tensor_is_checked, both_backends, random_packed_weight

import mvit_kernels as mk
from mvit_kernels import reference

SHAPES = [((1, 1, 1, 1), 1), ((2, 16, 5, 7), 40), ((3, 33, 4, 4), 70)]
prepare = mk.ops.prepare_qfeed_forward


def sums_of(x: torch.Tensor) -> torch.Tensor:
    return reference.stream_sums(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), x.shape[0])


@both_backends
@pytest.mark.parametrize("kind", ["group", "layer"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_norm_and_the_layers(shape, kind: str, backend: str, poison) -> None:
    size, hidden = shape
    for more in ({}, {"bits": 6}, {"curve": None}, {"curve": "gelu", "zero_point": -1275}):
        norm, first, second = feed_forward_layers(kind, size[1], hidden, backend="reference", **more)
        x = stream_map(*size)
        expected = second(first(norm(x)), residual=x)
        block = prepare(norm, first, second, backend=backend)
        y, sums = block(x, collect=True)
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(sums, sums_of(y))
        assert torch.equal(block(x.contiguous()), expected)
        assert torch.equal(block(x.repeat_interleave(2, 3)[..., ::2]), expected)


@both_backends
def test_sums_that_are_known_are_taken(backend: str) -> None:
    layers, x = feed_forward_layers("group", 16, 40), stream_map(3, 16, 5, 5)
    block, sums = prepare(*layers, backend=backend), sums_of(x)
    pieces = torch.randint(-(2**40), 2**40, (3, 7, 2))
    pieces[:, 0] += sums - pieces.sum(1)
    for each in (sums, pieces, sums.repeat(1, 2)[:, :2]):
        assert torch.equal(block(x, each), block(x))
        assert torch.equal(layers[0](x, each), layers[0](x))
    assert not torch.equal(block(x, 4 * sums), block(x))


def test_no_images() -> None:
    for kind in ("group", "layer"):
        block = prepare(*feed_forward_layers(kind, 16, 40))
        y, sums = block(torch.empty(0, 16, 3, 3, dtype=torch.int16), collect=True)
        assert (y.shape, sums.shape) == ((0, 16, 3, 3), (0, 2))


def test_automatic_choice_takes_the_kernels() -> None:
    x, layers = stream_map(2, 16, 9, 7), feed_forward_layers("layer", 16, 40)
    expected = prepare(*layers, backend="reference")(x)
    assert torch.equal(prepare(*layers)(x), expected)
    with mk.use_backend("reference"):
        assert torch.equal(prepare(*layers)(x), expected)


@needs_native
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_compiled_and_exported(kind: str) -> None:
    block = prepare(*feed_forward_layers(kind, 16, 40), backend="cpu")
    assert_compiles_and_exports(
        lambda x: block(x, collect=True)[0], *([stream_map(batch, 16, side, side)] for batch, side in ((2, 8), (3, 9)))
    )


def test_layers_that_do_not_fit_are_refused() -> None:
    norm, first, second = feed_forward_layers("group", 16, 40)
    with pytest.raises(TypeError, match="norm: expected a QNorm, got QConv2d"):
        prepare(first, first, second)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="second: expected a QConv2d, got QNorm"):
        prepare(norm, first, norm)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"first: expected a layer to torch\.uint8, got one to torch\.int16"):
        prepare(norm, second, second)
    with pytest.raises(ValueError, match=r"second: expected a layer to torch\.int16, got one to torch\.uint8"):
        prepare(norm, first, first)
    other = feed_forward_layers("group", 24, 40)[2]
    with pytest.raises(ValueError, match="expected a layer from 40 to 16 channels behind one from 16 to 40, got one from 40 to 24"):
        prepare(norm, first, other)
    wide = mk.ops.prepare_qconv2d(random_packed_weight(40, 9 * 16), 0.1, 3, 0.01, kernel_size=3, **bytes_out(40))
    with pytest.raises(ValueError, match="first: expected a 1x1 convolution of stride 1 and one input, got 3x3"):
        prepare(norm, wide, second)
    affine = mk.ops.prepare_qnorm("group", scale=0.1, out_scale=0.1, out_zero_point=0, weight=torch.ones(16), bias=torch.zeros(16))
    with pytest.raises(ValueError, match="norm: expected one without weight and bias"):
        prepare(affine, first, second)
    with pytest.raises(ValueError, match="kind: expected one of group, layer, got 'batch'"):
        mk.ops.prepare_qnorm("batch", scale=0.1, out_scale=0.1, out_zero_point=0)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("group", (torch.zeros(1, 17, 2, 2, dtype=torch.int16),), "x: expected 16 channels, got shape"),
        ("group", (torch.zeros(1, 16, 2, 2, dtype=torch.uint8),), "x: expected dtype int16"),
        ("group", (stream_map(2, 16, 2, 2), torch.zeros(3, 2, dtype=torch.int64)), "sums: expected those of 2 images, got 3"),
        ("group", (stream_map(2, 16, 2, 2), torch.zeros(2, 3, dtype=torch.int64)), r"sums: expected shape \(G, 2\) or"),
        ("group", (stream_map(2, 16, 2, 2), torch.zeros(2, 2)), "sums: expected dtype int64"),
        ("group", (stream_map(2, 16, 2, 2), [0, 0]), "sums: expected a tensor, got list"),
        ("layer", (stream_map(2, 16, 2, 2), torch.zeros(2, 2, dtype=torch.int64)), "sums: expected None with a norm of each pixel"),
        ("group", (3,), "x: expected a tensor, got int"),
    ],
)
def test_wrong_arguments(kind: str, inputs: tuple[Any, ...], message: str) -> None:
    block = prepare(*feed_forward_layers(kind, 16, 40))
    with pytest.raises((TypeError, ValueError), match=f"qfeed_forward: {message}"):
        block(*inputs)


def given_to_the_op(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    """The arguments of a call of the op, and their names."""
    given: list[Any] = []
    block = prepare(*feed_forward_layers("group", 16, 40))

    def call(*arguments: Any, **_: Any) -> tuple[None, None]:
        given.extend(arguments)
        return None, None

    monkeypatch.setattr(sys.modules["mvit_kernels.ops.qfeed_forward"], "_call", call)
    block(stream_map(1, 16, 4, 4))
    return given, [each.name for each in torch.ops.mvit_kernels.qfeed_forward.default._schema.arguments]


@pytest.mark.parametrize("name", ["first_weight", "first_channels", "first_table", "second_weight", "second_channels"])
def test_tensors_of_the_op_are_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = given_to_the_op(monkeypatch)
    assert_tensor_is_checked(torch.ops.mvit_kernels.qfeed_forward, given, name, name.replace("_", ": "))


def test_forms_of_the_op_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    given, names = given_to_the_op(monkeypatch)
    at = names.index("first_form")
    for forms, message in (
        (([40, 16], [16, 40, 8], "group"), "first_form: expected columns, depth and bits"),
        (([40, 16, 8], [16, 41, 8], "group"), "second: expected a layer from 40 to 16 channels"),
        (([40, 16, 8], [16, 40, 7], "group"), "second: weight: expected 8 or 6 bits"),
        (([40, 16, 8], [16, 40, 8], "batch"), "norm: expected one of group, layer, got 'batch'"),
    ):
        with pytest.raises(ValueError, match=f"qfeed_forward: {message}"):
            torch.ops.mvit_kernels.qfeed_forward(*given[:at], *forms, *given[at + 3 :])
