"""Training of an accelerated model on a GPU: the losses are those of the plain model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mvit_kernels as mk

Tensor = torch.Tensor
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
STEPS = 12


def losses(model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype | None) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for step in range(STEPS):
        torch.manual_seed(step)  # for dropout
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss))
    return seen


@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
@pytest.mark.parametrize(("dtype", "limit"), [(None, 0.01), (torch.bfloat16, 0.06)])
def test_the_losses_are_those_of_the_plain_model(name: str, dtype: torch.dtype | None, limit: float) -> None:
    torch.manual_seed(0)
    plain = mk.create_model(name, num_classes=10).cuda()
    fast = mk.create_model(name, num_classes=10).cuda()
    fast.load_state_dict(plain.state_dict())
    assert any(row.backend in ("cuda", "triton") for row in mk.report(mk.accelerate(fast)).rows)
    x, labels = torch.randn(16, 3, 64, 64).cuda(), torch.arange(16).cuda() % 10
    right, ours = losses(plain, x, labels, dtype), losses(fast, x, labels, dtype)
    assert right[-1] < right[0]
    for a, b in zip(ours, right, strict=True):
        assert abs(a - b) <= limit * max(abs(b), 0.5), (ours, right)
