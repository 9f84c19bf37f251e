"""Mobile-Former: swapped, compiled and quantized, nothing left to torch."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from families import FAMILIES
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
NAMES = ["mobile_former_26m", "mobile_former_96m"]  # with groups and shuffles, and without


@torch.no_grad()
def network(name: str, **options: object) -> nn.Module:
    """In evaluation, with statistics, gates and slopes that leave their mark: linear layers begin with next to nothing."""
    torch.manual_seed(0)
    model = mk.create_model(name, num_classes=7, **options)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
            module.bias.normal_(std=0.2)
    return model.eval()


def images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_swapped(name: str, backend: str) -> None:
    model, x = network(name), images()
    swapped = mk.accelerate(copy.deepcopy(model), backend=backend)
    exact, plain, y = copy.deepcopy(model).double()(x.double()), model(x), swapped(x)
    assert all(reason(swapped, each) is None for each in replaced(swapped))
    assert (y - exact).norm() <= 2 * (plain - exact).norm() + 1e-6 * exact.norm()
    assert torch.equal(mk.restore(swapped)(x), plain)


@torch.no_grad()
def test_feature_pyramids() -> None:
    model = mk.create_model("mobile_former_26m", features_only=True).eval()
    x = images(side=40)
    expected, found = model(x), mk.accelerate(copy.deepcopy(model))(x)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [slow(False), True], ids=["evaluation", "training"])
def test_gradients(training: bool) -> None:
    """In float64: those of every parameter are torch's, the tokens' too."""
    model = network("mobile_former_26m").double().train(training)
    model.classifier.classifier[0].p = 0.0
    x, found = images(6).double(), []  # with statistics of two, one is the negative of the other, and roundings grow
    for each in (copy.deepcopy(model), mk.accelerate(copy.deepcopy(model))):
        each(x).square().sum().backward()
        found.append({path: parameter.grad for path, parameter in each.named_parameters()})
    largest = max(grad.abs().max() for grad in found[0].values())
    for path, grad in found[0].items():
        # In float64, too, torch's gradient of a hard-sigmoid is a sixth in float32.
        assert (found[1][path] - grad).abs().max() <= 1e-7 * largest, path


@pytest.mark.parametrize("options", [{"conv": False}, {"attention": False}, {"exclude": ["features.3"]}], ids=str)
@torch.no_grad()
def test_options(options: dict[str, object]) -> None:
    model, x = network("mobile_former_26m"), images()
    swapped = mk.accelerate(copy.deepcopy(model), **options)
    assert replaced(swapped)
    torch.testing.assert_close(swapped(x), model(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hooks_are_called() -> None:
    """What stands inside of a block runs as its owner expects, and the rest on ops."""
    model, x, seen = network("mobile_former_26m"), images(), []
    swapped = mk.accelerate(copy.deepcopy(model))
    for path in ("features.1.hyper1", "features.2.local_global.q", "features.4.conv1", "classifier.fc"):
        swapped.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    torch.testing.assert_close(swapped(x), model(x), rtol=1e-4, atol=1e-4)
    assert seen == ["features.1.hyper1", "features.2.local_global.q", "features.4.conv1", "classifier.fc"]


@needs_native
@pytest.mark.parametrize("name", [NAMES[0], slow(NAMES[1])])
def test_compiled(name: str) -> None:
    model, x = network(name), images()
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    assert_compiled(model, fast, x)


@needs_native
@torch.no_grad()
def test_compiled_as_it_is() -> None:
    """Where hooks keep modules from being swapped, torch runs what has no kernel: of the same results, for any batch."""
    model, x = network("mobile_former_26m", **FAMILIES["mobile_former_26m"]), images(3, 32)
    model.features[2].local_global.register_forward_hook(lambda *_: None)
    fast = mk.compile(model, x[:1])
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


@functools.cache
def quantized(name: str, method: str = "minmax", bits: int = 8) -> mk.QuantizedModel:
    config = mk.QuantConfig(method=method, weight_bits=bits, activation_bits=bits)
    return mk.quantize(network(name), [images()], config, progress=False)


@needs_native
@pytest.mark.parametrize("bits", [8, slow(6)])
@pytest.mark.parametrize("name", [NAMES[0], slow(NAMES[1])])
def test_integers(name: str, bits: int, threads) -> None:
    """Equal bits in plain torch, on the kernels, and compiled, on any number of threads."""
    model, x = quantized(name, bits=bits), images(3)
    fast, expected = mk.compile(model, x), model(x)
    report = fast.report()
    assert not report.fallbacks
    floats = {row.op for row in report.rows if row.kind == "float"}
    # Beside conversions, the gate of the tokens: floats whose every operation is rounded once.
    assert floats <= {"quantize", "quantize_image", "dequantize", "to_stream", "hard_gate"}
    assert torch.equal(mk.convert(model)(x), expected)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(fast(x), expected)


@pytest.mark.parametrize("name", [NAMES[0], slow(NAMES[1])])
@pytest.mark.slow
def test_what_bytes_cost(name: str) -> None:
    x = images()
    with torch.no_grad():
        exact = network(name)(x)
    error = quantized(name)(x) - exact
    assert 10 * torch.log10(exact.square().sum() / error.square().sum()) >= 20


def test_bridges_are_found_without_names() -> None:
    """Each block has one from the map to the tokens and one back, and the head one more to them."""
    program = optimize(capture(network("mobile_former_26m"), (3, SIDE, SIDE)))
    found = bridges(Layout(program, mk.QuantConfig()))
    assert [bridge.kind for bridge in found] == [*["entry", "exit"] * 8, "entry"]
    assert found[2].nodes[0] == "features.2.local_global.q"
    assert "features.2.local_global.proj" in found[2].nodes
    assert found[3].nodes[:2] == ("features.2.global_local.k", "features.2.global_local.proj")


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("method", [method for method in METHODS if method != "minmax"])
def test_every_method(method: str) -> None:
    assert_runs_or_is_simulated(network(NAMES[0]), quantized(NAMES[0], method), images())


@pytest.mark.slow
@needs_native
@pytest.mark.parametrize("name", [name for name in mk.list_models() if name.startswith("mobile_former") and name not in NAMES])
def test_every_variant(name: str) -> None:
    model, x = network(name), images()
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    assert_compiled(model, fast, x)
