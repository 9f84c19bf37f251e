"""Bits of the Triton kernels are those of plain torch (which test_qattention.py holds near the attention of real numbers)."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from q_checks import random_bytes
from test_qattention import SETTINGS, bytes_of, parameters
from triton_checks import DEVICE

from mvit_kernels import ops

Tensor = torch.Tensor


def check(inputs: list[Tensor], size: tuple[int, ...], **changes: object) -> None:
    settings = {**SETTINGS, "scale": size[4] ** -0.5, **changes}
    y, expected = (
        ops.prepare_qattention(size[3], backend=backend, **settings)(*(x.to(DEVICE) for x in inputs)) for backend in ("triton", "reference")
    )
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("mixed", ["none", "bias", "weights", "all"])
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1, 1, 1), (2, 5, 7, 2, 3, 5), slow((2, 19, 40, 3, 33, 17)), slow((1, 49, 49, 8, 32, 128))], ids=str
)
def test_sizes(size, mixed: str) -> None:
    inputs, held = bytes_of(size), parameters(size, mixed)
    for changes in (
        {"out_scale": 0.05},
        {"out_bits": 6, "out_zero_point": 30, "q_zero_point": 0, "k_zero_point": 255, "v_zero_point": 255},
    ):
        check(inputs, size, **held, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", ["none", "all"])
def test_many_queries(mixed: str) -> None:
    """Thousands of weights: one rounding too many in a scale of theirs turns some byte over."""
    size = (9, 70, 49, 4, 8, 6)
    check(bytes_of(size), size, **parameters(size, mixed), out_scale=0.05)


@pytest.mark.parametrize("mixed", ["none", "bias", "scores"])
@pytest.mark.parametrize("size", [(1, 1, 513, 1, 3, 2), (2, 3, 785, 2, 16, 20), slow((1, 35, 3136, 2, 33, 17))], ids=str)
def test_many_keys(size, mixed: str) -> None:
    """In blocks, the last of which has one key; the largest score is in any of them."""
    held = parameters(size, "all")
    held = {name: held[name] for name in {"none": (), "bias": ("bias",), "scores": ("bias", "mix_scores")}[mixed]}
    inputs = bytes_of(size)
    check(inputs, size, **held, out_scale=0.05)
    inputs[1][:, :-1] = inputs[1][:, -1:] // 2
    check(inputs, size, **held, out_bits=6, out_zero_point=30, q_zero_point=0, v_zero_point=255)


@pytest.mark.parametrize("extreme", [0, 255])
def test_extremes_of_many_keys(extreme: int) -> None:
    size = (1, 2, 1000, 2, 20, 4)
    inputs = [torch.full_like(x, extreme) for x in bytes_of(size)]
    inputs[1][0, 700] = 255 - extreme
    check(inputs, size)
    check(inputs, size, q_zero_point=255 - extreme, k_zero_point=255 - extreme, v_zero_point=255 - extreme)


@pytest.mark.parametrize("extreme", [0, 255])
@pytest.mark.parametrize("mixed", ["none", "all"])
def test_extremes(mixed: str, extreme: int) -> None:
    """The largest sums that are exact, all keys alike, scores far apart."""
    size = (1, 3, 258, 2, 20, 4)
    inputs = [torch.full_like(x, extreme) for x in bytes_of(size)]
    inputs[1][0, 7] = 255 - extreme
    held = {name: 1e4 * x for name, x in parameters(size, mixed).items()}
    for changes in ({}, {"q_zero_point": 255 - extreme, "k_zero_point": 255 - extreme, "v_zero_point": 255 - extreme}):
        check(inputs, size, **held, **changes)


def test_any_strides_and_empty() -> None:
    tokens = random_bytes(2, 5, 7, 24).flatten(1, 2)
    q, k, v = tokens[..., :8], tokens[:, ::2, 8:16], tokens[:, ::2, 16:]
    check([q, k, v.mT.contiguous().mT], (2, 35, 18, 2, 4, 4))
    check([q[:0], k[:0], v[:0]], (0, 35, 18, 2, 4, 4))


def test_many_keys_with_mixed_weights_are_refused() -> None:
    size = (1, 2, 513, 2, 4, 4)
    with pytest.raises(ValueError, match="it takes at most 512 keys where their weights are mixed, got 513"):
        check(bytes_of(size), size, **parameters(size, "weights"))


def test_deep_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="it takes heads of at most 256 channels, got 257"):
        check(bytes_of((1, 2, 2, 1, 257, 3)), (1, 2, 2, 1, 257, 3), q_zero_point=128, k_zero_point=128)
