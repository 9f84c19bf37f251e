"""What the Triton kernels refuse before anything runs: GPUs that are too old, other devices, more pixels than they count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton_checks import DEVICE

from mvit_kernels import ops
from mvit_kernels.ops import triton_support
from mvit_kernels.ops.backend import Choice

Tensor = torch.Tensor


class OnGpu:
    """What `refuse` asks a tensor."""

    is_cuda, is_cpu, device, dtype = True, False, torch.device("cuda", 3), torch.float16


@pytest.fixture
def capabilities(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of GPU 3; nothing of it stays."""
    found = {3: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found[index])
    monkeypatch.setattr(triton_support, "interpreted", lambda: False)
    triton_support.too_old.cache_clear()
    yield found
    triton_support.too_old.cache_clear()


def test_old_devices_are_refused(capabilities: Any) -> None:
    capabilities[3] = (7, 5)
    reason = "expected a GPU of compute capability 8.0 or more, got 7.5"
    assert triton_support.refuse(OnGpu(), (torch.float16,)) == reason  # type: ignore[arg-type]


def test_new_devices_take_what_they_know(capabilities: Any) -> None:
    assert triton_support.refuse(OnGpu(), (torch.float16,)) is None  # type: ignore[arg-type]
    assert triton_support.refuse(OnGpu(), (torch.float32,)) == "it has no kernel for torch.float16"  # type: ignore[arg-type]


def test_every_op_has_a_kernel() -> None:
    assert [choice.op for choice in Choice.every if "triton" not in choice.implementations] == []


def test_more_pixels_than_are_counted_are_refused() -> None:
    """Views of one element: nothing is read, nor written."""
    one = torch.zeros(1, device=DEVICE)
    rows, image = one.expand(2**31, 1), one.expand(2**17, 1, 2**7, 2**7)
    for call in (
        lambda: ops.gemm(rows, one.reshape(1, 1), backend="triton"),
        lambda: ops.layer_norm(rows, one, one, backend="triton"),
        lambda: ops.conv2d(image, one.reshape(1, 1, 1, 1), backend="triton"),
        lambda: ops.depthwise_conv2d(image, one.expand(1, 1, 3, 3), backend="triton"),
        lambda: ops.pool_mixer(image, one, backend="triton"),
        lambda: ops.resize(image, (2, 2), backend="triton"),
    ):
        with pytest.raises(ValueError, match=r"backend 'triton' was requested .*: it has no kernel for 21474.* pixels or rows and more"):
            call()
    assert triton_support.refuse_rows(one.expand(2**30, 1), (torch.float32,)) is None
    assert ops.quantize(one[:0], 0.1, 3, backend="triton").shape == (0,)
