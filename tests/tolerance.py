"""The float rule: the error against float64 is at most twice that of plain torch in the same dtype, plus a small absolute cap."""

from __future__ import annotations

import torch

# A few roundings of the dtype, relative to the largest value of the exact result: plain torch may by luck be exact where we are not.
_ROUNDINGS = {torch.float32: 4 * 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def assert_float_rule(actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    assert actual.shape == exact.shape
    assert exact.dtype == torch.float64
    if exact.numel() == 0:
        return
    ours, theirs = (actual.double() - exact).abs().max().item(), (plain.double() - exact).abs().max().item()
    if exact.isfinite().all() and not plain.isfinite().all():
        theirs = 0.0  # torch's own bfloat16 convolutions do that on some processors: it is no measure then
    cap = _ROUNDINGS[actual.dtype] * exact.abs().max().item()
    assert ours <= 2 * theirs + cap, f"error {ours:.3g}, plain torch has {theirs:.3g}, cap {cap:.3g}"
