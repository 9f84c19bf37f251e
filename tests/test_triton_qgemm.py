"""Bits of the Triton kernels are those of plain torch (which test_qgemm.py holds against NumPy), for every form of the epilogue."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes, random_packed_weight, random_weight
from triton_checks import DEVICE

from mvit_kernels import ops, reference

Tensor = torch.Tensor
SIZES = [(1, 1, 1), (3, 17, 3), (33, 40, 70), slow((17, 33, 129)), slow((70, 65, 300)), slow((1, 130, 64)), slow((600, 70, 20))]


def settings(columns: int, depth: int, **changes):
    return {
        "a_scale": 0.05, "a_zero_point": 3, "w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns),
        "out_dtype": torch.uint8, "out_scale": torch.rand(columns) * 0.02 * depth**0.5 + 0.01,
        "out_zero_point": torch.randint(-100, 300, (columns,)),
    } | changes  # fmt: skip


def check(a: Tensor, weight: ops.PackedWeight, **arguments) -> Tensor:
    a = a.to(DEVICE)
    y = ops.qgemm(a, weight, backend="triton", **arguments)
    expected = ops.qgemm(a, weight, backend="reference", **arguments)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    return y


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bytes(size, bits: int) -> None:
    rows, columns, depth = size
    for zero_point in (113, -1275):
        check(random_bytes(rows, depth), random_packed_weight(columns, depth, bits), **settings(columns, depth, a_zero_point=zero_point))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("depth", [slow(1), 129, slow(2880)])
def test_sums_of_extremes(depth: int, bits: int) -> None:
    most = 127 if bits == 8 else 31
    a = torch.full((5, depth), 255, dtype=torch.uint8)
    a[1:3] = 0
    weight = torch.full((17, depth), most, dtype=torch.int8)
    weight[::2, ::2] *= -1
    weight[5] = -most
    packed = ops.pack_weight(weight, bits=bits)
    for zero_point in (0, 255, -1275, torch.tensor([0, 1, -7, 300, 255]), torch.randint(-1300, 300, (1, depth))):
        y = ops.qgemm_accumulate(a.to(DEVICE), packed, zero_point, backend="triton")
        z = torch.as_tensor(zero_point)
        expected = (a.to(torch.int64) - (z[:, None] if z.ndim == 1 and z.numel() > 1 else z)) @ weight.to(torch.int64).T
        assert torch.equal(y.cpu().to(torch.int64), expected)


FORMS = [
    {"activation": "relu"},
    {"activation": "silu"},
    slow({"activation": "gelu", "residual": torch.uint8}),
    slow({"activation": "hard_swish", "residual": torch.int16}),
    {"residual": torch.uint8},
    {"table": True},
    {"out_dtype": torch.int16, "residual": torch.int16},
    slow({"out_dtype": torch.int16}),
    {"out_dtype": torch.float32, "residual": torch.float32, "activation": "silu"},
    slow({"out_dtype": torch.bfloat16, "residual": torch.bfloat16}),
    slow({"out_dtype": torch.float16, "residual": torch.uint8}),
    {"rows": True, "out_dtype": torch.float32},
    {"rows": True, "activation": "silu", "residual": torch.uint8},
    {"curve": "silu"},
    slow({"curve": "gelu"}),
    slow({"a_bits": 6, "out_bits": 6, "a_zero_point": -40}),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_epilogues(form) -> None:
    rows, columns, depth = 21, 19, 37
    form, more = dict(form), {}
    out_dtype, residual = form.get("out_dtype", torch.uint8), form.pop("residual", None)
    a = random_bytes(rows, depth, most=2 ** form.get("a_bits", 8) - 1)
    if form.pop("table", False):
        more["table"] = random_bytes(256).to(DEVICE)
    if out_dtype != torch.uint8:
        more |= {"out_zero_point": None} | ({} if out_dtype == torch.int16 else {"out_scale": None})
    if "curve" in form:
        more |= {"out_scale": 0.03, "out_zero_point": 12, "table": reference.activation_curve(form.pop("curve"), 0.03, 12)}
    if form.pop("rows", False):
        more |= {
            "a_scale": torch.rand(rows, device=DEVICE) + 0.01,
            "a_zero_point": torch.randint(-900, 900, (rows,), dtype=torch.int32, device=DEVICE),
        }
    if residual is not None:
        integer = not residual.is_floating_point
        draw = torch.randint(0, 256, (rows, columns)) if integer else torch.randn(rows, columns)
        more["residual"] = draw.to(residual).to(DEVICE)
        if integer and out_dtype != torch.int16:
            more |= {"residual_scale": 0.07, "residual_zero_point": 100 if residual == torch.uint8 else None}
    check(a, random_packed_weight(columns, depth), **settings(columns, depth, **form) | more)


def test_strides_and_ties() -> None:
    big = random_bytes(40, 90)
    check(big[::2, 7:70], random_packed_weight(9, 63), **settings(9, 63))
    # Multiples of one half before they are rounded.
    weight = ops.pack_weight(torch.ones(16, 4, dtype=torch.int8))
    y = check(
        random_bytes(64, 4, most=9),
        weight,
        a_scale=1.0,
        a_zero_point=0,
        w_scale=1.0,
        out_dtype=torch.uint8,
        out_scale=2.0,
        out_zero_point=3,
    )
    assert y.any()


def test_empty() -> None:
    assert check(random_bytes(0, 5), random_packed_weight(3, 5), **settings(3, 5)).shape == (0, 3)
    assert check(random_bytes(4, 0), random_packed_weight(3, 0), **settings(3, 1)).shape == (4, 3)


def test_prepared_products_follow_their_weight() -> None:
    """What was made of a packed weight is found again, and made anew for another one."""
    a = random_bytes(3, 5).to(DEVICE)
    for _ in range(3):
        weight = random_weight(4, 5)
        y = ops.qgemm_accumulate(a, ops.pack_weight(weight), 7, backend="triton")
        assert torch.equal(y.cpu().to(torch.int64), (a.cpu().to(torch.int64) - 7) @ weight.to(torch.int64).T)
