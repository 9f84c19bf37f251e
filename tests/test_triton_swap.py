"""Accelerated blocks on the Triton kernels alone, in evaluation and training."""

from __future__ import annotations

import copy

import pytest
import torch
from swap_checks import gradients, lively
from torch import nn
from triton_checks import DEVICE

import mvit_kernels as mk
from mvit_kernels.models.mobilevit import MobileViTBlock
from mvit_kernels.models.mobilevitv2 import MobileViTv2Block
from mvit_kernels.swap import devices

if DEVICE != "cpu":
    pytest.skip("tests/gpu/test_training.py trains on the GPU", allow_module_level=True)

BLOCKS = {"mobilevit": lambda: MobileViTBlock(8, 16, 1), "mobilevitv2": lambda: MobileViTv2Block(8, 16, 2)}


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(devices, "off_cpu", lambda _: True)  # or one convolution's maps are made contiguous for the next
    return lively(BLOCKS[request.param]())


@torch.no_grad()
def test_evaluation(block: nn.Module) -> None:
    x = torch.randn(2, 8, 6, 8)
    expected = block(x)
    mk.accelerate(block, backend="triton")  # what has no kernel raises
    for _ in range(3):
        assert (block(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert {row.backend for row in mk.report(block).rows} == {"triton"}


def test_gradients(block: nn.Module) -> None:
    x = torch.randn(2, 8, 6, 8)
    expected = gradients(copy.deepcopy(block.train()), x)
    ours = gradients(mk.accelerate(block, backend="triton"), x)
    floor = 1e-3 * max(each.abs().max() for each in expected)  # some true gradients are zero
    for actual, right in zip(ours, expected, strict=True):
        assert (actual - right).abs().max() <= 1e-3 * max(right.abs().max(), floor)


def test_steps_of_an_optimizer(block: nn.Module) -> None:
    """What was packed of former weights is not used again."""
    losses = []
    for each in (copy.deepcopy(block), mk.accelerate(block, backend="triton")):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(each.train().parameters(), lr=0.05)
        losses.append([])
        for _ in range(3):
            loss = (each(torch.randn(2, 8, 4, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][0] != losses[0][2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
