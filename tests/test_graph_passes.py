"""Every rewrite is exact: in float64 its program differs from the one before by roundings only."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_graph_capture import random_statistics
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import Node, Program, capture, optimize, run
from mvit_kernels.graph.passes import (
    cancel_constants,
    drop_unused,
    elide_keys,
    fold_affine,
    fold_constants,
    fold_norm,
    fuse_dynamic,
    fuse_epilogues,
    merge_convolutions,
    pool_first,
    share_equal,
    split_cat,
)


def double(program: Program) -> Program:
    """With float64 weights, so that what passes compute is not rounded."""
    nodes = [replace(node, weights={name: value.double() for name, value in node.weights.items()}) for node in program]
    return Program(nodes, program.outputs, program.structure)


def captured(model: nn.Module, size: tuple[int, int, int]) -> Program:
    return double(capture(random_statistics(model), size))


@functools.cache
def network(name: str) -> Program:
    """Of one of our models, with random biases: those of attention are 0 otherwise."""
    torch.manual_seed(0)
    model = mk.create_model(name, num_classes=7)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.uniform_(parameter, -1, 1)
    return captured(model, (3, 64, 64))


def assert_exact(before: Program, after: Program) -> None:
    x = torch.randn(2, *before["input"].size, dtype=torch.float64)
    expected, actual = run(before, x), run(after, x)
    for y, exact in zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True):
        assert (y - exact).abs().max() <= 1e-10 * exact.abs().max()


def kinds(program: Program) -> Counter[str]:
    return Counter(node.kind for node in program)


def conv(channels: int, out: int, kernel: int = 1, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **settings)


def test_batch_norms_go_into_convolutions():
    model = nn.Sequential(conv(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    before = captured(model, (3, 9, 8))
    after = fold_affine(before)
    assert kinds(before)["affine"] == 2
    assert kinds(after)["affine"] == 0
    assert_exact(before, after)


class TwoUsers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.second = conv(3, 6), nn.BatchNorm2d(6), conv(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return self.norm(y), self.second(y)


def test_what_others_need_stays():
    """Neither folded nor merged: the result of the first convolution has two users."""
    before = captured(TwoUsers(), (3, 8, 8))
    for rewrite in (fold_affine, merge_convolutions):
        assert str(rewrite(before)) == str(before)


def test_a_result_of_the_program_stays():
    before = captured(nn.Sequential(conv(16, 4), conv(4, 16)), (16, 8, 8))
    first = next(node.name for node in before if node.kind == "conv2d")
    both = Program(before, (first, *before.outputs))
    assert len(merge_convolutions(both)) == len(both)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_norms_go_into_the_convolutions_behind_them(name):
    before = network(name)
    after = fold_norm(before)
    norms = [node for node in after if node.kind in ("group_norm", "layer_norm")]
    assert norms
    assert not any(node.weights for node in norms)
    assert_exact(before, after)


class ResizedNorm(nn.Module):
    """As MobileViT has it around maps that its patches do not divide."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(8), conv(8, 5)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.conv(nn.functional.interpolate(x, size=(7, 9), mode="bilinear", align_corners=False))


def test_norms_fold_through_a_resize():
    before = captured(ResizedNorm(), (8, 6, 8))
    after = fold_norm(before)
    assert [node.kind for node in after] == ["input", "layer_norm", "resize", "conv2d"]
    assert not after["norm"].weights
    assert_exact(before, after)


def test_convolutions_in_a_row_merge_where_that_costs_less():
    for channels, merged in (((4, 32, 4), 1), ((32, 4, 32), 2), ((8, 8, 8), 1)):
        a, b, c = channels
        before = captured(nn.Sequential(conv(a, b), conv(b, c)), (a, 8, 8))
        after = merge_convolutions(before)
        assert kinds(after)["conv2d"] == merged
        assert after.macs() <= before.macs()
        assert_exact(before, after)


def test_three_in_a_row_and_what_does_not_merge():
    before = captured(nn.Sequential(conv(4, 16), conv(16, 16), conv(16, 4)), (4, 8, 8))
    after = merge_convolutions(before)
    assert kinds(after)["conv2d"] == 1
    assert_exact(before, after)
    for other in (nn.ReLU(), conv(16, 16, 3), conv(16, 16, 1, stride=2)):
        before = captured(nn.Sequential(conv(4, 16), other, conv(16, 4)), (4, 8, 8))
        assert kinds(merge_convolutions(before)) == kinds(before)


def test_pooling_before_the_last_projection():
    model = nn.Sequential(conv(4, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    before = captured(model, (4, 8, 8))
    after = pool_first(before)
    assert [node.kind for node in after] == ["input", "avg_pool", "linear", "linear"]
    assert_exact(before, after)
    merged = merge_convolutions(after)
    assert [node.kind for node in merged] == ["input", "avg_pool", "linear"]
    assert_exact(before, merged)


def test_pooling_of_what_has_other_users_stays():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 6)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.conv(x)
            return y, y.mean((2, 3))

    before = captured(Pooled(), (4, 8, 8))
    assert str(pool_first(before)) == str(before)


def test_keys_need_not_exist():
    before = network("mobilevitv2_050")
    after = elide_keys(before)
    assert kinds(after)["separable_attention"] == 0
    assert kinds(after)["separable_gate"] == kinds(after)["separable_context"] == 9
    assert_exact(before, after)


def test_biases_that_softmax_takes_away():
    before = network("mobilevit_xxs")
    after = cancel_constants(before)
    biases = [node.weights["bias"] for node in after if node.name.endswith("qkv")]
    assert len(biases) == 9
    for b in biases:
        assert not b[b.shape[0] // 3 :].any()
        assert b.any()
    assert_exact(before, after)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_all_passes(name):
    before = network(name)
    text = str(before)
    after = optimize(before)
    assert str(before) == text
    assert after.macs() <= before.macs()
    assert_exact(before, after)


def test_what_passes_save():
    """Merging takes 233 million of MobileViTv2-1.0's multiply-adds (8 of them by pooling first), keys that do not exist 82 million."""
    before = capture(mk.create_model("mobilevitv2_100").eval(), (3, 256, 256))
    merged = merge_convolutions(pool_first(before))
    assert round((before.macs() - merged.macs()) / 1e6) == 233
    assert round((merged.macs() - optimize(before).macs()) / 1e6) == 82


def test_programs_refuse_what_makes_no_sense():
    image = Node("input", "input", (), (3, 8, 8))
    with pytest.raises(ValueError, match=r"node y: expected one of the kinds .*, got 'sum'"):
        Program([image, Node("y", "sum", ("input",), (3, 8, 8))], ["y"])
    with pytest.raises(ValueError, match=r"node y: expected names of earlier nodes .*, got 'z'"):
        Program([image, Node("y", "add", ("input", "z"), (3, 8, 8))], ["y"])
    with pytest.raises(ValueError, match=r"node input: expected .* got its name a second time"):
        Program([image, image], ["input"])
    with pytest.raises(ValueError, match="outputs: expected names of nodes, got 'y'"):
        Program([image], ["y"])


class Residual(nn.Module):
    """A sum of a convolution and something before it, and one of a convolution and something after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(4, 4, 3), conv(4, 4), conv(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.a(x))
        x = x + self.b(x)
        y = self.c(x)
        return y + nn.functional.relu(x)


def test_epilogues_go_into_products():
    before = captured(Residual(), (4, 8, 8))
    after = fuse_epilogues(before)
    assert kinds(after) == {"input": 1, "conv2d": 3, "activation": 1, "add": 1}
    assert [node.settings.get("activation") for node in after if node.kind == "conv2d"] == ["silu", None, None]
    assert [node.settings.get("residual") for node in after if node.kind == "conv2d"] == [None, True, None]
    assert_exact(before, after)


def test_a_relu6_behind_a_sum_stays():
    """Sums of bytes have none."""

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu6(x + nn.functional.silu(x))

    before = captured(Sum(), (4, 8, 8))
    assert kinds(fuse_epilogues(before)) == {"input": 1, "add": 1, "activation": 2}
    assert_exact(before, fuse_epilogues(before))


def test_an_activation_behind_a_residual_stays():
    """Kernels add the residual last."""
    model = nn.Sequential(conv(4, 4, 3), nn.ReLU(), conv(4, 4, 3), nn.SiLU())
    before = captured(model, (4, 8, 8))
    nodes = list(before)
    y = next(node for node in nodes if node.inputs == (nodes[2].name,))
    added = Node("sum", "add", (y.name, nodes[2].name), y.size)
    tail = replace(nodes[-1], inputs=("sum",))
    both = Program([*nodes[:-1], added, tail], before.outputs)
    assert kinds(fuse_epilogues(both)) == {"input": 1, "conv2d": 2, "activation": 1}
    assert_exact(both, fuse_epilogues(both))


def test_a_concatenation_need_not_exist():
    before = network("mobilevit_xxs")
    after = split_cat(before)
    assert kinds(before)["cat"] == 3
    assert kinds(after)["cat"] == 0
    assert_exact(before, after)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_passes_find_nothing_in_what_they_made(name):
    once = optimize(network(name))
    assert str(optimize(once)) == str(once)


def test_what_nobody_needs_goes():
    before = captured(Residual(), (4, 8, 8))
    first = next(node.name for node in before if node.kind == "conv2d")
    after = drop_unused(Program(before, (first,)))
    assert [node.name for node in after] == ["input", first]
    assert str(drop_unused(before)) == str(before)


def test_constants_are_computed_once():
    """Queries of tokens that are the same for every image are a constant too."""
    value, weight = torch.randn(5, 1, 3, dtype=torch.float64), torch.randn(7, 5, 1, 1, dtype=torch.float64)
    nodes = [
        Node("input", "input", (), (7, 4, 2)),
        Node("tokens", "constant", (), (5, 1, 3), {}, {"value": value}),
        Node("query", "conv2d", ("tokens",), (7, 1, 3), {"stride": 1}, {"weight": weight}),
        Node("first", "pixel", ("query",), (7,), {"index": 0}),
        Node("seen", "attention", ("query", "input", "input"), (7, 1, 3), {"heads": 1, "scale": 0.4, "depth": 7, "keys": 8}),
    ]
    before = Program(nodes, ["seen", "first"], torch.utils._pytree.tree_structure([0, 0]))
    after = fold_constants(before)
    assert kinds(after) == Counter(input=1, constant=3, attention=1)
    assert_exact(before, after)
    assert "tokens" not in drop_unused(after)


def test_dynamic_relus_go_into_products():
    """Where their slopes are known: behind whatever makes these."""
    draw = functools.partial(torch.randn, dtype=torch.float64)

    def conv_of(name: str, x: str, out: int) -> Node:
        return Node(name, "conv2d", (x,), (out, 4, 2), {"stride": 1}, {"weight": draw(out, 6, 1, 1), "bias": draw(out)})

    nodes = [
        Node("input", "input", (), (6, 4, 2)),
        conv_of("a", "input", 6),
        conv_of("b", "input", 6),
        Node("pool", "avg_pool", ("input",), (6,)),
        Node("u", "linear", ("pool",), (12,), {}, {"weight": draw(12, 6), "bias": draw(12)}),
        Node("steered", "dynamic_relu", ("a", "u"), (6, 4, 2)),
        Node("filtered", "depthwise_conv2d", ("steered",), (6, 4, 2), {"stride": 1}, {"weight": draw(6, 1, 3, 3)}),
        Node("again", "dynamic_relu", ("filtered", "u"), (6, 4, 2)),
        Node("kept", "dynamic_relu", ("b", "u"), (6, 4, 2)),
    ]
    before = Program(nodes, ["again", "kept", "b"], torch.utils._pytree.tree_structure([0] * 3))
    after = fuse_dynamic(before)
    assert kinds(after)["dynamic_relu"] == 1  # somebody else takes what it is of
    assert after["a"].inputs == ("input", "u")
    assert after["filtered"].inputs == ("a", "u")
    assert_exact(before, after)
    assert fuse_dynamic(after) is after


class Twice(nn.Module):
    """The mean of all pixels four times, two of them as results, and maps that nothing was done to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.heads = nn.Conv2d(3, 4, 1), nn.ModuleList(nn.Linear(4, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.conv(x).relu()
        one, other = (head(y.mean((2, 3))) for head in self.heads)
        return y.mean((2, 3)), y.mean((2, 3)), one, other, y, y * 6 / 6


def test_what_is_computed_twice() -> None:
    """Once, but results of the network do not share memory."""
    before = captured(Twice(), (3, 4, 5))
    after = fold_affine(share_equal(before))
    assert (kinds(before)["avg_pool"], kinds(after)["avg_pool"]) == (4, 2)
    assert len(set(after.outputs)) == len(after.outputs)
    assert_exact(before, after)
