"""Separable attention on the bytes of one projection, the key projection left out: the context of each phase, and the gate."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import copy_of

from mvit_kernels import ops

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=20, warmup=True)


def projected(block) -> torch.Tensor:
    return torch.randint(0, 256, (1, block.side, block.side, 1 + block.d), dtype=torch.uint8)


def test_context(alone, block, contender):
    qv = projected(block)
    x, table = torch.randint(0, 256, (1, block.side, block.side, block.d), dtype=torch.uint8), ops.exponential_table(0.03)
    settings = {"x_scale": 0.04, "x_zero_point": 128, "out_scale": 0.01, "out_zero_point": 128}
    if contender == "copy":
        function = copy_of(torch.empty(x.numel() // 4))
    else:
        function = functools.partial(ops.qseparable_context, qv[..., 0], x, table, backend=contender, **settings)
        assert torch.equal(function(), ops.qseparable_context(qv[..., 0], x, table, backend="reference", **settings))
    alone(f"context {block}", contender, function)


def test_gate(alone, block, contender):
    v, context = projected(block)[..., 1:], torch.randn(1, 4, block.d)
    settings = {"v_scale": 0.04, "v_zero_point": 128, "out_scale": 0.02, "out_zero_point": 100}
    if contender == "copy":
        function = copy_of(torch.empty(2 * v.numel() // 4))
    else:
        function = functools.partial(ops.qseparable_gate, v, context, backend=contender, **settings)
        assert torch.equal(function(), ops.qseparable_gate(v, context, backend="reference", **settings))
    alone(f"gate {block}", contender, function)
