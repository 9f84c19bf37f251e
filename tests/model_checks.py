"""What the tests of every family of models share."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mvit_kernels as mk
from mvit_kernels.graph import capture, optimize, run
from mvit_kernels.models import create_model
from mvit_kernels.ops.backend import native


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Give every tensor of a model a value of its own, so that one in the wrong place or left out shows."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif name.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.3)
        elif tensor.ndim == 1:
            nn.init.normal_(tensor, std=0.1)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=(2 / tensor[0].numel()) ** 0.5)
    return model.eval()


def images(size: tuple[int, int], batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, *size)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    span = (theirs.max() - theirs.min()).item()
    error = (ours - theirs).abs().max().item()
    assert span > 0
    assert error <= 1e-5 * span, f"error {error:.2e} over a range of {span:.2e}"


def timm_model(name: str, **options) -> nn.Module:
    timm = pytest.importorskip("timm")
    return randomise(timm.create_model(name, **options))


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def million_macs(name: str) -> float:
    """Multiply-adds of convolutions, linear layers and attention for one image."""
    with torch.device("meta"), torch.no_grad():
        model = create_model(name).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    return counter.get_total_flops() / 2e6


def assert_every_parameter_learns(model: nn.Module, x: torch.Tensor, silent: str = "nothing") -> None:
    """silent: a pattern of the names of those whose gradient is zero but for rounding, as that of a bias before a BatchNorm."""
    model.train()
    model(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or re.search(silent, key), key


def assert_exports(model: nn.Module, x: torch.Tensor) -> None:
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


@torch.no_grad()
def assert_captured(model: nn.Module, x: torch.Tensor) -> None:
    """The program of a model and its plan give what the model gives, for any batch."""
    program = optimize(capture(model, tuple(x.shape[1:])))
    networks = [lambda batch: run(program, batch)]
    if native is not None:
        networks.append(mk.compile(model, x))
    for network in networks:
        for batch in (x, x[:1]):
            assert_same(network(batch), model(batch))


def assert_state_dict_of_timm(name: str) -> None:
    """Keys, shapes and dtypes are timm's."""
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = create_model(name).state_dict(), timm.create_model(name).state_dict()
    assert {key: (x.shape, x.dtype) for key, x in ours.items()} == {key: (x.shape, x.dtype) for key, x in theirs.items()}


@torch.no_grad()
def assert_results_of_timm(name: str, sizes: list[tuple[int, int]], map_sizes: list[tuple[int, int]]) -> tuple[nn.Module, nn.Module]:
    """Logits, feature maps and what is said of these are timm's with the same random weights; (ours, theirs) for more."""
    theirs = timm_model(name)
    ours = create_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    pyramid = create_model(name, features_only=True).eval()
    assert not pyramid.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    for size in sizes:
        x = images(size, 2)
        assert_same(ours(x), theirs(x))
    for size in map_sizes:  # timm's feature maps do not take all that its logits do
        x = images(size, 2)
        for ours_at, theirs_at in zip(pyramid(x), theirs.forward_intermediates(x, intermediates_only=True), strict=True):
            assert_same(ours_at, theirs_at)
    assert list(pyramid.feature_info.channels) == [info["num_chs"] for info in theirs.feature_info]
    assert list(pyramid.feature_info.reductions) == [info["reduction"] for info in theirs.feature_info]
    return ours, theirs
