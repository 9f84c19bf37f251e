"""A compiled quantized network gives what the interpreter gives, bit for bit."""

from __future__ import annotations

import functools

import pytest
import torch
from families import small
from op_checks import needs_native
from test_graph_capture import Plain, random_statistics
from torch import nn
from torch.utils import _pytree as pytree

import mvit_kernels as mk
from mvit_kernels.engine.lower_integers import lower
from mvit_kernels.engine.plan import assemble
from mvit_kernels.graph import Node, Program, run

pytestmark = needs_native
Tensor = torch.Tensor


def quantized(model: nn.Module, size: tuple[int, int, int], **config: object) -> mk.QuantizedModel:
    batches = [torch.randn(2, *size)]
    return mk.quantize(model, batches, mk.QuantConfig(method="minmax", **config), progress=False)


@functools.cache
def network(name: str, bits: int) -> tuple[mk.QuantizedModel, mk.CompiledModel]:
    torch.manual_seed(0)
    model = quantized(random_statistics(small(name)), (3, 64, 64), weight_bits=bits, activation_bits=bits)
    return model, mk.compile(model, torch.zeros(1, 3, 64, 64))


def assert_the_same_bits(model: mk.QuantizedModel, fast: mk.CompiledModel, x: Tensor) -> None:
    for ours, right in zip(pytree.tree_leaves(fast(x)), pytree.tree_leaves(model(x)), strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_networks(name: str, bits: int, isa: str, poison, threads) -> None:
    model, fast = network(name, bits)
    x = torch.randn(3, 3, 64, 64)
    expected = model(x)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(fast(x), expected)
        assert torch.equal(torch.cat([fast(image[None]) for image in x]), expected)


@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_report(name: str) -> None:
    """Bytes from the stem to the head, weights of 6 bits in three quarters of the memory."""
    _, fast = network(name, 8)
    report = fast.report()
    assert report.boundaries == 0
    assert not report.fallbacks
    assert {row.kind for row in report.rows[1:]} == {"integer"}
    assert network(name, 6)[1].report().weight_bytes < 0.85 * report.weight_bytes


@functools.cache
def with_a_float_attention() -> mk.QuantizedModel:
    torch.manual_seed(0)
    return quantized(random_statistics(small("mobilevit_xxs")), (3, 64, 64), skip=("*.attention",))


def test_a_float_attention_between_integers(isa: str) -> None:
    """Integer steps are exact by their own inputs, the whole nearly."""
    model, x = with_a_float_attention(), torch.randn(2, 3, 64, 64)
    y, right = mk.compile(model, x)(x), model(x)
    assert 10 * torch.log10(right.square().sum() / (y - right).square().sum()) >= 40
    assert torch.equal(y.argmax(1), right.argmax(1))


def test_inverted_residuals_in_bands(monkeypatch, isa: str, threads) -> None:
    """As maps of 256 x 256 images have them; odd maps, several bands and threads."""
    from mvit_kernels.engine import lower_integers

    monkeypatch.setattr(lower_integers, "_WORTH_BANDS", 1)
    model, _ = network("mobilevitv2_050", 8)
    fast = mk.compile(model, torch.zeros(1, 3, 72, 104))
    assert "qinverted_residual" in {row.op for row in fast.report().rows}
    x = torch.randn(2, 3, 72, 104)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(torch.cat([fast(image[None]) for image in x]), model(x))


@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_other_sizes(name: str) -> None:
    model, fast = network(name, 8)
    assert_the_same_bits(model, fast, torch.randn(2, 3, 80, 56))
    assert_the_same_bits(model, fast, torch.randn(1, 3, 64, 64))


@pytest.mark.slow
def test_maps_that_patches_do_not_divide(isa: str, threads) -> None:
    """MobileViT v1 resizes those, a stream in float32: still the same bits everywhere, at enough sizes to meet halves of a step."""
    model, fast = network("mobilevit_xxs", 8)
    for count, (height, width) in enumerate(((40, 136), (40, 520), (72, 40), (136, 200))):
        threads(1 + count % 2)
        assert_the_same_bits(model, fast, torch.randn(2, 3, height, width))


def test_converted_models_and_files(tmp_path) -> None:
    model, fast = network("mobilevitv2_050", 6)
    x = torch.randn(2, 3, 64, 64)
    expected = fast(x)
    assert torch.equal(mk.compile(mk.convert(model), x)(x), expected)
    fast.save(tmp_path / "plan", sizes=[(64, 64)])
    assert torch.equal(mk.load(tmp_path / "plan")(x), expected)


def test_feature_pyramids() -> None:
    model = quantized(random_statistics(small("mobilevitv2_050", features_only=True)), (3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    assert_the_same_bits(model, mk.compile(model, x), x)


class Mixed(nn.Module):
    """Sums, concatenations, activations and resizes of bytes, a wide convolution, and a norm behind one of 3x3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 32, 3, 2, 1), nn.GroupNorm(1, 32)
        self.wide, self.depthwise = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, 2, 1, groups=32)
        self.fusion, self.last = nn.Conv2d(64, 16, 3, padding=1), nn.Conv2d(16, 9, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.silu(self.stem(x))
        y = nn.functional.gelu(self.wide(x)) + x
        small = nn.functional.relu(self.depthwise(y))
        back = nn.functional.interpolate(small, y.shape[2:], mode="bilinear", align_corners=True)
        both = torch.cat([back, y], 1)
        z = self.fusion(both)
        return self.last(nn.functional.relu(z)), torch.cat([self.norm(self.wide(y)), x], 1).mean((2, 3))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("size", [(2, 4, 32, 32), (1, 4, 19, 27)], ids=str)
def test_other_networks(size, bits: int, isa: str) -> None:
    model = quantized(Mixed().eval(), size[1:], weight_bits=bits)
    fast, x = mk.compile(model, torch.zeros(size)), torch.randn(size)
    (exact, after_norm), (right, right_after_norm) = fast(x), model(x)
    assert torch.equal(exact, right)
    # A norm of floats lies before the other one.
    assert 10 * torch.log10(right_after_norm.square().sum() / (after_norm - right_after_norm).square().sum()) >= 40
    assert not fast.report().fallbacks


def test_what_has_no_kernel_runs_through_torch() -> None:
    model = quantized(random_statistics(Plain()), (3, 32, 48))
    x = torch.randn(2, 3, 32, 48)
    fast = mk.compile(model, x)
    for ours, right in zip(pytree.tree_leaves(fast(x)), pytree.tree_leaves(model(x)), strict=True):
        assert (ours - right).abs().max() <= 0.02 * right.abs().max()
    assert fast.report().boundaries > 0


def test_skipped_layers() -> None:
    model = quantized(random_statistics(small("mobilevitv2_050")), (3, 64, 64), skip=("stages.2.*",))
    x = torch.randn(2, 3, 64, 64)
    fast = mk.compile(model, x)
    y, right = fast(x), model(x)
    assert 10 * torch.log10(right.square().sum() / (y - right).square().sum()) >= 40
    kinds = {row.kind for row in fast.report().rows if row.node.startswith("stages.2.") and row.macs}
    assert kinds == {"float"}


def test_what_is_no_number_enters_a_stream_as_in_plain_torch(isa: str) -> None:
    size, scale = (5, 3, 7), 0.01
    nodes = [
        Node("input", "input", (), size), Node("q", "quantize", ("input",), size, {"out": "int16", "scale": scale, "zero_point": 0}),
        Node("y", "dequantize", ("q",), size, {"source": "int16", "scale": scale}),
    ]  # fmt: skip
    program, x = Program(nodes, ["y"]), torch.randn(2, *size) * 300
    x[0, 1], x[1, 2, 0], x[1, 3, 1] = float("nan"), float("inf"), -float("inf")
    (y,) = assemble(lower(program)).run(x, 1)
    right = run(program, x)
    assert torch.equal(y, right)
    assert right[0, 1].unique().tolist() == [-32768 * torch.tensor(scale).item()]


def test_bad_input() -> None:
    model, _ = network("mobilevitv2_050", 8)
    with pytest.raises(ValueError, match=r"compile: dtype: expected None for a quantized model, got torch.bfloat16"):
        mk.compile(model, torch.zeros(1, 3, 64, 64), dtype=torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevitv2_100", "mobilevitv2_200", "mobilevit_s", "timm"])
def test_whole_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilevitv2_050", num_classes=7) if name == "timm" else mk.create_model(name)
    model = quantized(random_statistics(model), (3, 128, 128))
    x = torch.randn(2, 3, 128, 128)
    assert_the_same_bits(model, mk.compile(model, x), x)
