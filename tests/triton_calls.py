"""Calls of every op with Triton kernels, at shapes of the networks: what is compiled ahead of time."""

from __future__ import annotations

import functools

import torch

from mvit_kernels import ops

use = functools.partial(functools.partial, backend="triton")


def image(*size: int, dtype: torch.dtype = torch.float16, channels_last: bool = True) -> torch.Tensor:
    return torch.zeros(size, dtype=dtype).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def separable_attention_calls() -> dict[str, object]:
    calls = {}
    for channels_last in (True, False):
        for dtype in (torch.float16, torch.float32):
            qkv, dy = (image(2, channels, 32, 32, dtype=dtype, channels_last=channels_last) for channels in (257, 128))
            name = f"separable_attention {dtype} {'NHWC' if channels_last else 'NCHW'}"
            calls[name] = use(ops.separable_attention, qkv, (2, 2))
            calls[f"{name} backward"] = functools.partial(torch.ops.mvit_kernels.separable_attention_backward, dy, qkv, (2, 2), "triton")
    return calls


def patch_calls() -> dict[str, object]:
    calls = {}
    for channels_last in (True, False):
        x, name = image(2, 128, 32, 32, channels_last=channels_last), "NHWC" if channels_last else "NCHW"
        calls[f"unfold_patches {name}"] = use(ops.unfold_patches, x)
        calls[f"fold_patches {name}"] = use(ops.fold_patches, ops.unfold_patches(x, backend="reference"), (32, 32))
    return calls


def norm_calls() -> dict[str, object]:
    calls, weight = {}, torch.zeros(128, dtype=torch.float16)
    backward = torch.ops.mvit_kernels.group_norm_backward
    for channels_last in (True, False):
        x, name = image(2, 128, 32, 32, channels_last=channels_last), "NHWC" if channels_last else "NCHW"
        calls[f"group_norm {name}"] = use(ops.group_norm, x, weight, weight)
        calls[f"group_norm {name} backward"] = functools.partial(backward, x, x, weight, 1e-5, "triton")
    for channels in (144, 8192):
        x, weight = torch.zeros(512, channels, dtype=torch.float16), torch.zeros(channels)
        calls[f"layer_norm {channels}"] = use(ops.layer_norm, x, weight, weight)
        backward = functools.partial(torch.ops.mvit_kernels.layer_norm_backward, x, x, weight, 1e-5, "triton")
        calls[f"layer_norm {channels} backward"] = backward
    return calls


def patch_attention_calls() -> dict[str, object]:
    calls = {}
    for depth, dtype, channels_last in (
        (16, torch.float16, True), (36, torch.bfloat16, True), (60, torch.float16, False), (36, torch.float32, True),
        (256, torch.float16, True),
    ):  # fmt: skip
        qkv, dy = (image(1, channels * depth, 32, 32, dtype=dtype, channels_last=channels_last) for channels in (12, 4))
        name = f"patch_attention {depth} {dtype} {'NHWC' if channels_last else 'NCHW'}"
        calls[name] = use(ops.patch_attention, qkv, 4)
        backward = functools.partial(torch.ops.mvit_kernels.patch_attention_backward, dy, qkv, 4, (2, 2), None, "triton")
        calls[f"{name} backward"] = backward
    return calls


CALLS = {**separable_attention_calls(), **patch_calls(), **norm_calls(), **patch_attention_calls()}
