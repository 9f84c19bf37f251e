"""Bits of the Triton kernels are those of plain torch (which test_qseparable_attention.py holds against Python's integers)."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import attention_layers, known_sums, placed, stream_map
from marks import slow
from q_checks import random_bytes
from triton_checks import DEVICE

from mvit_kernels import ops

Tensor = torch.Tensor
MAPS = [((1, 2, 2, 1), (2, 2)), ((2, 4, 6, 7), (2, 2)), ((2, 3, 4, 17), (3, 1)), slow(((3, 2, 5, 16), (1, 1))), ((1, 36, 32, 40), (2, 2))]
CONTEXT = {"x_scale": 0.021, "x_zero_point": 117}
BYTES = {"out_scale": 0.013, "out_zero_point": 130}
GATE = {"v_scale": 0.017, "v_zero_point": 90, "out_scale": 0.02, "out_zero_point": 60}


def draw(size) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and values of one projection, and a context."""
    batch, height, width, dim = size
    qv = random_bytes(batch, height, width, 1 + dim).to(DEVICE)
    return qv[..., 0], qv[..., 1:], random_bytes(*size).to(DEVICE)


def context(scores: Tensor, x: Tensor, scale: float, **settings) -> None:
    table = ops.exponential_table(scale).to(DEVICE)
    settings = {**CONTEXT, **settings}
    y, expected = (ops.qseparable_context(scores, x, table, backend=backend, **settings) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)
    assert y.is_contiguous()


def gate(v: Tensor, k: Tensor, **settings) -> None:
    y, expected = (ops.qseparable_gate(v, k, backend=backend, **{**GATE, **settings}) for backend in ("triton", "reference"))
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("kind", MAPS, ids=str)
def test_maps(kind) -> None:
    size, patch = kind
    scores, v, x = draw(size)
    for scale in (0.05, 3.0):
        context(scores, x, scale, patch_size=patch)
        context(scores, x, scale, patch_size=patch, out_bits=6, **BYTES)
    gate(v, torch.randn(size[0], patch[0] * patch[1], size[3], device=DEVICE), patch_size=patch)


def test_sums_of_extremes() -> None:
    """All scores equal, one above all others, values at the ends, many pixels: sums of 32 bits are carried on at their largest."""
    size = (1, 20, 34, 3)
    for score, other in ((255, 255), (255, 0)):
        for value in (0, 255):
            scores = torch.full(size[:3], other, dtype=torch.uint8, device=DEVICE)
            scores[:, ::9, ::7] = score
            x = torch.full(size, value, dtype=torch.uint8, device=DEVICE)
            x[0, 0, 0] = 255 - value
            for scale in (1e-30, 30.0):
                context(scores, x, scale, x_scale=1.0, x_zero_point=-(2**31), patch_size=(1, 1))


@pytest.mark.slow
def test_more_pixels_than_add_up_in_32_bits() -> None:
    x = torch.full((1, 184, 181, 1), 255, dtype=torch.uint8, device=DEVICE)
    x[0, 183] = 0
    context(torch.zeros_like(x[..., 0]), x, 1e-30, patch_size=(1, 1))


def test_extremes_of_the_gate() -> None:
    v = torch.tensor([0, 255], dtype=torch.uint8, device=DEVICE).repeat(1, 2, 2, 9)
    k = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 1e-40], device=DEVICE).repeat_interleave(2).repeat(1, 4, 2)
    for zero_point in (-(2**20), 0, 255, 2**20):
        gate(v, k[:, :, :18].contiguous(), v_zero_point=zero_point, out_zero_point=zero_point)


def test_any_strides_and_empty() -> None:
    scores, _, big = draw((4, 4, 8, 10))
    k = torch.randn(4, 8, 10, device=DEVICE)
    for i, x in enumerate((big[::2], big[:, :, ::2], big[..., ::2], big.transpose(1, 2), big.movedim(3, 1).contiguous().movedim(1, 3))):
        context((scores[::2], scores[:, :, ::2], scores, scores.mT, scores)[i], x, 0.03)
        gate(x, k[: x.shape[0], ::2, : x.shape[3]])
    context(scores[:0], big[:0], 0.03)
    gate(big[:0], k[:0, :4])
    context(scores, big[..., :0], 0.03)


@pytest.mark.skipif(DEVICE != "cpu", reason="values in tensors on a GPU are not checked")
def test_bad_tables() -> None:
    scores, _, x = draw((1, 2, 2, 3))
    with pytest.raises(ValueError, match=r"table: expected values in \[0, 2\^16\]"):
        ops.qseparable_context(scores, x, torch.zeros(256, dtype=torch.int32), backend="triton", **CONTEXT)


@pytest.mark.parametrize("pieces", [None, 5])
def test_halves_of_layers(pieces: int | None) -> None:
    layers, x = attention_layers(16), stream_map(2, 16, 4, 6)
    sums = known_sums(x, pieces)
    ours = ops.prepare_qseparable_attention_block(*layers, backend="triton")(x.to(DEVICE), placed(sums, DEVICE), collect=True)
    theirs = ops.prepare_qseparable_attention_block(*layers, backend="reference")(x, collect=True)
    assert all(torch.equal(own.cpu(), other) for own, other in zip(ours, theirs, strict=True))
