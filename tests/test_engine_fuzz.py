"""Random small networks of all kinds of nodes: plans, also those of a GPU with the CPU in its place, against the interpreter."""

from __future__ import annotations

import random

import fuzz
import pytest
import torch
from op_checks import needs_native

from mvit_kernels.engine import lower_floats, lower_integers, plan
from mvit_kernels.engine.device_plan import DevicePlan
from mvit_kernels.engine.lower_integers import lower
from mvit_kernels.engine.plan import Plan, assemble
from mvit_kernels.graph import Node, Program, optimize, run
from mvit_kernels.quant import QuantConfig
from mvit_kernels.quant.calibrate import ranges
from mvit_kernels.quant.layout import Layout
from mvit_kernels.quant.program import integer_program
from mvit_kernels.quant.representation import representations
from mvit_kernels.reference import ACTIVATIONS

pytestmark = needs_native
Tensor = torch.Tensor
_PINNED = {"input", "cat", "constant", "pixel", "repeat", "dynamic_relu", "hard_gate"}  # of floats, and yet the same bits everywhere
_CHANNELS = (1, 2, 3, 5, 8, 16, 24, 31, 32, 33, 48, 64)


class Draw:
    """A program of some random nodes; maps are even where attention wants patches."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        size = (self.draw.choice((1, 2, 3, 4, 8, 17)), self.draw.randint(1, 14), self.draw.randint(1, 14))
        self.nodes = [Node("input", "input", (), size)]
        for _ in range(self.draw.randint(1, 9)):
            self.draw.choice((self.conv, self.conv, self.depthwise, self.inverted, self.activation, self.add, self.cat, self.norm,
                              self.resize, self.attention, self.separable, self.layer, self.mixer, self.talking, self.steered,
                              self.multiplied, self.tokens))()  # fmt: skip
        if self.draw.random() < 0.6:
            self.head()
        results = {self.nodes[-1].name, *(node.name for node in self.draw.sample(self.nodes[1:], k=min(1, len(self.nodes) - 1)))}
        self.program = Program(self.nodes, sorted(results), torch.utils._pytree.tree_structure([0] * len(results)))

    def put(
        self, kind: str, inputs: tuple[Node, ...], size: tuple[int, ...], settings: dict | None = None, weights: dict | None = None
    ) -> Node:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(Node(name, kind, tuple(node.name for node in inputs), size, settings or {}, weights or {}))
        return self.nodes[-1]

    def map(self) -> Node:
        return self.draw.choice([node for node in self.nodes if len(node.size) == 3][-4:])

    def weighted(self, x: Node, columns: int, kernel: int, stride: int = 1) -> Node:
        channels, height, width = x.size
        weights = {"weight": torch.randn(columns, channels, kernel, kernel) / (channels * kernel**2) ** 0.5}
        if self.draw.random() < 0.7:
            weights["bias"] = torch.randn(columns)
        size = (columns, (height - 1) // stride + 1, (width - 1) // stride + 1)
        return self.put("conv2d", (x,), size, {"stride": stride}, weights)

    def conv(self) -> None:
        kernel, stride = self.draw.choice((1, 1, 3)), self.draw.choice((1, 1, 1, 2))
        self.weighted(self.map(), self.draw.choice(_CHANNELS), kernel, stride)

    def depthwise(self, x: Node | None = None) -> None:
        x, stride = x or self.map(), self.draw.choice((1, 2))
        channels, height, width = x.size
        size = (channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        weights = {"weight": torch.randn(channels, 1, 3, 3) / 3, "bias": torch.randn(channels)}
        self.put("depthwise_conv2d", (x,), size, {"stride": stride}, weights)

    def inverted(self) -> None:
        """An inverted residual."""
        x = self.map()
        y = self.weighted(x, self.draw.choice(_CHANNELS), 1)
        if self.draw.random() < 0.8:
            y = self.put("activation", (y,), y.size, {"function": "silu"})
        self.depthwise(y)
        y = self.nodes[-1]
        if self.draw.random() < 0.8:
            y = self.put("activation", (y,), y.size, {"function": "silu"})
        y = self.weighted(y, x.size[0], 1)
        if y.size == x.size and self.draw.random() < 0.8:
            self.put("add", (y, x), x.size)

    def activation(self) -> None:
        x = self.map()
        self.put("activation", (x,), x.size, {"function": self.draw.choice(ACTIVATIONS[1:])})

    def add(self) -> None:
        x = self.map()
        self.put("add", (x, self.weighted(x, x.size[0], self.draw.choice((1, 3)))), x.size)

    def cat(self) -> None:
        x = self.map()
        y = self.weighted(x, self.draw.choice(_CHANNELS), 1)
        self.put("cat", (x, y), (x.size[0] + y.size[0], *x.size[1:]))

    def norm(self) -> None:
        x = self.map()
        weights = {"weight": torch.rand(x.size[0]) + 0.5, "bias": torch.randn(x.size[0])} if self.draw.random() < 0.7 else {}
        self.put(self.draw.choice(("group_norm", "layer_norm")), (x,), x.size, {"eps": 1e-5}, weights)

    def resize(self, height: int | None = None, width: int | None = None) -> None:
        x = self.map()
        size = (x.size[0], height or self.draw.randint(1, 12), width or self.draw.randint(1, 12))
        self.put("resize", (x,), size, {"align_corners": self.draw.random() < 0.5})

    def even(self, x: Node) -> Node:
        if x.size[1] % 2 or x.size[2] % 2:
            x = self.put("resize", (x,), (x.size[0], x.size[1] + x.size[1] % 2, x.size[2] + x.size[2] % 2), {"align_corners": False})
        return x

    def attention(self) -> None:
        x, heads = self.even(self.map()), self.draw.choice((1, 2, 4))
        dim = heads * self.draw.choice((1, 4, 5, 8))
        qkv = self.weighted(x, 3 * dim, 1)
        self.put("patch_attention", (qkv,), (dim, *x.size[1:]), {"heads": heads, "patch": (2, 2), "scale": (dim // heads) ** -0.5})

    def separable(self) -> None:
        x, dim = self.even(self.map()), self.draw.choice((4, 16, 21, 32))
        self.put("separable_attention", (self.weighted(x, 1 + 2 * dim, 1),), (dim, *x.size[1:]), {"patch": (2, 2)})

    def layer(self) -> None:
        """A layer of MobileViTv2."""
        x = self.even(self.map())
        dim = x.size[0]
        weights = {"weight": torch.rand(dim) + 0.5, "bias": torch.randn(dim)}
        qkv = self.weighted(self.put("group_norm", (x,), x.size, {"eps": 1e-5}, weights), 1 + 2 * dim, 1)
        y = self.put("separable_attention", (qkv,), x.size, {"patch": (2, 2)})
        x = self.put("add", (self.weighted(y, dim, 1), x), x.size)
        hidden = self.weighted(self.put("group_norm", (x,), x.size, {"eps": 1e-5}, weights), 2 * dim, 1)
        hidden = self.put("activation", (hidden,), hidden.size, {"function": "silu"})
        self.put("add", (self.weighted(hidden, dim, 1), x), x.size)

    def mixer(self) -> None:
        """The pooling block of EfficientFormer."""
        x = self.map()
        y = self.put("pool_mixer", (x,), x.size, {}, {"scale": torch.rand(x.size[0])})
        if self.draw.random() < 0.5:
            hidden = self.weighted(y, 2 * x.size[0], 1)
            hidden = self.put("activation", (hidden,), hidden.size, {"function": "gelu"})
            self.put("add", (self.weighted(hidden, x.size[0], 1), y), x.size)

    def talking(self) -> None:
        """Attention of EfficientFormerV2, from a map or half of it, with what its parts leave out."""
        x, heads, stride = self.map(), self.draw.choice((1, 2, 3, 8)), self.draw.choice((1, 1, 2))
        depth, wide = self.draw.choice((1, 4, 5, 16)), self.draw.choice((1, 3, 16, 20))
        self.depthwise(x)
        q = self.weighted(self.nodes[-1] if stride == 2 else x, heads * depth, 1)
        k, v = self.weighted(x, heads * depth, 1), self.weighted(x, heads * wide, 1)
        queries, keys = q.size[1] * q.size[2], x.size[1] * x.size[2]
        weights = {
            "bias": torch.randn(heads, queries, keys), "mix_scores": torch.randn(heads, heads), "mix_weights": torch.randn(heads, heads),
            "mix_bias": torch.randn(heads),
        }  # fmt: skip
        weights = {name: weight for name, weight in weights.items() if self.draw.random() < 0.6}
        settings = {"heads": heads, "scale": depth**-0.5, "depth": depth, "keys": keys}
        y = self.put("attention", (q, k, v), (v.size[0], *q.size[1:]), settings, weights)
        if q.size[1:] == v.size[1:] and self.draw.random() < 0.5:
            y = self.put("add", (y, v), y.size)
            self.put("activation", (y,), y.size, {"function": self.draw.choice(("gelu", "relu"))})

    def steered(self, x: Node | None = None) -> None:
        """Dynamic ReLUs of a map, or in an inverted residual of it, by what all of its pixels say."""
        x = x or self.map()
        by = self.put("avg_pool", (x,), (x.size[0],))
        whole = self.draw.random() < 0.5
        y = self.weighted(x, self.draw.choice(_CHANNELS), 1) if self.draw.random() < 0.8 else x
        y = self.slope(y, by)
        if whole:
            self.depthwise(y)
            y = self.weighted(self.slope(self.nodes[-1], by), x.size[0], 1)
            if y.size == x.size and self.draw.random() < 0.8:
                self.put("add", (y, x), x.size)

    def slope(self, x: Node, by: Node) -> Node:
        u = self.linear(by, 2 * x.size[0])
        return self.put("dynamic_relu", (x, u), x.size)

    def linear(self, x: Node, columns: int) -> Node:
        weights = {"weight": torch.randn(columns, x.size[0]) / x.size[0] ** 0.5, "bias": torch.randn(columns)}
        return self.put("linear", (x,), (columns,), {}, weights)

    def multiplied(self) -> None:
        """Several filters for each channel."""
        x, times = self.map(), self.draw.choice((2, 3, 4))
        self.depthwise(self.put("repeat", (x,), (times * x.size[0], *x.size[1:]), {"times": times}))
        if self.draw.random() < 0.5:
            self.activation()

    def tokens(self) -> None:
        """Of Mobile-Former: they look at a map, and the map at them."""
        x, dim, count, heads = self.map(), self.draw.choice((3, 16, 40)), self.draw.randint(1, 5), self.draw.choice((1, 2))
        if x.size[0] % heads:
            heads = 1
        z = self.put("constant", (), (dim, 1, count), {}, {"value": torch.randn(dim, 1, count)})
        depth, channels = x.size[0] // heads, x.size[0]
        settings = {"heads": heads, "scale": depth**-0.5, "depth": depth}
        q, u = self.weighted(z, channels, 1), self.weighted(z, channels, 1)
        seen = self.put("attention", (q, x, x), q.size, settings | {"keys": x.size[1] * x.size[2]})
        told = self.weighted(self.put("hard_gate", (seen, u), seen.size), dim, 1)
        weights = {"weight": torch.rand(dim) + 0.5, "bias": torch.randn(dim)}
        z = self.put("layer_norm", (self.put("add", (told, z), z.size),), z.size, {"eps": 1e-5}, weights)
        k, v = self.weighted(z, channels, 1), self.weighted(z, channels, 1)
        y = self.put("attention", (x, k, v), x.size, settings | {"keys": count})
        y = self.put("add", (y, x), x.size)
        by = self.put("pixel", (z,), (dim,), {"index": self.draw.randrange(count)})
        if self.draw.random() < 0.5:
            self.put("dynamic_relu", (y, self.linear(by, 2 * channels)), y.size)

    def head(self) -> None:
        x = self.map()
        pooled = self.put("avg_pool", (x,), (x.size[0],))
        weights = {"weight": torch.randn(5, x.size[0]), "bias": torch.randn(5)}
        self.put("linear", (pooled,), (5,), {}, weights)


def results(plan: Plan, x: Tensor) -> list[Tensor]:
    """Of one thread, which may take both images at once, and of two the same."""
    outputs = plan.run(x, 1)
    assert all(torch.equal(a, b) for a, b in zip(outputs, plan.run(x, 2), strict=True))
    return outputs


def assert_floats(program: Program, x: Tensor) -> None:
    right = run(program, x.double())
    rewritten = optimize(program)
    outputs = results(assemble(lower(rewritten)), x)
    results(assemble(lower(rewritten, torch.bfloat16)), x.bfloat16())
    theirs, on_device = run(program, x), optimize(program, device=True)
    calls = DevicePlan(on_device, torch.float32, torch.device("cpu")).run(x)
    for y, called, exact, plain in zip(outputs, calls, right, theirs, strict=True):
        bound = 4 * (plain - exact).abs().max() + 2e-5 * exact.abs().max() + 1e-6
        assert (y - exact).abs().max() <= bound, str(rewritten)
        assert (called - exact).abs().max() <= bound, str(on_device)


def assert_integers(program: Program, x: Tensor, bits: int) -> None:
    rewritten, config = optimize(program), QuantConfig(method="minmax", weight_bits=bits, activation_bits=bits)
    layout = Layout(rewritten, config)
    found = representations(layout, ranges(rewritten, [x], False), config) if layout.needed() else {}
    integers = integer_program(rewritten, found, config)
    right = run(integers, x, backend="reference")
    outputs = results(assemble(lower(integers)), x)
    floats = {node.kind for node in rewritten} - _PINNED
    exact = not any(node.kind in floats for node in integers)
    calls = DevicePlan(integers, torch.float32, torch.device("cpu")).run(x)
    for y, expected in zip((*outputs, *calls), (*right, *right), strict=True):
        if exact:
            assert torch.equal(y, expected), str(integers)
        elif expected.abs().max() > 0:  # floats between: a rounding there is a step of a byte elsewhere
            assert (y - expected).abs().mean() <= 0.05 * expected.abs().max(), str(integers)


def check(seed: int) -> None:
    program = Draw(seed).program
    x = torch.randn(2, *program["input"].size)
    with pytest.MonkeyPatch.context() as patch:
        if seed % 2:  # what pays for large maps and weights alone, but is as good to see on small ones whether it is right
            patch.setattr(lower_integers, "_WORTH_BANDS", 1)
            patch.setattr(lower_floats, "_LARGE_MAP", 1)
        if seed % 5 == 0:
            patch.setattr(lower_floats, "_LARGE_WEIGHTS", 1)
        if seed % 3:  # of one thread, both images at once
            patch.setattr(plan, "_first_together", lambda steps: seed % (len(steps) + 1))
        assert_floats(program, x)
        assert_integers(program, x, 8 if seed % 3 else 6)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_some(start: int) -> None:
    fuzz.run(check, start, 20)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("start", range(100, 500, 50))
def test_many(start: int, isa: str) -> None:
    fuzz.run(check, start, 50)


@pytest.mark.slow
@fuzz.wanted
def test_as_many_as_wanted() -> None:
    fuzz.run(check, 1000)
