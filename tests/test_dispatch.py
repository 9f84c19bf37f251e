"""The public functions pass the dispatcher by where nobody watches it, and only there."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mvit_kernels as mk

OPS = {
    "avg_pool": lambda x: mk.ops.avg_pool(x),
    "group_norm": lambda x: mk.ops.group_norm(x, torch.ones(3), torch.zeros(3)),
    "layer_norm": lambda x: mk.ops.layer_norm(x, torch.ones(4), torch.zeros(4)),
    "unfold_patches": lambda x: mk.ops.unfold_patches(x),
    "fold_patches": lambda x: mk.ops.fold_patches(x, (4, 4)),
    "separable_attention": lambda x: mk.ops.separable_attention(x),
}


class DispatchMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=OPS)
def op(request) -> str:
    return request.param


@pytest.fixture
def x(op: str) -> torch.Tensor:
    return torch.randn(1, 3, 4, 4)


@pytest.mark.parametrize("mode", [DispatchMode, FunctionMode])
def test_modes_see_the_call(op: str, x: torch.Tensor, mode) -> None:
    expected = OPS[op](x)
    with mode() as watcher:
        assert torch.equal(OPS[op](x), expected)
    assert f"mvit_kernels.{op}.default" in watcher.seen


def test_the_profiler_sees_the_call(op: str, x: torch.Tensor) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        OPS[op](x)
    assert f"mvit_kernels::{op}" in {event.key for event in profile.key_averages()}


def test_traces_hold_the_call(op: str, x: torch.Tensor) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(OPS[op], (x,))
    assert f"mvit_kernels::{op}" in {node.kind() for node in traced.graph.nodes()}
    graph = torch.fx.experimental.proxy_tensor.make_fx(OPS[op])(x)
    assert f"mvit_kernels.{op}.default" in {str(node.target) for node in graph.graph.nodes}


def test_parameters_count_as_tensors_and_subclasses_do_not(op: str, x: torch.Tensor) -> None:
    class Subclass(torch.Tensor):
        pass

    expected = OPS[op](x)
    with torch.no_grad():
        assert type(OPS[op](torch.nn.Parameter(x))) is torch.Tensor
        assert type(OPS[op](x.as_subclass(Subclass))) is Subclass
    assert torch.equal(OPS[op](torch.nn.Parameter(x)), expected)
    assert OPS[op](torch.nn.Parameter(x)).requires_grad


def test_lazy_and_meta_tensors(op: str, x: torch.Tensor) -> None:
    expected = OPS[op](-x)
    assert torch.allclose(OPS[op](torch._neg_view(x)), expected, atol=1e-6)
    if "norm" not in op:
        assert OPS[op](x.to("meta")).shape == expected.shape


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
def test_numbers_are_converted_by_the_dispatcher(norm: str) -> None:
    x, ones = torch.randn(1, 4, 4, 4), torch.ones(4)
    function = getattr(mk.ops, norm)
    assert torch.equal(function(x, ones, ones, 1), function(x, ones, ones, 1.0))
    with pytest.raises((TypeError, RuntimeError), match="eps"):
        function(x, ones, ones, "small")
