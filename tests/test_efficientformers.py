"""Both EfficientFormers, ours and timm's: swapped, compiled and quantized, nothing left to torch."""

from __future__ import annotations

import copy
import functools
import gc
import weakref

import families
import pytest
import torch
from marks import slow
from op_checks import needs_native
from swap_checks import reason, replaced
from test_engine_compile import assert_compiled, assert_runs_or_is_simulated
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import capture, optimize
from mvit_kernels.quant.bridges import bridges
from mvit_kernels.quant.config import METHODS
from mvit_kernels.quant.layout import Layout

Tensor = torch.Tensor
SIDE = 64
OURS = ["efficientformer_l1", "efficientformerv2_s0"]
NAMES = [*OURS, "timm efficientformer_l1", "timm efficientformerv2_s0"]


@torch.no_grad()
def network(name: str, side: int = SIDE) -> nn.Module:
    """In evaluation, with statistics, position biases and layer scales that leave their mark."""
    torch.manual_seed(0)
    library, _, variant = name.rpartition(" ")
    if library:
        timm = pytest.importorskip("timm")
        sizes = {"img_size": side} if "v2" in variant else {}  # timm's V1 knows one size
        model = timm.create_model(variant, num_classes=7, **sizes)
    else:
        model = mk.create_model(variant, num_classes=7, image_size=side)
    families.mark(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def images(name: str, count: int = 2) -> Tensor:
    side = 224 if name == "timm efficientformer_l1" else SIDE
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*OURS, slow(NAMES[2]), NAMES[3]])
@torch.no_grad()
def test_swapped(name: str) -> None:
    model, x = network(name), images(name)
    swapped = mk.accelerate(copy.deepcopy(model))
    exact, plain, y = copy.deepcopy(model).double()(x.double()), model(x), swapped(x)
    assert all(reason(swapped, each) is None for each in replaced(swapped))
    assert (y - exact).norm() <= 2 * (plain - exact).norm() + 1e-6 * exact.norm()
    assert torch.equal(mk.restore(swapped)(x), plain)


@pytest.mark.parametrize("training", [slow(False), True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", OURS)
def test_gradients(name: str, training: bool) -> None:
    """In float64: those of every parameter are torch's, but for what softmax makes nothing."""
    model = network(name).double().train(training)
    x, found = images(name).double(), []
    for each in (copy.deepcopy(model), mk.accelerate(copy.deepcopy(model))):
        results = each(x)
        sum(y.square().sum() for y in (results if isinstance(results, tuple) else (results,))).backward()
        found.append({path: parameter.grad for path, parameter in each.named_parameters()})
    largest = max(grad.abs().max() for grad in found[0].values())
    for path, grad in found[0].items():
        assert (found[1][path] - grad).abs().max() <= 1e-10 * largest, path


@pytest.mark.parametrize("name", OURS)
def test_second_derivatives_of_one_image(name: str) -> None:
    model, x, found = network(name).double(), images(name, 1).double().requires_grad_(), []
    for each in (copy.deepcopy(model), mk.accelerate(copy.deepcopy(model))):
        (first,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert (found[1] - found[0]).abs().max() <= 1e-7 * found[0].abs().max()


@pytest.mark.parametrize("options", [{"conv": False}, {"attention": False}], ids=str)
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_options(name: str, options: dict[str, bool]) -> None:
    model, x = network(name), images(name)
    swapped = mk.accelerate(copy.deepcopy(model), **options)
    assert replaced(swapped)
    torch.testing.assert_close(swapped(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_modules_are_not_kept() -> None:
    """Those of an attention either, that runs by itself because its block stands back."""
    model = mk.accelerate(mk.create_model("efficientformerv2_s0").eval())
    assert isinstance(model, nn.Module)
    for module in model.modules():
        if type(module).__name__ in ("AttentionBlock", "Downsample"):
            for child in (module, *(each for each in module.children() if type(each).__name__ in ("ConvMlp", "ConvNorm"))):
                child.register_forward_hook(lambda *_: None)
    model(torch.randn(1, 3, 224, 224))
    kept = [weakref.ref(module) for module in model.modules()]
    del model, module, child
    gc.collect()
    assert not [each for each in kept if each() is not None]


@needs_native
@pytest.mark.parametrize("name", [*OURS, slow(NAMES[2]), slow(NAMES[3])])
def test_compiled(name: str) -> None:
    model, x = network(name), images(name)
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    assert_compiled(model, fast, x)


@functools.cache
def quantized(name: str, method: str = "minmax", bits: int = 8) -> mk.QuantizedModel:
    config = mk.QuantConfig(method=method, weight_bits=bits, activation_bits=bits)
    return mk.quantize(network(name), [images(name, 2)], config, progress=False)


@needs_native
@pytest.mark.parametrize("bits", [8, slow(6)])
@pytest.mark.parametrize("name", [*OURS, slow(NAMES[3])])
def test_integers_from_stem_to_head(name: str, bits: int, threads) -> None:
    """Equal bits in plain torch, on the kernels, and compiled, on any number of threads."""
    model, x = quantized(name, bits=bits), images(name, 3)
    fast, expected = mk.compile(model, x), model(x)
    report = fast.report()
    assert not report.fallbacks
    floats = {row.op for row in report.rows if row.kind == "float"}
    assert floats <= {"quantize_image", "dequantize", "to_stream"}  # and nothing that computes
    assert torch.equal(mk.convert(model)(x), expected)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.slow
def test_what_bytes_cost(name: str) -> None:
    x = images(name)
    with torch.no_grad():
        exact = network(name)(x)
    error = quantized(name)(x) - exact
    assert 10 * torch.log10(exact.square().sum() / error.square().sum()) >= 20


def test_bridges_are_found_without_names() -> None:
    """V1 has one way into its stack, where the map becomes tokens, and one out of it."""
    program = optimize(capture(network("efficientformer_l1"), (3, SIDE, SIDE)))
    found = bridges(Layout(program, mk.QuantConfig()))
    assert [bridge.kind for bridge in found] == ["entry", "exit"]
    assert found[0].nodes[:2] == ("stages.3.blocks.2.mlp.fc2", "stages.3.blocks.2.mlp.fc2.add.layer_norm")
    assert found[0].nodes[-1].startswith("stages.3.blocks.4.token_mixer.qkv")
    assert found[1].nodes[-1] == "head"


@pytest.mark.slow
def test_bridges_of_maps_that_look_at_themselves() -> None:
    """V2 has one in each of its last stages, where a map of that size is first looked at as a whole."""
    program = optimize(capture(network("efficientformerv2_s0"), (3, SIDE, SIDE)))
    first, second = bridges(Layout(program, mk.QuantConfig()))
    assert first.kind == second.kind == "through"
    mixer = "stages.2.blocks.4.token_mixer"
    assert first.nodes[:4] == tuple(f"{mixer}.{each}.conv" for each in ("stride_conv", "q", "k", "v"))
    assert f"{mixer}.v_local.conv" in first.nodes
    assert first.nodes[-1] == f"{mixer}.proj.conv"
    assert first.sources == ("stages.2.blocks.3.mlp.fc2.conv",)
    assert second.nodes[0] == "stages.3.downsample.attn.q.local"
    assert second.nodes[-1] == "stages.3.downsample.attn.proj.conv"
    assert set(second.sources) == {"stages.2.blocks.5.mlp.fc2.conv", "stages.3.downsample.conv.conv"}


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("method", [method for method in METHODS if method != "minmax"])
@pytest.mark.parametrize("name", OURS)
def test_every_method(name: str, method: str) -> None:
    assert_runs_or_is_simulated(network(name), quantized(name, method), images(name))


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("name", [name for name in mk.list_models() if name.startswith("efficientformer") and name not in OURS])
def test_every_variant(name: str) -> None:
    model, x = network(name), images(name)
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    assert_compiled(model, fast, x)
