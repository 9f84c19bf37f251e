"""inverted_residual on the blocks of MobileViTv2-1.0 and MobileViT-S at 256 x 256, beside torch's convolutions (oneDNN)."""

from __future__ import annotations

import functools

import pytest
import torch

from mvit_kernels import ops, reference

# C, E, O, side of the input map, stride.
BLOCKS = [
    (32, 64, 64, 128, 1), (64, 128, 128, 128, 2), (128, 256, 128, 64, 1), (128, 256, 256, 64, 2), (256, 512, 384, 32, 2),
    (384, 768, 512, 16, 2), (16, 64, 32, 128, 1), (32, 128, 64, 128, 2), (64, 256, 64, 64, 1), (64, 256, 96, 64, 2),
    (96, 384, 128, 32, 2), (128, 512, 160, 16, 2),
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("sizes", BLOCKS, ids=lambda sizes: "-".join(map(str, sizes)))
def test_forward(in_turn, native, sizes, batch):
    channels, hidden, columns, side, stride = sizes
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    weights = [
        torch.randn(hidden, channels, 1, 1) / channels**0.5, torch.randn(hidden), torch.randn(hidden, 1, 3, 3) / 3, torch.randn(hidden),
        torch.randn(columns, hidden, 1, 1) / hidden**0.5, torch.randn(columns),
    ]  # fmt: skip
    settings = {"stride": stride, "residual": stride == 1 and channels == columns}
    cpu = functools.partial(ops.inverted_residual, x, *weights, **settings, backend="cpu")
    last = [each.to(memory_format=torch.channels_last) if each.ndim == 4 else each for each in weights]
    plain = functools.partial(reference.inverted_residual, x, *last, **settings)
    torch.testing.assert_close(cpu(), plain(), rtol=1e-3, atol=1e-4)
    places = side**2 // stride**2
    operations = 2 * batch * hidden * (side**2 * channels + places * (9 + columns))
    group = f"{channels}-{hidden}-{columns} {side}x{side} stride {stride} batch {batch}"
    in_turn(group, {"cpu": cpu, "torch": plain}, calls=5, operations=operations)
