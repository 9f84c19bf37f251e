"""Whole networks: PyTorch eager and what this package makes of them, in turn; the variants are those of the demo."""

from __future__ import annotations

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels.cli.compare import VARIANTS, compare

MODELS = ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_100", "mobilevitv2_200")
SIZE, ROUNDS = 256, 20


@pytest.mark.parametrize("name", MODELS)
def test_model(record, smoke, name):
    images = torch.rand(1, 3, SIZE, SIZE)
    for row in compare(mk.create_model(name).eval(), [images], VARIANTS, rounds=1 if smoke else ROUNDS, label=name):
        assert row["max_difference"] <= 1e-5 * row["logit_range"], row
        times = (row[f"{each}_ms"] / 1e3 for each in ("median", "spread", "min"))
        record(f"{name} {SIZE}x{SIZE}", row["variant"], *times, speedup=row["speedup"], max_difference=row["max_difference"])
