"""Bytes through a table, by the Triton kernel."""

from __future__ import annotations

import torch
from q_checks import random_bytes
from triton_checks import DEVICE, FORMATS, views

from mvit_kernels import ops

Tensor = torch.Tensor


def check(x: Tensor, table: Tensor) -> None:
    y = ops.qlookup(x, table, backend="triton")
    assert torch.equal(y, table[x.to(torch.int64)])
    assert x.ndim != 4 or y.is_contiguous(memory_format=FORMATS["nhwc" if x.stride(1) == 1 and x.stride(3) != 1 else "nchw"])


def test_every_byte() -> None:
    x = torch.arange(256, device=DEVICE).to(torch.uint8).repeat(17, 1)[:, 1:]
    check(x, random_bytes(256).to(DEVICE))


def test_any_strides_and_empty() -> None:
    table = random_bytes(512).to(DEVICE)[::2]
    for x in views(5, 4, 6).values():
        check((x * 100).to(torch.uint8), table)
    for size in ((2, 3, 4, 5), (0, 5), (), (1,)):
        check(random_bytes(*size).to(DEVICE), table)
