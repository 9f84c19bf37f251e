"""Folds of weights in graphs: one op each where a network is captured, torch's own ops in what a user exports."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels.graph.exporting import EXPORTING
from mvit_kernels.swap import folds

FOLD = torch.ops.mvit_kernels.fold_weights.default
RSQRT = torch.ops.aten.rsqrt.default


def exported_targets(model: torch.nn.Module) -> list[object]:
    x = torch.randn(2, 3, 32, 32)
    with EXPORTING, torch.no_grad():
        graph = torch.export.export(model, (x,), strict=False)
    assert torch.allclose(graph.module()(x), model(x), atol=1e-5)
    return [node.target for node in graph.graph.nodes]


@pytest.fixture
def model():
    return mk.accelerate(mk.create_model("mobilevitv2_050", num_classes=7).eval())


def test_one_op_a_fold(model):
    with folds.as_ops():
        targets = exported_targets(model)
    norms = sum(isinstance(each, torch.nn.BatchNorm2d) for each in model.modules())
    assert RSQRT not in targets
    assert 0 < targets.count(FOLD) <= norms + 3 * 9  # and the norms in front of attention, feed-forward and projections


def test_whoever_exports_gets_torchs_ops(model):
    with folds.as_ops(), ThreadPoolExecutor(1) as thread:  # another thread captures
        targets = thread.submit(exported_targets, model).result()
    assert FOLD not in targets
    assert targets.count(RSQRT) > 0
    assert FOLD not in exported_targets(model)


def test_results_that_are_none_stay_none():
    weight, norm = torch.randn(3, 2), torch.randn(3)

    def recipe(weight, bias, norm):
        return (weight * norm[:, None], bias), norm + 1

    (product, bias), more = folds.fold(recipe, (weight, None, norm))
    assert bias is None
    assert torch.equal(product, weight * norm[:, None])
    assert torch.equal(more, norm + 1)
    (_, bias), _ = folds.fold(recipe, (weight, norm, norm))
    assert torch.equal(bias, norm)
