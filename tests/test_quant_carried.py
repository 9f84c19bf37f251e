"""Models that bring quantizers: PT2E's, fake quantization, ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization.fx._decomposed
import torch.nn.functional as F
from op_checks import needs_native
from test_graph_capture import random_statistics
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import Program, capture, optimize, run
from mvit_kernels.quant import carried, carries_quantizers

Tensor = torch.Tensor
SIZE = (3, 20, 24)
decomposed = torch.ops.quantized_decomposed


def pair(x: Tensor, scale: float, zero: int) -> Tensor:
    q = decomposed.quantize_per_tensor(x, scale, zero, 0, 255, torch.uint8)
    return decomposed.dequantize_per_tensor(q, scale, zero, 0, 255, torch.uint8)


def signed_pair(x: Tensor, scale: float, zero: int) -> Tensor:
    q = decomposed.quantize_per_tensor(x, scale, zero - 128, -128, 127, torch.int8)
    return decomposed.dequantize_per_tensor(q, scale, zero - 128, -128, 127, torch.int8)


def ours(x: Tensor, scale: float, zero: int) -> Tensor:
    return mk.ops.dequantize(mk.ops.quantize(x, scale, zero), scale, zero)


QUANTIZERS = (pair, signed_pair, ours)


def fake(weight: Tensor, scale: Tensor, zero: int = 0, low: int = -127) -> Tensor:
    """Of weights, with one scale for each row."""
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.full(scale.shape, zero, dtype=torch.int32), 0, low, 127)


class Quantized(nn.Module):
    """A stem, an inverted residual with a sum, a pool and a head; every result and every weight between them quantized."""

    def __init__(self, quantizer: Callable[[Tensor, float, int], Tensor] = pair, channels: int = 8) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.depthwise = nn.Conv2d(4 * channels, 4 * channels, 3, 1, 1, groups=4 * channels)
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.head = nn.Linear(channels, 7)
        self.scales = {name: (0.02, 100) for name in ("input", "stem", "expand", "depthwise", "reduce", "sum", "pool")}

    def q(self, x: Tensor, name: str) -> Tensor:
        return self.quantizer(x, *self.scales[name]) if name in self.scales else x

    def weight(self, layer: nn.Module) -> Tensor:
        return fake(layer.weight, layer.weight.detach().abs().flatten(1).amax(1) / 127)

    def conv(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        return F.conv2d(x, self.weight(layer), layer.bias, layer.stride, layer.padding, 1, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.q(F.silu(self.conv(self.q(x, "input"), self.stem)), "stem")
        y = self.q(F.relu(self.conv(x, self.expand)), "expand")
        y = self.q(F.silu(self.conv(y, self.depthwise)), "depthwise")
        y = self.q(self.conv(y, self.reduce), "reduce")
        y = self.q(x + y, "sum")
        y = self.q(y.mean((2, 3)), "pool")
        return F.linear(y, self.weight(self.head), self.head.bias)


def programs(model: nn.Module, size: tuple[int, int, int] = SIZE) -> tuple[Program, Program]:
    program = optimize(capture(model, size))
    assert carries_quantizers(program)
    return program, carried(program)


def kinds(program: Program) -> Counter[str]:
    return Counter(node.kind for node in program)


def assert_close(actual: Tensor, expected: Tensor, steps: float = 3.0) -> None:
    """Roundings that went to the other integer, a few, of steps of 0.02."""
    assert (actual - expected).abs().max() <= steps * 0.02
    assert (actual - expected).abs().mean() <= 0.1 * steps * 0.02


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_all_in_integers(quantizer):
    torch.manual_seed(0)
    model, x = Quantized(quantizer).eval(), torch.randn(3, *SIZE)
    program, integers = programs(model)
    with torch.no_grad():
        expected = model(x)
    assert (run(program, x) - expected).abs().max() <= 0.02  # one rounding at most
    assert_close(run(integers, x), expected)
    count = kinds(integers)
    assert count["qconv2d"] == 3
    assert count["qdepthwise_conv2d"] == count["qadd"] == count["qavg_pool"] == count["qlinear"] == 1
    assert count["quantize"] == 1
    assert not {"conv2d", "depthwise_conv2d", "add", "avg_pool", "linear", "fake_quantize", "torch", "dequantize"} & set(count)


@needs_native
@pytest.mark.parametrize("quantizer", [pair, ours])
def test_compiled(quantizer, isa):
    """The bits of the integer program, at any size and batch."""
    torch.manual_seed(0)
    model = Quantized(quantizer).eval()
    fast = mk.compile(model, torch.zeros(1, *SIZE))
    assert not fast.report().fallbacks
    for size in (SIZE, (3, 33, 18)):
        x = torch.randn(2, *size)
        assert torch.equal(fast(x), run(programs(model, size)[1], x))


MISSING = ["input", "stem", "expand", "depthwise", "reduce", "sum", "pool"]


@needs_native
@pytest.mark.parametrize("name", MISSING)
def test_a_quantizer_is_missing(name):
    """What is around it stays floats, and nothing is rounded that the model does not round."""
    torch.manual_seed(0)
    model, x = Quantized().eval(), torch.randn(2, *SIZE)
    del model.scales[name]
    _, integers = programs(model)
    with torch.no_grad():
        expected = model(x)
    assert_close(run(integers, x), expected)
    assert sum(kind.startswith("q") and kind != "quantize" for kind in kinds(integers)) >= 2
    torch.testing.assert_close(mk.compile(model, x)(x), run(integers, x), atol=0.02, rtol=0)


@needs_native
@pytest.mark.parametrize("name", MISSING)
def test_a_single_quantizer(name):
    """Nothing runs in integers but the rounding itself."""
    torch.manual_seed(0)
    model, x = Quantized().eval(), torch.randn(2, *SIZE)
    model.scales = {name: (0.1, 30)}
    _, integers = programs(model)
    with torch.no_grad():
        expected = model(x)
    results = run(integers, x), mk.compile(model, x)(x)
    model.scales = {}
    with torch.no_grad():
        matters = (model(x) - expected).abs().max()
    for y in results:  # a bias in steps of its product is what differs
        assert (y - expected).abs().max() <= 0.2 * matters


class Shared(nn.Module):
    """What two quantizers of different scales take, a sum of them, and a result that is quantized last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.a(x))
        z = self.b(pair(y, 0.05, 0)) + pair(y, 0.3, 0)
        return pair(z, 0.5, 128), pair(pair(z, 0.25, 128), 0.5, 128)


@needs_native
def test_several_quantizers_of_one_result():
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, *SIZE)
    _, integers = programs(model)
    with torch.no_grad():
        expected = model(x)
    for ours_, right in zip(run(integers, x), expected, strict=True):
        assert ((ours_ - right).abs() > 1e-5).float().mean() <= 0.01  # another integer, seldom
        assert torch.equal((ours_ / 0.5).round() * 0.5, ours_)
    for fast, slow in zip(mk.compile(model, x)(x), run(integers, x), strict=True):
        assert (fast - slow).abs().max() <= 0.51


class Side(nn.Module):
    """Two maps side by side, into a convolution."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.scale = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 5, 3, 1, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([pair(self.a(x), 0.03, 90), pair(self.b(x), self.scale, 90)], 1)
        return F.conv2d(both, fake(self.c.weight, torch.full((5,), 0.005)), self.c.bias, 1, 1)


@pytest.mark.parametrize("scale", [0.03, 0.05])
def test_side_by_side(scale):
    """One convolution of bytes only if the scales are the same."""
    torch.manual_seed(0)
    model, x = Side(scale).eval(), torch.randn(2, *SIZE)
    _, integers = programs(model)
    with torch.no_grad():
        assert_close(run(integers, x), model(x), 0.1)
    assert kinds(integers)["qconv2d"] == (scale == 0.03)


def test_what_no_kernel_takes_stays_floats():
    """A range of seven bits, weights with a zero-point and weights that are no integers."""

    class Odd(Quantized):
        def weight(self, layer: nn.Module) -> Tensor:
            if layer is self.head:
                return fake(layer.weight, torch.full((7,), 0.003)) * 1.01
            if layer is self.expand:
                return fake(layer.weight, torch.full((32,), 0.003), 5)
            return super().weight(layer)

        def q(self, x: Tensor, name: str) -> Tensor:
            if name != "stem":
                return super().q(x, name)
            q = decomposed.quantize_per_tensor(x, 0.04, 50, 0, 127, torch.uint8)
            return decomposed.dequantize_per_tensor(q, 0.04, 50, 0, 127, torch.uint8)

    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(2, *SIZE)
    _, integers = programs(model)
    with torch.no_grad():
        assert_close(run(integers, x), model(x))
    count = kinds(integers)
    assert (count["linear"], count["conv2d"], count["torch"]) == (1, 1, 2)
    assert (count["qconv2d"], count["qdepthwise_conv2d"]) == (2, 1)


def test_weights_of_minus_128():
    class Low(Quantized):
        def weight(self, layer: nn.Module) -> Tensor:
            return fake(layer.weight, -layer.weight.detach().flatten(1).amin(1) / 128, 0, -128)

    torch.manual_seed(0)
    model, x = Low().eval(), torch.randn(2, *SIZE)
    with pytest.warns(UserWarning, match="got .* of -128, which become -127"):
        _, integers = programs(model)
    assert all(int(node.weights["weight"].min()) == -127 for node in integers if node.kind == "qconv2d")
    with torch.no_grad():
        assert_close(run(integers, x), model(x), 6.0)


def test_no_pass_crosses_a_quantizer():
    """Norms stay before quantized weights, linear maps are not merged over them, averages are not moved."""

    class Crossed(Quantized):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(self.q(x, "input"), self.stem))
            x = self.conv(self.conv(self.layer(x), self.expand), self.reduce)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model, x = random_statistics(Crossed()), torch.randn(2, *SIZE)
    program, integers = programs(model)
    count = kinds(program)
    assert (count["affine"], count["group_norm"], count["conv2d"], count["avg_pool"]) == (1, 1, 3, 1)
    assert kinds(integers)["qconv2d"] == 1
    with torch.no_grad():
        torch.testing.assert_close(run(integers, x), model(x), atol=1e-4, rtol=1e-4)


def pt2e(model: nn.Module, x: Tensor) -> nn.Module:
    """The flow of torchao, with the quantizer that Inductor's x86 backend has."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(x)
    return convert_pt2e(prepared)


def test_pt2e():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
            self.expand, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
            self.reduce, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.norm(self.stem(x)))
            x = x + self.reduce(F.relu(self.depthwise(F.silu(self.expand(x)))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model, x = random_statistics(Plain()), torch.randn(4, *SIZE)
    converted = pt2e(model, x)
    expected = converted(x)
    with pytest.warns(UserWarning, match="-128"):  # its observers give the least weights these
        _, integers = programs(converted)
    count = kinds(integers)
    assert (count["qconv2d"], count["qdepthwise_conv2d"], count["qlinear"]) == (3, 1, 1)
    assert not {"conv2d", "depthwise_conv2d", "linear", "torch"} & set(count)
    y = run(integers, x)
    assert (y - expected).abs().max() <= 0.1 * expected.abs().max()
    assert (y - expected).abs().mean() <= 0.02 * expected.abs().max()
    if mk.backends()["cpu"].usable:
        with pytest.warns(UserWarning, match="-128"):
            assert torch.equal(mk.compile(converted, x)(x), y)


def through_pt2e(model: nn.Module) -> tuple[Counter[str], Tensor, Tensor]:
    """The nodes of a network in integers, and how far each image's results of the program that rounds floats, and of it, are.

    From what torchao made, relative to its results. One float that another order of additions moves across a tie of a
    rounding moves an image's results by 0.01 to 0.04, as torch itself does with other convolutions. Not every image has one.
    """
    x = torch.randn(16, 3, 64, 96)
    converted = pt2e(random_statistics(model), x)
    with pytest.warns(UserWarning, match="-128"):
        program, integers = programs(converted, (3, 64, 96))
    expected = converted(x)
    rounded, integer = ((run(each, x) - expected).norm(dim=1) / expected.norm(dim=1) for each in (program, integers))
    return kinds(integers), rounded, integer


@pytest.mark.slow
def test_pt2e_of_a_network():
    """Layers are known in it, though their modules are gone."""
    count, rounded, integer = through_pt2e(mk.create_model("mobilevit_xxs", num_classes=7))
    assert count["torch"] == 0
    assert count["patch_attention"] == 9
    assert count["qconv2d"] + count["qdepthwise_conv2d"] >= 50
    assert rounded.min() <= 1e-5
    assert rounded.mean() <= 0.05
    assert integer.mean() <= 0.1


@pytest.mark.slow
def test_pt2e_with_quantizers_inside_of_attention():
    """Which torch runs; all around it is in integers."""
    timm = pytest.importorskip("timm")
    count, rounded, integer = through_pt2e(timm.create_model("mobilevitv2_050", num_classes=7))
    assert count["torch"] >= 9
    assert count["separable_attention"] == count["separable_context"] == 0
    assert count["qconv2d"] + count["qdepthwise_conv2d"] >= 50
    assert rounded.mean() <= 0.05
    assert integer.mean() <= 0.1


def test_tokens():
    """Linear maps of tokens are products of pixels, with the scales of their weights."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = pair(self.conv(x), 0.02, 128).flatten(2).transpose(1, 2)
            weight = fake(self.linear.weight, self.linear.weight.detach().abs().amax(1) / 127)
            return pair(F.linear(x, weight, self.linear.bias), 0.02, 128).mean(1)

    torch.manual_seed(0)
    model, x = Tokens().eval(), torch.randn(2, *SIZE)
    _, integers = programs(model)
    with torch.no_grad():
        assert_close(run(integers, x), model(x))
    assert kinds(integers)["qconv2d"] == 1


def test_constants_that_are_numbers():
    class Number(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("q", torch.tensor(7, dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(pair(x, 0.02, 128)) * decomposed.dequantize_per_tensor(self.q, 0.1, 0, -128, 127, torch.int8)

    model, x = Number().eval(), torch.randn(2, *SIZE)
    with torch.no_grad():
        assert_close(run(programs(model)[1], x), model(x))


def test_exported_in_training():
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    x = torch.randn(2, *SIZE)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    with pytest.raises(ValueError, match="expected a model in evaluation"):
        capture(torch.export.export(Drops().train(), (x,), dynamic_shapes=dynamic).module(), SIZE)
    capture(torch.export.export(Drops().eval(), (x,), dynamic_shapes=dynamic).module(), SIZE)


def test_refusals():
    model = Quantized().eval()
    with pytest.raises(ValueError, match="without quantizers of its own"):
        mk.quantize(model, [torch.randn(1, *SIZE)], progress=False)


@needs_native
def test_the_dtype_of_a_plan_is_refused():
    with pytest.raises(ValueError, match="dtype: expected None for a model with quantizers"):
        mk.compile(Quantized().eval(), torch.zeros(1, *SIZE), dtype=torch.bfloat16)
