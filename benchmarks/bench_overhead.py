"""What a call of an op costs above its kernel: registration, checks, choice of backend, allocation of the result."""

from __future__ import annotations

import functools

import pytest
import torch

from mvit_kernels import ops
from mvit_kernels.cli.timing import Timing

_cpu = pytest.importorskip("mvit_kernels._cpu", reason="the native kernels are not built")

ROUNDS, CALLS = 1000, 50  # many short samples: few of them meet an interrupt, and the median forgets those
FLOAT32 = 0  # DType of csrc/cpu/core/types.h
UINT8 = 1  # QType of csrc/cpu/core/qepilogue_types.h


def test_separable_attention(in_turn, record):
    qkv = torch.randn(1, 3, 4, 4)
    y = torch.empty(1, 1, 4, 4)
    op = functools.partial(ops.separable_attention, qkv)
    arguments = (FLOAT32, qkv.shape, (0, 0), qkv.data_ptr(), qkv.stride(), y.data_ptr(), y.stride(), torch.get_num_threads())
    kernel = functools.partial(_cpu.separable_attention, *arguments)
    assert kernel() == 0
    assert torch.equal(op(), y)
    _compare(in_turn, record, "separable_attention", op, kernel)


def test_unfold_patches(in_turn, record):
    x = torch.randn(1, 1, 2, 2)
    p = torch.empty(1, 1, 4, 1)
    op = functools.partial(ops.unfold_patches, x)
    arguments = (x.element_size(), x.shape, (2, 2), False, x.data_ptr(), p.data_ptr(), torch.get_num_threads())
    kernel = functools.partial(_cpu.unfold_patches, *arguments)
    assert kernel() == 0
    assert torch.equal(op(), p)
    _compare(in_turn, record, "unfold_patches", op, kernel)


def test_prepared_qgemm(in_turn, record):
    """What `prepare_qgemm` makes, at one row."""
    a, weight = torch.randint(0, 256, (1, 64), dtype=torch.uint8), ops.pack_weight(torch.randint(-127, 128, (16, 64), dtype=torch.int8))
    op = functools.partial(ops.prepare_qgemm(weight, 0.02, 113, 0.01, out_dtype=torch.uint8, out_scale=0.5, out_zero_point=9), a)
    y, product = torch.empty(1, 16, dtype=torch.uint8), op.func
    arguments = (
        1, a.data_ptr(), 64, weight.data.data_ptr(), weight.data.shape[0], (16, 64, 8), product.channels.data_ptr(),
        product.channels.shape[1], UINT8, product.settings.plain, 0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0, 0, y.data_ptr(), 16,
        torch.get_num_threads(),
    )  # fmt: skip
    kernel = functools.partial(_cpu.qgemm, *arguments)
    assert kernel() == 0
    assert torch.equal(op(), y)
    _compare(in_turn, record, "prepared qgemm", op, kernel)


def _compare(in_turn, record, group, op, kernel):
    times = in_turn(group, {"op": op, "kernel": kernel}, ROUNDS, CALLS)
    overhead = Timing(tuple(a - b for a, b in zip(times["op"].samples, times["kernel"].samples, strict=True)))
    record(group, "overhead", overhead.median, overhead.spread, times["op"].minimum - times["kernel"].minimum)
