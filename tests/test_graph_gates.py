"""Gates that networks write in torch's own ops are the nodes that they are; what only looks like one is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_native
from test_graph_capture import kinds
from test_graph_written import assert_the_same
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import capture, optimize, run

Tensor = torch.Tensor
C, H, W = 6, 5, 4
SIZE = (C, H, W)


class Gated(nn.Module):
    """Two 1x1 convolutions and a vector of a map, with weights large enough to reach both ends of a gate."""

    def __init__(self, gate: Callable[[Gated, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.last = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
        self.hyper, self.grouped = nn.Linear(C, 2 * C), nn.Conv2d(C, C, 1, groups=2)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -3, 3)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(self, self.one(x), self.other(x)))

    def vector(self, x: Tensor) -> Tensor:
        return self.hyper(x.mean((2, 3)))


def silu(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu_behind(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x.sigmoid() * x


def hard_swish(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * F.hardsigmoid(x)


def hard_swish_in_parts(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * (F.relu6(x + 3) * 1 / 6)


def hard_swish_divided_last(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * F.relu6(3.0 + x) / 6.0


def hard_swish_clipped(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6).div(6).mul_(x)


def gate(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * F.hardsigmoid(u)


def gate_of_copies(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * F.dropout(F.hardsigmoid(u).clone(), 0.5, m.training).contiguous().float()


def gate_of_tokens(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    """As Mobile-Former's: twice as much, of tokens."""
    x, u = (each.flatten(2).permute(2, 0, 1) for each in (x, u))
    y = x * ((F.hardtanh(u + 3, 0, 6) / 6) * 2.0)
    return y.permute(1, 2, 0).reshape(-1, *SIZE)


def dynamic(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a, b = F.hardsigmoid(m.vector(u))[..., None, None].chunk(2, dim=1)
    return torch.maximum(2 * a * x, (2 * b - 1) * x)


def dynamic_in_parts(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a = (F.relu6(m.vector(u) + 3) * 1 / 6).unsqueeze(2).unsqueeze(3)
    a1, a2 = torch.split(a, [C, C], dim=1)
    return torch.max(x * ((a2 - 0.5) * 2.0), x * ((a1 - 0.5) * 2.0 + 1.0))


def dynamic_of_shuffled(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    """Channels of a depthwise convolution, of which there is no other order, and a convolution in groups that takes them."""
    x = F.channel_shuffle(F.conv2d(x, m.one.weight[:, :1].repeat(1, 1, 3, 3), padding=1, groups=C), 3)
    return m.grouped(dynamic(m, x, u))


KNOWN = {
    silu: "silu",
    silu_behind: "silu",
    hard_swish: "hard_swish",
    hard_swish_in_parts: "hard_swish",
    hard_swish_divided_last: "hard_swish",
    hard_swish_clipped: "hard_swish",
    gate: "hard_gate",
    gate_of_copies: "hard_gate",
    gate_of_tokens: "hard_gate",
    dynamic: "dynamic_relu",
    dynamic_in_parts: "dynamic_relu",
    dynamic_of_shuffled: "dynamic_relu",
}


@pytest.mark.parametrize("gate", KNOWN, ids=lambda each: each.__name__)
def test_is_known(gate: Callable[[Gated, Tensor, Tensor], Tensor]) -> None:
    model = Gated(gate).eval()
    program = optimize(capture(model, SIZE))
    count = kinds(program)
    assert count["torch"] == count["affine"] == 0
    found = {node.kind for node in program} | {node.settings.get("activation") for node in program}
    assert KNOWN[gate] in found
    assert_the_same(model, program, SIZE)


@needs_native
@pytest.mark.parametrize("gate", [hard_swish_divided_last, gate_of_tokens, dynamic_of_shuffled], ids=lambda each: each.__name__)
def test_compiled(gate: Callable[[Gated, Tensor, Tensor], Tensor]) -> None:
    model, x = Gated(gate).eval(), torch.randn(2, *SIZE)
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    with torch.no_grad():
        expected = model(x)
        assert (fast(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- something else ---


def sigmoid_of_another(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * torch.sigmoid(u)


def shifted_by_two(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * F.relu6(x + 2) / 6


def clipped_elsewhere(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 5) / 6


def gate_with_a_term(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * (F.hardsigmoid(u) + 0.5)


def other_slopes(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a, b = F.hardsigmoid(m.vector(u))[..., None, None].chunk(2, dim=1)
    return torch.maximum(2 * a * x, (2 * b - 0.5) * x)


def slopes_the_other_way(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    """The first half where the second is known."""
    b, a = F.hardsigmoid(m.vector(u))[..., None, None].chunk(2, dim=1)
    return torch.maximum(2 * a * x, (2 * b - 1) * x)


def slopes_of_two_maps(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a, b = F.hardsigmoid(m.vector(u))[..., None, None].chunk(2, dim=1)
    return torch.maximum(2 * a * x, (2 * b - 1) * u)


def slopes_in_another_order(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    """Of shuffled channels, each half for itself."""
    halves = F.hardsigmoid(m.vector(u)).chunk(2, dim=1)
    a, b = (each.unflatten(1, (3, 2)).transpose(1, 2).reshape(-1, C, 1, 1) for each in halves)
    return torch.maximum(2 * a * x, (2 * b - 1) * x)


def slopes_of_pixels(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a = F.hardsigmoid(u)
    return torch.maximum(2 * a * x, (2 * a - 1) * x)


def gate_of_two_parts(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    a, _ = F.hardsigmoid(torch.cat([x, u], dim=1)).split([C, C], dim=1)
    return u * a


def gate_with_a_small_term(m: Gated, x: Tensor, u: Tensor) -> Tensor:
    return x * (F.hardsigmoid(u) * 1e-7 + 1e-7) * 1e7


OTHERS = (
    sigmoid_of_another, shifted_by_two, clipped_elsewhere, gate_with_a_term, other_slopes, slopes_the_other_way, slopes_of_two_maps,
    slopes_in_another_order, slopes_of_pixels, gate_of_two_parts, gate_with_a_small_term,
)  # fmt: skip


@pytest.mark.parametrize("gate", OTHERS, ids=lambda each: each.__name__)
def test_what_is_something_else(gate: Callable[[Gated, Tensor, Tensor], Tensor]) -> None:
    model = Gated(gate).eval()
    program = optimize(capture(model, SIZE))
    assert kinds(program)["torch"]
    assert not kinds(program)["dynamic_relu"]
    assert_the_same(model, program, SIZE)


class Both(Gated):
    """What lies on the way is a result, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = F.hardsigmoid(self.other(x))
        return self.one(x) * u, u


def test_gates_for_others() -> None:
    model = Both(gate).eval()
    program = capture(model, SIZE)
    assert kinds(program)["hard_gate"] == 1
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        for actual, expected in zip(run(program, x), model(x), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
