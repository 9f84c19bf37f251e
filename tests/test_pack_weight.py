"""Packed weights: every value comes back, and nothing foreign or damaged is taken."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from q_checks import random_weight
from safetensors.torch import load_file, save_file

from mvit_kernels import ops

SIZES = [(1, 1), (16, 4), (17, 5), (257, 128), (33, 63), (0, 4), (3, 0), (80, 144)]
MOST = {8: 127, 6: 31}


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_value_comes_back(size, bits):
    weight = random_weight(*size, bits=bits)
    packed = ops.pack_weight(weight, bits=bits)
    assert torch.equal(packed.unpack(), weight)
    assert (packed.columns, packed.depth, packed.bits) == (*size, bits)
    wide = weight.to(torch.int64)
    assert torch.equal(packed.sum.to(torch.int64), wide.sum(1))
    assert torch.equal(packed.sum_abs.to(torch.int64), wide.abs().sum(1))


def test_six_bits_take_three_bytes_for_four_values():
    small, large = ops.pack_weight(random_weight(64, 512, bits=6), bits=6), ops.pack_weight(random_weight(64, 512), bits=8)
    beside = 64 + 2 * 4 * 64  # header and sums
    assert large.data.numel() - beside == 64 * 512
    assert small.data.numel() - beside == 64 * 512 * 3 // 4


@pytest.mark.slow
def test_all_quads_of_six_bits():
    """All 63^4 combinations of the four values that share three bytes (-32 is no weight), a slice of the first at a time."""
    values = torch.arange(-31, 32, dtype=torch.int8)
    rest = torch.cartesian_prod(values, values, values)
    for first in values:
        quads = torch.cat([torch.full((rest.shape[0], 1), int(first), dtype=torch.int8), rest], dim=1)
        weight = torch.zeros(quads.shape[0], 16, dtype=torch.int8)
        weight[:, ::4] = quads  # k, k + 4, k + 8, k + 12 share their bytes
        assert torch.equal(ops.pack_weight(weight, bits=6).unpack(), weight)


def test_copies_and_files(tmp_path):
    packed = ops.pack_weight(random_weight(33, 63, bits=6), bits=6)
    save_file({"weight": packed.data}, tmp_path / "w.safetensors")
    torch.save(packed, tmp_path / "w.pt")
    for other in (
        pickle.loads(pickle.dumps(packed)),
        copy.deepcopy(packed),
        ops.PackedWeight(load_file(tmp_path / "w.safetensors")["weight"]),
        torch.load(tmp_path / "w.pt", weights_only=False),
    ):
        assert torch.equal(other.data, packed.data)
        assert torch.equal(other.unpack(), packed.unpack())


MESSAGES = {0: "begins with", 8: "version 1", 12: "bytes", 16: "bytes", 24: "bytes", 32: "bytes", 70: "damaged", -1: "damaged"}


@pytest.mark.parametrize(("byte", "message"), MESSAGES.items())
def test_refuses_what_is_foreign_or_damaged(byte, message):
    data = ops.pack_weight(random_weight(20, 37)).data.clone()
    data[byte] ^= 0x40
    with pytest.raises(ValueError, match=message):
        ops.PackedWeight(data)


def test_refuses_what_is_truncated():
    data = ops.pack_weight(random_weight(20, 37)).data
    for some in (data[:10], data[:-1], torch.cat([data, data[:1]])):
        with pytest.raises(ValueError, match="PackedWeight: data: expected"):
            ops.PackedWeight(some)
    with pytest.raises(TypeError, match="expected dtype uint8"):
        ops.PackedWeight(data.float())


@pytest.mark.parametrize(
    ("weight", "bits", "error", "message"),
    [
        (torch.zeros(2, 3), 8, TypeError, "weight: expected dtype int8"),
        (torch.zeros(2, dtype=torch.int8), 8, ValueError, "weight: expected 2 dimensions"),
        (torch.full((2, 3), -128, dtype=torch.int8), 8, ValueError, r"values in \[-127, 127\], got \[-128"),
        (torch.full((2, 3), 32, dtype=torch.int8), 6, ValueError, r"values in \[-31, 31\], got \[32"),
        (torch.zeros(2, 3, dtype=torch.int8), 7, ValueError, "bits: expected 8 or 6, got 7"),
        (torch.full((1, 66312), 127, dtype=torch.int8), 8, ValueError, "K = 66312"),
        ([1], 8, TypeError, "weight: expected a tensor"),
    ],
)
def test_bad_input(weight, bits, error, message):
    with pytest.raises(error, match=f"pack_weight: .*{message}"):
        ops.pack_weight(weight, bits=bits)
