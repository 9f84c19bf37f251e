"""qlookup on maps of the networks, against indexing in PyTorch and a copy of as many bytes."""

from __future__ import annotations

import functools

import pytest
import torch
from shapes import MAPS, bytes_like, copy_of_bytes

from mvit_kernels import ops, reference


@pytest.mark.parametrize("size", MAPS, ids=str)
def test_qlookup(in_turn, size):
    x, table = bytes_like(size), reference.activation_table("silu", 0.03, 120, 0.02, 14)
    contenders = {
        "cpu": functools.partial(ops.qlookup, x, table, backend="cpu"),
        "torch": lambda: table[x.int()],
        "copy": copy_of_bytes(2 * x.numel()),
    }
    assert torch.equal(contenders["cpu"](), contenders["torch"]())
    in_turn(f"{size}", contenders, 20, 4)
