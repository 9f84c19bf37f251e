"""Every family of networks, quantized as nobody should: what is refused is refused by name, what is not is safe and the same everywhere."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SIDE, images, network
from marks import slow
from op_checks import needs_native
from test_quant_export import sqnr
from test_quant_search import images as noise
from test_quant_search import small
from torch import nn

import mvit_kernels as mk

Tensor = torch.Tensor
FEW = [slow(name) if name != "mobile_former_26m" else name for name in FAMILIES]
FIELDS = {"method": "minmax", "weight_bits": 8, "activation_bits": 8}


def quantized(model: nn.Module, x: Tensor, **settings: Any) -> mk.QuantizedModel:
    return mk.quantize(model, [x], mk.QuantConfig(**(FIELDS | settings)), progress=False)


def assert_safe(q: mk.QuantizedModel, x: Tensor) -> Tensor:
    """Finite, and the same bits on the kernels and compiled where floats are no part of it."""
    y = q(x)
    assert torch.isfinite(y).all()
    if q.config.activation_bits is not None and not q.config.skip and not q.config.overrides:
        assert torch.equal(mk.convert(q)(x), y)
        assert torch.equal(mk.compile(q, x)(x), y)
    return y


def damaged(name: str) -> nn.Module:
    """With channels that no image changes: of every norm one that is a constant, and one that is 0."""
    model = copy.deepcopy(network(name))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                module.weight[:2], module.bias[0] = 0.0, 0.0
    return model


@needs_native
@pytest.mark.parametrize("name", FEW)
@pytest.mark.slow
def test_dead_channels_and_constant_images(name: str) -> None:
    model, x = damaged(name), images(4)
    y = assert_safe(quantized(model, x), x)
    with torch.no_grad():
        assert sqnr(model(x), y) > 5
    for value in (0.0, 5.0, 1e-30):
        assert_safe(quantized(model, torch.full((2, 3, SIDE, SIDE), value)), x)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "best") for name in FAMILIES), *(("mobilevitv2_050", method) for method in ("percentile", "omse", "easyquant"))],
)
def test_dead_channels_by_every_method(name: str, method: str) -> None:
    model = damaged(name)
    for x in (images(4), torch.full((4, 3, SIDE, SIDE), 0.5)):
        assert_safe(quantized(model, x, method=method, weight_bits=6, activation_bits=6), images(4))


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_bits_that_differ(name: str) -> None:
    model, x = network(name), images(4)
    with torch.no_grad():
        exact = model(x)
    layers = [node.name for node in quantized(model, x).program() if node.kind.startswith("q") and node.kind != "quantize"]
    draw = random.Random(0)
    some = {each: {"weight_bits": draw.choice((6, 8)), "activation_bits": draw.choice((6, 8, None))} for each in draw.sample(layers, 12)}
    least = {"weight_bits": 3, "activation_bits": -3, "skip": 3, "overrides": -3}  # random networks take rounding hard
    for settings in ({"weight_bits": 6}, {"activation_bits": 6}, {"skip": tuple(draw.sample(layers, 12))}, {"overrides": some}):
        y = assert_safe(quantized(model, x, **settings), x)
        assert sqnr(exact, y) > least[next(iter(settings))]
    full = quantized(model, x, full=True)
    assert torch.equal(full(x), quantized(model, x)(x))
    assert sqnr(exact, quantized(model, x, activation_bits=None)(x)) > 15
    with_nothing = quantized(model, x, skip=("*",))
    assert with_nothing.report().integer_nodes == 0
    assert sqnr(exact, with_nothing(x)) > 90


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_where_to_keep_floats(name: str, tmp_path: Path) -> None:
    model, x = network(name), images(16)
    q = quantized(model, x, weight_bits=6, activation_bits=6)
    study = q.sensitivity([x], target=20.0, progress=False)
    nodes = {row.node for row in q.report().rows}
    assert {row.node for row in study.rows} <= nodes
    assert {row.kind for row in study.rows} >= {"conv2d", "linear"}
    kept = quantized(model, x, weight_bits=6, activation_bits=6, skip=study.keep_float) if study.keep_float else q
    with torch.no_grad():
        lost = 100 * float((kept(x).argmax(1) != model(x).argmax(1)).float().mean())
    assert lost <= 20.0 + 2 * 100 / 16  # scales are found anew
    study.save_json(tmp_path / "study.json")


# --- of any network ---


@pytest.mark.parametrize("method", ["minmax", "best"])
@pytest.mark.parametrize("settings", [{}, {"activation_bits": None}, {"skip": ("*",)}], ids=str)
def test_what_is_no_number(settings: dict[str, Any], method: str) -> None:
    x = noise(4, 16)
    for value in (float("nan"), float("inf")):
        bad = x.clone()
        bad[1, 0, 3, 3] = value
        with pytest.raises(ValueError, match="quantize: calibration: expected finite values, got others in the images"):
            quantized(small(), bad, method=method, **settings)
    for value in (float("nan"), float("-inf")):
        broken = small()
        with torch.no_grad():
            broken.after.weight[0, 0, 0, 0] = value  # type: ignore[index,union-attr,operator]
        with pytest.raises(ValueError, match="quantize: model: expected finite weights, got others at after"):
            quantized(broken, x, method=method, **settings)


@pytest.mark.parametrize("settings", [{}, {"activation_bits": None, "method": "best"}], ids=str)
def test_values_that_overflow(settings: dict[str, Any]) -> None:
    model = small()
    with torch.no_grad():
        model.expand.weight *= 1e10  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match="quantize: calibration: expected finite values, got others at expand"):
        quantized(model, noise(2, 16) * 1e30, **settings)


@pytest.mark.parametrize("which", ["skip", "overrides"])
def test_patterns_that_nothing_has(which: str) -> None:
    settings = {"skip": ("stem*", "haed")} if which == "skip" else {"overrides": {"haed": {"weight_bits": 6}}}
    with pytest.raises(ValueError, match=rf"quantize: config: {which}: expected patterns of node names, as head, .* got 'haed'"):
        quantized(small(), noise(1, 16), **settings)
