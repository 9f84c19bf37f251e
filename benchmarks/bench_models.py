"""Whole networks: PyTorch eager, torch.compile with frozen weights, and what this package makes of them, in turn."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import mvit_kernels as mk
from mvit_kernels.cli.compare import VARIANTS, Network, Variant, compare

MODELS = ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100", "mobilevitv2_200")
COMPILED = ("mobilevit_s", "mobilevitv2_100")  # compiling takes a minute a network
SIZE, ROUNDS = 256, {1: 30, 8: 6}


def frozen(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Network:
    """Inductor with its weights folded and packed as constants, the fastest that torch.compile does for inference on a CPU."""
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)

    def network(x: torch.Tensor) -> torch.Tensor:
        with torch._inductor.config.patch(freezing=True), torch.no_grad():
            return compiled(x)

    return network


@pytest.mark.parametrize("batch", ROUNDS)
@pytest.mark.parametrize("name", MODELS)
def test_model(record, smoke, name, batch):
    if smoke and batch > 1:
        pytest.skip("the same network again")
    variants = [*VARIANTS, Variant("Inductor, frozen", frozen, channels_last=True)] if name in COMPILED and not smoke else VARIANTS
    images = torch.rand(batch, 3, SIZE, SIZE)
    rounds = 1 if smoke else ROUNDS[batch]
    for row in compare(mk.create_model(name).eval(), [images], variants, rounds=rounds, label=name):
        # Inductor rounds as it likes; untrained networks in int8 keep the most of their logits' range.
        slack = {"Inductor, frozen": 1.0, "compiled, int8": 0.5}.get(row["variant"], 1e-5)
        assert row["max_difference"] <= slack * row["logit_range"], row
        times = (row[f"{each}_ms"] / 1e3 for each in ("median", "spread", "min"))
        record(f"{name} {batch}x{SIZE}x{SIZE}", row["variant"], *times, speedup=row["speedup"], max_difference=row["max_difference"])
