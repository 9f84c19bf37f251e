"""What the Triton kernels refuse before anything runs: GPUs that are too old, other devices, more pixels than they count."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from q_checks import byte_map, random_weight
from triton_checks import DEVICE, randn

from mvit_kernels import ops
from mvit_kernels.ops import triton_support
from mvit_kernels.ops.backend import Choice
from mvit_kernels.ops.qpatch_attention import choose as choose_qpatch
from mvit_kernels.ops.qseparable_attention import choose_context, choose_gate

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


def far_calls() -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """Calls of the ops whose kernels have offsets in 32 bits where these suffice, with the module that decides about it."""
    image, byte = randn(2, 12, 6, 4, fmt="nhwc"), byte_map(2, 12, 6, 4).to(DEVICE)
    scales = {"a_scale": 0.1, "a_zero_point": 3}
    out = {"out_scale": 0.05, "out_zero_point": 7}
    settings: dict[str, Any] = {**scales, "w_scale": 0.02, "out_dtype": torch.uint8, **out, "backend": "triton"}
    pixels, table = byte.permute(0, 2, 3, 1), ops.exponential_table(0.1).to(DEVICE)
    heads = {"q_scale": 0.1, "q_zero_point": 3, "k_scale": 0.1, "v_scale": 0.1, "v_zero_point": 3}
    filters = ops.pack_weight(random_weight(10, 12, 3, 3))
    block = [randn(*size) for size in ((12,), (12,), (25, 12), (25,), (12, 12), (12,))]
    calls: dict[str, tuple[str, Callable[[], Tensor]]] = {
        "conv2d": ("conv2d", partial(ops.conv2d, image, randn(10, 12, 3, 3), second=None, stride=2)),
        "conv2d, two maps": ("conv2d", partial(ops.conv2d, image, randn(10, 24, 3, 3), second=image)),
        "conv2d of an image": ("conv2d", partial(ops.conv2d, randn(2, 3, 6, 4), randn(10, 3, 3, 3), stride=2)),
        "depthwise_conv2d": ("depthwise_conv2d", partial(ops.depthwise_conv2d, image, randn(24, 1, 3, 3), stride=2)),
        "separable_attention_block": (
            "separable_attention_block", partial(ops.separable_attention_block, image, *block, patch_size=(2, 2)),
        ),
        "unfold_patches": ("patches", partial(ops.unfold_patches, image, (2, 2))),
        "fold_patches": ("patches", partial(ops.fold_patches, ops.unfold_patches(image, (2, 2), backend="reference"), (6, 4), (2, 2))),
        "qpool_mixer": ("qpool_mixer", partial(ops.qpool_mixer, byte, randn(12), **scales, **out)),
        "qseparable_context": (
            "qseparable_attention",
            partial(ops.qseparable_context, pixels[..., 0], pixels[..., 1:], table, x_scale=0.1, x_zero_point=3, **out),
        ),
        "qseparable_gate": (
            "qseparable_attention", partial(ops.qseparable_gate, pixels[..., 1:], randn(2, 4, 11), v_scale=0.1, v_zero_point=3, **out),
        ),
        "qpatch_attention": ("qpatch_attention", partial(ops.qpatch_attention, pixels, 2, **heads, **out)),
        "qresize": ("resize", partial(ops.qresize, byte, (5, 9))),
    }  # fmt: skip
    wide = random_weight(36, 1, 3, 3)
    calls = {name: (module, partial(call, backend="triton")) for name, (module, call) in calls.items()}
    calls["qconv2d"] = "qgemm", partial(ops.qconv2d, byte, filters, kernel_size=3, stride=2, **settings)
    calls["qdepthwise_conv2d"] = "qdepthwise_conv2d", partial(ops.qdepthwise_conv2d, byte, wide, **settings)
    return calls


@pytest.mark.parametrize("name", far_calls())
def test_offsets_beyond_32_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are computed otherwise and are the same."""
    module, call = far_calls()[name]
    near, asked = call(), []
    kernels = importlib.import_module(f"mvit_kernels.triton_kernels.{module}")

    def far(*_: object) -> bool:
        asked.append(name)
        return True

    monkeypatch.setattr(kernels, "_far" if module == "qgemm" else "far", far)
    assert torch.equal(call(), near)
    assert asked


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
        lambda: ops.resize(one.expand(1, 1, 1, 1), (2**16, 2**15), backend="triton"),
        lambda: ops.qresize(one.byte().expand(1, 1, 1, 1), (2**16, 2**15), backend="triton"),
        lambda: ops.group_norm(image, one, one, backend="triton"),
        lambda: ops.unfold_patches(image, backend="triton"),
        lambda: ops.fold_patches(one.expand(2**17, 1, 4, 2**12), (128, 128), backend="triton"),
        lambda: ops.patch_attention(image.expand(-1, 3, -1, -1), 1, backend="triton"),
        lambda: ops.separable_attention(image.expand(-1, 3, -1, -1), (2, 2), backend="triton"),
    ):
        with pytest.raises(ValueError, match=r"backend 'triton' was requested .*: it has no kernel for 21474.* pixels or rows and more"):
            call()
    assert triton_support.refuse_rows(one.expand(2**30, 1), (torch.float32,)) is None
    for choice, size in (
        (choose_context, (2**17, 2**7, 2**7, 1)),
        (choose_gate, (2**17, 2**7, 2**7, 1)),
        (choose_qpatch, (2**17, 2**7, 2**7, 3)),
    ):
        refuse = choice.implementations["triton"].refuse
        assert "pixels or rows and more, got 2147483648" in str(refuse(one.byte().expand(size), 1))
        assert refuse(one.byte().expand(2**14, *size[1:3], 2**12 * 3), 64) is None  # of as many values
    assert ops.quantize(one[:0], 0.1, 3, backend="triton").shape == (0,)
