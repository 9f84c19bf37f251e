"""Bits of the Triton kernel are those of plain torch (which test_qadd.py holds against NumPy)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes
from triton_checks import DEVICE, FORMATS, views

from mvit_kernels import ops

Tensor = torch.Tensor
SUM = {"a_scale": 0.03, "a_zero_point": 113, "b_scale": 0.017, "b_zero_point": -7, "out_scale": 0.041, "out_zero_point": 90}


def pairs() -> Tensor:
    """(2, 65536): every byte with every byte."""
    bytes_of_x = torch.arange(256, device=DEVICE).to(torch.uint8)
    return torch.stack([bytes_of_x.repeat_interleave(256), bytes_of_x.repeat(256)])


def check(a: Tensor, b: Tensor, **changes) -> None:
    y, expected = (ops.qadd(a, b, backend=backend, **{**SUM, **changes}) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("activation", [None, "relu", "silu", slow("gelu"), slow("hard_swish")])
def test_every_pair_of_bytes(activation: str | None) -> None:
    check(*pairs(), activation=activation, out_bits=6 if activation == "gelu" else 8)
    check(*pairs(), activation=activation, out_scale=0.25, a_scale=0.125, b_scale=0.125, out_zero_point=0)  # ties


@pytest.mark.parametrize("changes", [
    {"a_zero_point": -(2**31), "b_zero_point": 2**31 - 1}, {"a_zero_point": 2**24 + 1, "b_zero_point": 2**24, "b_scale": 0.03},
    {"a_scale": 2.0**126, "b_scale": 2.0**126, "a_zero_point": 0, "b_zero_point": 2**30, "activation": "silu"},
    {"out_scale": 2.0**-126, "out_zero_point": 2**20}, {"out_scale": 2.0**126, "out_zero_point": -(2**20), "out_bits": 6},
], ids=str)  # fmt: skip
def test_extremes(changes) -> None:
    check(*pairs()[:, ::37], **changes)


def test_any_strides_and_empty() -> None:
    for x in views(5, 4, 6).values():
        x = (x * 100).to(torch.uint8)
        check(x, x.flip(1))
    nchw, nhwc = (random_bytes(2, 3, 4, 5).to(DEVICE).contiguous(memory_format=each) for each in FORMATS.values())
    check(nchw, nhwc)
    check(nhwc, nchw)
    empty = random_bytes(0, 5).to(DEVICE)
    check(empty, empty)
