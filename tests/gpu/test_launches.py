"""Calls of accelerated models that launch again what they launched before (`ops/launches.py`): the same bits, of today's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mvit_kernels as mk
from mvit_kernels.ops import launches
from mvit_kernels.ops.backend import hearing

from .test_training import EVALUATION, NAMES

Tensor = torch.Tensor
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every call that is made again."""
    made: list[object] = []
    run = launches._Again.__call__

    def counted(self, addresses):
        made.append(self)
        return run(self, addresses)

    monkeypatch.setattr(launches._Again, "__call__", counted)
    return made


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return mk.accelerate(mk.create_model(name, num_classes=10).eval()).to("cuda", torch.float16, memory_format=torch.channels_last)


def images(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 64, 64, generator=generator).to("cuda", torch.float16).contiguous(memory_format=torch.channels_last)


def call_by_call(network: nn.Module, x: Tensor) -> Tensor:
    """Who hears what calls choose hears all of them."""
    with hearing(lambda _: None):
        return network(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_networks(name: str, mode, again) -> None:
    network = model(name)
    with mode():
        for count in (2, 1):
            for seed in range(4):
                x = images(count, seed)
                again.clear()
                y = network(x)
                assert torch.equal(y, call_by_call(network, x))
            assert len(again) == sum(EVALUATION[name].values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_change(name: str, again) -> None:
    network, x = model(name), images(1)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.75)
        for _ in range(3):
            network(x)
        assert again
        network.load_state_dict(other.state_dict())
        again.clear()
        assert torch.equal(network(x), call_by_call(other, x))
        for _ in range(3):
            y = network(x)
        assert torch.equal(y, call_by_call(other, x))


@pytest.mark.parametrize("name", NAMES)
def test_streams_graphs_and_gradients(name: str, again) -> None:
    network, x = model(name), images(2)
    with torch.no_grad():
        for _ in range(3):
            y = network(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        again.clear()
        with torch.cuda.stream(stream):
            first = network(x)
        assert not again  # what was written down goes to another stream
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(first, y)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = network(x)
        assert not again
        x.copy_(images(2, 5))
        graph.replay()
        assert torch.equal(captured, network(x))
        assert again
    again.clear()
    network.train()(x).float().sum().backward()
    assert not again
