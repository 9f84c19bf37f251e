"""Quantized networks on the Triton kernels alone give the bits of plain torch, node by node."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import test_efficientformers as efficientformers
import test_mobile_formers as mobile_formers
import torch
from marks import slow
from test_engine_device import device_plan, programs
from test_engine_integers import quantized
from test_graph_capture import random_statistics
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton_checks import DEVICE

import mvit_kernels as mk
from mvit_kernels import triton_kernels
from mvit_kernels.graph import Node, run

Tensor = torch.Tensor


def check(model: mk.QuantizedModel, x: Tensor, kinds: str) -> None:
    """kinds: of nodes that the network must have, for the test to mean what it says."""
    program, right = model.program(tuple(x.shape[1:])), {}
    run(program, x, lambda node, y: right.update({node.name: y}))

    def compare(node: Node, y: Tensor) -> None:
        assert torch.equal(y.cpu(), right[node.name]), node

    run(program, x.to(DEVICE), compare, backend="triton")
    assert set(kinds.split()) <= {node.kind for node in program}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mobilevitv2_050", "qconv2d qdepthwise_conv2d qlinear qnorm qseparable_context qseparable_gate qavg_pool qresize"),
        ("mobilevit_xxs", "qconv2d qdepthwise_conv2d qlinear qnorm qpatch_attention qavg_pool qresize"),
    ],
)
def test_networks(name: str, kinds: str, bits: int) -> None:
    model = random_statistics(mk.create_model(name, num_classes=7))
    check(quantized(model, (3, 32, 32), weight_bits=bits, activation_bits=bits), torch.randn(1, 3, 32, 32), kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"),
    [("efficientformer_l1", "qattention qpool_mixer qnorm dequantize"), ("efficientformerv2_s0", "qattention qadd qlookup qresize")],
)
def test_efficientformers(name: str, kinds: str) -> None:
    check(efficientformers.quantized(name), efficientformers.images(name, 1), kinds)


@pytest.mark.slow
@pytest.mark.skipif(DEVICE != "cpu", reason="tests/gpu/test_engine.py runs them on the GPU")
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "mobile_former_26m"])
@torch.no_grad()
def test_float_networks_of_other_families(name: str) -> None:
    """As plans of a GPU run them, call by call; a call that no Triton kernel takes raises."""
    former = name == "mobile_former_26m"
    model = mobile_formers.network(name) if former else efficientformers.network(name)
    x = mobile_formers.images(1, 32) if former else efficientformers.images(name, 1)
    plan, right = device_plan(programs(model, x.shape[2])), model(x)
    with mk.use_backend("triton"):
        (y,) = plan.run(x)
    assert (y - right).abs().max() <= 1e-4 * right.abs().max()


class Launched(TorchDispatchMode):
    """What torch runs outside of ops that is more than a view."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            not op.is_view
            and op.namespace == "aten"
            and not op._schema.name.startswith(("aten::new_empty", "aten::empty", "aten::_unsafe_view"))
        ):
            self.kernels.append(op._schema.name)
        return op(*args, **(kwargs or {}))


@pytest.mark.skipif(DEVICE != "cpu", reason="its launches do nothing: there is nothing of it for a GPU to run")
@pytest.mark.parametrize("integers", [False, slow(True)])
@pytest.mark.parametrize(("name", "side"), [
    ("mobilevit_xxs", 256), ("mobilevitv2_050", 256), ("efficientformer_l1", 224), ("efficientformerv2_s0", 224),
    ("mobile_former_26m", 224),
])  # fmt: skip
def test_plans_run_on_kernels_alone(name: str, side: int, integers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the sizes that networks are trained for, by launches that do nothing: an op that no kernel takes raises, as a request that is not
    met, and between ops torch has nothing to do but to repeat the tokens that Mobile-Former learned for each image."""
    for module in pkgutil.iter_modules(triton_kernels.__path__, f"{triton_kernels.__name__}."):
        if hasattr(importlib.import_module(module.name), "launch") and not module.name.endswith(".launch"):
            monkeypatch.setattr(f"{module.name}.launch", lambda *_, **__: None)
    model = mk.create_model(name).eval()
    if integers:
        config = mk.QuantConfig(method="minmax")
        plan = device_plan(mk.quantize(model, [torch.randn(1, 3, side, side)], config, progress=False).program())
    else:
        plan = device_plan(programs(model, side), torch.float16)
    x = torch.zeros(2, 3, side, side, dtype=plan.input.dtype)
    with mk.use_backend("triton"):
        plan.run(x)  # weights are arranged
        with Launched() as launched:
            plan.run(x)
    assert set(launched.kernels) <= {"aten::clone"}
    assert len(launched.kernels) <= (3 if name == "mobile_former_26m" else 0)


class Small(nn.Module):
    """Sums, resizes, two maps side by side and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(4, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.depthwise, self.fusion, self.last = nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.Conv2d(32, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        y = nn.functional.gelu(self.wide(x)) + x
        back = nn.functional.interpolate(nn.functional.relu(self.depthwise(y)), y.shape[2:], mode="bilinear", align_corners=True)
        return self.last(nn.functional.silu(self.fusion(torch.cat([back, y], 1))).mean((2, 3)))


def test_a_small_network() -> None:
    kinds = "quantize qconv2d qdepthwise_conv2d qadd qresize qavg_pool qlinear"
    check(quantized(Small().eval(), (4, 16, 16)), torch.randn(1, 4, 7, 10), kinds)
