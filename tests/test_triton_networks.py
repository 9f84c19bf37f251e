"""Quantized networks on the Triton kernels alone give the bits of plain torch, node by node."""

from __future__ import annotations

import pytest
import torch
from test_engine_integers import quantized
from test_graph_capture import random_statistics
from triton_checks import DEVICE

import mvit_kernels as mk
from mvit_kernels.graph import Node, run

Tensor = torch.Tensor


def check(model: mk.QuantizedModel, x: Tensor) -> set[str]:
    """The kinds of nodes that the network has."""
    program, right = model.program(x.shape[1:]), {}
    run(program, x, lambda node, y: right.update({node.name: y}))

    def compare(node: Node, y: Tensor) -> None:
        assert torch.equal(y.cpu(), right[node.name]), node

    run(program, x.to(DEVICE), compare, backend="triton")
    return {node.kind for node in program}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
@pytest.mark.parametrize("bits", [8, 6])
def test_networks(name: str, bits: int) -> None:
    model = random_statistics(mk.create_model(name, num_classes=7))
    model = quantized(model, (3, 32, 32), weight_bits=bits, activation_bits=bits)
    kinds = check(model, torch.randn(1, 3, 32, 32))
    print(kinds)
