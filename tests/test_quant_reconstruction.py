"""Weights that are rounded together: integers on the grid, less error than plain rounding, and means that are right."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_quant_search import images, small
from torch import nn

import mvit_kernels as mk
from mvit_kernels.quant.reconstruction import _Moments, rounded_together

Tensor = torch.Tensor


def test_a_bias_that_rounding_finds_is_added_to_floats_too() -> None:
    """Of layers that have none, whose inputs have a mean: integers are rounded for what is left of that."""

    class Biasless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, 32, 3, padding=1, bias=False)
            self.fc = nn.Linear(32, 10, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, x = Biasless().eval(), torch.rand(16, 3, 16, 16) * 0.02 + 5
    with torch.no_grad():
        exact = model(x)

    def far(y: Tensor) -> float:
        return float((y - exact).norm() / exact.norm())

    floats, together = (mk.quantize(model, [x], mk.QuantConfig(6, None, each), progress=False) for each in ("qhyvit", "best"))
    assert far(together(x)) < 0.5 * far(floats(x))
    rows = mk.quantize(model, [x], mk.QuantConfig(6, 8, "best"), progress=False).sensitivity([x], progress=False).rows
    assert min(row.sqnr for row in rows) > 30


def correlated(count: int, depth: int, groups: int = 1) -> Tensor:
    mixed = torch.randn(groups, depth, depth, dtype=torch.float64)
    return torch.randn(groups, count, depth, dtype=torch.float64) @ mixed + 3 * torch.randn(groups, 1, depth, dtype=torch.float64)


def moments_of(x: Tensor, w: Tensor) -> _Moments:
    moments = _Moments(w)
    moments.add(x, x @ w.mT)
    return moments


@pytest.mark.parametrize(("groups", "rows", "depth", "most"), [(1, 8, 40, 31), (6, 1, 9, 31), (1, 3, 1, 127)])
def test_less_error_than_plain_rounding(groups: int, rows: int, depth: int, most: int) -> None:
    x, w = correlated(500, depth, groups), torch.randn(groups, rows, depth, dtype=torch.float64)
    scale = w.abs().amax(2, keepdim=True) / most
    q = rounded_together(w / scale, moments_of(x, w).centred(), most)
    assert torch.equal(q, q.round())
    assert q.abs().max() <= most
    centred = x - x.mean(1, keepdim=True)

    def error(q: Tensor) -> float:
        return float((centred @ (q * scale - w).mT).square().sum())

    plain = error((w / scale).round())
    assert error(q) <= plain
    if depth > 9:
        assert error(q) < 0.5 * plain


def test_two_weights_are_nearly_the_best_integers() -> None:
    """Against every pair of integers near them."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 100, 1, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
        x[:, :, 1] += 0.3 * torch.randn(1, 100, generator=generator, dtype=torch.float64)
        w = 5 * torch.rand(1, 1, 2, generator=generator, dtype=torch.float64)
        h = moments_of(x, w).centred()[0]
        q = rounded_together(w.clone(), h[None], 31)

        def cost(pair: Tensor, h: Tensor = h, w: Tensor = w) -> float:
            return float((pair - w[0, 0]) @ h @ (pair - w[0, 0]))

        best = min(cost(torch.tensor(pair, dtype=torch.float64)) for pair in itertools.product(range(-2, 8), repeat=2))
        assert cost(q[0, 0]) <= max(3 * best, 0.05 * float(h[0, 0]))


def test_moments_in_pieces() -> None:
    x, w = correlated(60, 5), torch.randn(1, 4, 5, dtype=torch.float64)
    t = x @ w.mT + 0.1 * torch.randn(1, 60, 4, dtype=torch.float64) + 2
    whole, pieces = _Moments(w), _Moments(w)
    whole.add(x, t)
    for each in range(0, 60, 25):
        pieces.add(x[:, each : each + 25], t[:, each : each + 25])
    torch.testing.assert_close(whole.centred(), pieces.centred(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.centred()[0], x[0].T.cov(correction=0), rtol=1e-6, atol=1e-9)
    bias = whole.bias(w)
    torch.testing.assert_close((x @ w.mT + bias[:, None]).mean(1), t.mean(1))
    better = whole.followed(w + 0.5)

    def error(rows: Tensor) -> float:
        y = x @ rows.mT
        return float((y - y.mean(1, keepdim=True) - t + t.mean(1, keepdim=True)).square().sum())

    assert error(better) < error(w + 0.5)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_inputs_that_never_change(value: float) -> None:
    x, w = torch.full((3, 50, 9), value, dtype=torch.float64), torch.randn(3, 1, 9, dtype=torch.float64)
    moments = moments_of(x, w)
    assert torch.isfinite(moments.followed(w)).all()
    scale = w.abs().amax(2, keepdim=True) / 31
    q = rounded_together(w / scale, moments.centred(), 31)
    assert ((q - w / scale).abs() <= 1).all()
    torch.testing.assert_close((x @ (q * scale).mT)[:, 0] + moments.bias(q * scale), (x @ w.mT)[:, 0])


@pytest.mark.parametrize("settings", [{"activation_bits": None}, {"skip": ("depthwise", "far")}, {}], ids=str)
def test_networks_keep_their_means(settings: dict) -> None:
    model, x = small(), images(8, 16)
    config = mk.QuantConfig(6, method="best", **({"activation_bits": 6} | settings))
    q = mk.quantize(model, [x], config, progress=False)
    assert torch.equal(mk.convert(q)(x), q(x))
    with torch.no_grad():
        exact, plain = (
            model(x),
            mk.quantize(model, [x], mk.QuantConfig(6, config.activation_bits, "minmax", skip=config.skip), progress=False)(x),
        )
    y = q(x)
    assert (y - exact).mean(0).abs().max() < 0.3 * (plain - exact).mean(0).abs().max() + 1e-3 * exact.abs().max()


def test_dead_channels() -> None:
    model = small()
    with torch.no_grad():
        model.expand.weight[5], model.expand.bias[5] = 0.0, 0.0  # type: ignore[index,union-attr,operator]
        model.reduce.weight[2] = 0.0  # type: ignore[index,union-attr,operator]
    q = mk.quantize(model, [images(4, 16), torch.zeros(2, 3, 16, 16)], mk.QuantConfig(6, 6, "best"), progress=False)
    y = q(images(2, 16))
    assert torch.isfinite(y).all()
    constant = mk.quantize(model, [torch.zeros(4, 3, 16, 16)], mk.QuantConfig(6, 6, "best"), progress=False)
    assert torch.isfinite(constant(torch.zeros(1, 3, 16, 16))).all()
