"""Calls of every op with Triton kernels, at shapes of the networks: what is compiled ahead of time, and captured in CUDA graphs."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mvit_kernels import ops, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
use = functools.partial(functools.partial, backend="triton")


def image(*size: int, dtype: torch.dtype = torch.float16, channels_last: bool = True) -> torch.Tensor:
    x = torch.randn(size) if dtype.is_floating_point else torch.randint(0, 256, size)
    return x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def ones(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(size, dtype=dtype, device=DEVICE)


def random_weight(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """That keeps sums of 16-bit floats finite."""
    return (torch.randn(size) / size[-1] ** 0.5).to(DEVICE, dtype)


def separable_attention_calls() -> dict[str, Any]:
    calls = {}
    for channels_last in (True, False):
        for dtype in (torch.float16, torch.float32):
            qkv, dy = (image(2, channels, 32, 32, dtype=dtype, channels_last=channels_last) for channels in (257, 128))
            name = f"separable_attention {dtype} {'NHWC' if channels_last else 'NCHW'}"
            calls[name] = use(ops.separable_attention, qkv, (2, 2))
            calls[f"{name} backward"] = functools.partial(torch.ops.mvit_kernels.separable_attention_backward, dy, qkv, (2, 2), "triton")
    return calls


def patch_calls() -> dict[str, Any]:
    calls = {}
    for channels_last in (True, False):
        x, name = image(2, 128, 32, 32, channels_last=channels_last), "NHWC" if channels_last else "NCHW"
        calls[f"unfold_patches {name}"] = use(ops.unfold_patches, x)
        calls[f"fold_patches {name}"] = use(ops.fold_patches, ops.unfold_patches(x, backend="reference"), (32, 32))
    return calls


def norm_calls() -> dict[str, Any]:
    calls, weight = {}, ones(128, dtype=torch.float16)
    backward = torch.ops.mvit_kernels.group_norm_backward
    for channels_last in (True, False):
        x, name = image(2, 128, 32, 32, channels_last=channels_last), "NHWC" if channels_last else "NCHW"
        calls[f"group_norm {name}"] = use(ops.group_norm, x, weight, weight)
        calls[f"group_norm {name} backward"] = functools.partial(backward, x, x, weight, 1e-5, "triton")
    for channels in (144, 8192):
        x, weight = ones(512, channels, dtype=torch.float16), ones(channels)
        calls[f"layer_norm {channels}"] = use(ops.layer_norm, x, weight, weight)
        backward = functools.partial(torch.ops.mvit_kernels.layer_norm_backward, x, x, weight, 1e-5, "triton")
        calls[f"layer_norm {channels} backward"] = backward
    return calls


def patch_attention_calls() -> dict[str, Any]:
    calls = {}
    for depth, side, dtype, channels_last in (
        (16, 32, torch.float16, True), (36, 32, torch.bfloat16, True), (60, 32, torch.float16, False), (36, 32, torch.float32, True),
        (128, 32, torch.float16, True), (60, 8, torch.float16, True),
    ):  # fmt: skip
        qkv, dy = (image(1, channels * depth, side, side, dtype=dtype, channels_last=channels_last) for channels in (12, 4))
        name = f"patch_attention {depth}x{side} {dtype} {'NHWC' if channels_last else 'NCHW'}"
        calls[name] = use(ops.patch_attention, qkv, 4)
        backward = functools.partial(torch.ops.mvit_kernels.patch_attention_backward, dy, qkv, 4, (2, 2), None, "triton")
        calls[f"{name} backward"] = backward
    return calls


QUANTIZATION = {"a_scale": 0.05, "a_zero_point": 3, "w_scale": 0.01, "backend": "triton"}
BYTES = {"activation": "silu", "out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 7}


def avg_pool_calls() -> dict[str, Any]:
    """Heads, and more pixels than a tile has."""
    calls = {}
    for channels, side, dtype, channels_last in (
        (640, 8, torch.float16, True), (448, 7, torch.bfloat16, True), (96, 56, torch.float32, True), (640, 8, torch.float16, False),
        (65, 33, torch.float32, False),
    ):  # fmt: skip
        x = image(2, channels, side, side, dtype=dtype, channels_last=channels_last)
        name = f"avg_pool {tuple(x.shape)} {dtype} {'NHWC' if channels_last else 'NCHW'}"
        calls[name] = use(ops.avg_pool, x)
        moments = ones(2, 2, dtype=torch.float64)
        calls[f"{name}, norm"] = use(ops.avg_pool, x, moments=moments, activation="hard_swish")
    return calls


def resize_calls() -> dict[str, Any]:
    """EfficientFormerV2's way back from half the pixels; fewer pixels, by corners."""
    calls = {}
    for channels, side, out, corners, activation, dtype in (
        (1024, 7, 14, False, "gelu", torch.float16), (384, 14, 28, False, "gelu", torch.bfloat16), (128, 31, 32, True, None, torch.float16),
        (65, 16, 9, True, "silu", torch.float32),
    ):  # fmt: skip
        call = use(ops.resize, image(2, channels, side, side, dtype=dtype), (out, out), align_corners=corners, activation=activation)
        calls[f"resize {channels} {side} to {out} {dtype}"] = call
    return calls


def integer_calls() -> dict[str, Any]:
    calls = {}
    for rows, columns, depth, bits, how in (
        (16384, 128, 128, 8, BYTES), (16384, 128, 128, 6, BYTES), (1024, 257, 128, 8, BYTES), (64, 256, 128, 6, BYTES),
        (8, 1000, 640, 8, {"out_dtype": torch.float16}),
    ):  # fmt: skip
        weight = ops.pack_weight(torch.zeros(columns, depth, dtype=torch.int8), bits=bits)
        product = ops.prepare_qgemm(weight, bias=torch.zeros(columns), **QUANTIZATION, **how)
        calls[f"qgemm {rows}x{columns}x{depth}, {bits} bits"] = functools.partial(product, ones(rows, depth, dtype=torch.uint8))
    x = image(8, 96, 32, 32, dtype=torch.uint8)
    for kernel in (1, 3):
        weight = ops.pack_weight(torch.zeros(96, 96, kernel, kernel, dtype=torch.int8))
        convolution = ops.prepare_qconv2d(weight, bias=torch.zeros(96), kernel_size=kernel, **QUANTIZATION, **BYTES)
        calls[f"qconv2d {kernel}x{kernel}"] = functools.partial(convolution, x)
    weight = torch.zeros(96, 1, 3, 3, dtype=torch.int8)
    calls["qdepthwise_conv2d"] = functools.partial(ops.prepare_qdepthwise_conv2d(weight, bias=torch.zeros(96), **QUANTIZATION, **BYTES), x)
    curved = {**BYTES, "activation": None, "table": reference.activation_curve("silu", 0.1, 7)}
    curve = ops.prepare_qdepthwise_conv2d(weight, bias=torch.zeros(96), **QUANTIZATION, **curved)
    calls["curve qdepthwise_conv2d"] = functools.partial(curve, x)
    wide = torch.zeros(384, 1, 3, 3, dtype=torch.int8)
    several = ops.prepare_qdepthwise_conv2d(wide, bias=torch.zeros(384), stride=2, **QUANTIZATION, **curved)
    calls["qdepthwise_conv2d times 4"] = functools.partial(several, x)
    matrix = ops.pack_weight(torch.zeros(128, 128, dtype=torch.int8))
    for rows in (16384, 1024):
        product = ops.prepare_qgemm(matrix, bias=torch.zeros(128), **QUANTIZATION, **curved)
        calls[f"curve qgemm {rows}"] = functools.partial(product, ones(rows, 128, dtype=torch.uint8))
    floats = {**QUANTIZATION, "bias": torch.zeros(96)}
    product = ops.prepare_qconv2d(ops.pack_weight(torch.zeros(96, 96, 1, 1, dtype=torch.int8)), kernel_size=1, **floats)
    filters = ops.prepare_qdepthwise_conv2d(torch.zeros(96, 1, 3, 3, dtype=torch.int8), **floats)
    for name, layer in (("1x1", product), ("depthwise", filters)):
        fused = ops.prepare_qconv2d_dynamic_relu(layer, out_scale=0.1, out_zero_point=7, backend="triton")
        for batch in (2, 16):
            call = functools.partial(fused, image(batch, 96, 28, 28, dtype=torch.uint8), ones(batch, 192))
            calls[f"qconv2d_dynamic_relu {name} {batch}"] = call
    calls["quantize"] = use(ops.quantize, image(2, 96, 32, 32), 0.1, 3)
    calls["quantize, channels"] = use(ops.quantize, image(2, 96, 32, 32), ones(96), ones(96, dtype=torch.int32))
    for name, picture, scale in (("one scale", image(2, 3, 64, 64, channels_last=False), 0.1), ("channels", x.float(), ones(96))):
        call = use(ops.quantize, picture.contiguous(), scale, 3, channels_last=True)
        calls[f"quantize to channels_last, {name}"] = call
    calls["dequantize"] = use(ops.dequantize, x, 0.1, 3, torch.float16)
    calls["quantize_rows"] = use(ops.quantize_rows, ones(1024, 256, dtype=torch.float16))
    return calls


def integer_map_calls() -> dict[str, Any]:
    """What runs between the products of quantized networks."""
    calls = {}
    x, table = image(2, 96, 32, 32, dtype=torch.uint8), ones(256, dtype=torch.uint8)
    to = {"out_scale": 0.05, "out_zero_point": 7}
    beside = {"a_scale": 0.1, "a_zero_point": 3, "b_scale": 0.2, "b_zero_point": 130}
    for activation in (None, "silu"):
        calls[f"qadd {activation}"] = use(ops.qadd, x, x, activation=activation, **beside, **to)
    calls["qadd far"] = use(ops.qadd, x, x, **{**beside, "a_zero_point": -(2**31)}, **to)
    calls["qlookup"] = use(ops.qlookup, x, table)
    calls["qavg_pool"] = use(ops.qavg_pool, x, a_scale=0.1, a_zero_point=3, **to)
    calls["qavg_pool NCHW"] = use(ops.qavg_pool, x.contiguous(), a_scale=0.1, a_zero_point=3, out_dtype=torch.float32)
    for size, align_corners in (((16, 16), False), ((33, 33), True)):
        calls[f"qresize {size}"] = use(ops.qresize, x, size, align_corners=align_corners)
    norm = {"scale": 0.01, "out_scale": 0.05, "out_zero_point": 121}
    for rows, depth, groups in ((1024, 144, None), (1024, 512, None), (2048, 64, 2), (128, 128, 2), (64, 128, 1)):
        stream = ones(rows, depth, dtype=torch.int16)
        calls[f"qnorm {rows}x{depth} in {groups}"] = use(ops.qnorm, stream, groups=groups, **norm)
    affine = {"weight": ones(64), "bias": ones(64)}
    for groups in (None, 2, 1):
        calls[f"qnorm with weight, {groups}"] = use(ops.qnorm, ones(512, 64, dtype=torch.int16), groups=groups, **affine, **norm)
    calls["qnorm with sums"] = use(ops.qnorm, stream, ones(1, 2, dtype=torch.int64), **norm)
    weight = ops.pack_weight(torch.zeros(64, 128, dtype=torch.int8))
    behind = {"scale": 0.01, "a_scale": 0.05, "a_zero_point": 121, "w_scale": 0.01, "backend": "triton", **BYTES}
    calls["qnorm_gemm"] = functools.partial(ops.prepare_qnorm_gemm(weight, **behind), stream)
    collecting = ops.prepare_qgemm(weight, out_dtype=torch.int16, out_scale=0.1, **QUANTIZATION)
    calls["qgemm collect"] = functools.partial(collecting, ones(64, 128, dtype=torch.uint8), collect=2)
    calls["quantize_stream"] = use(ops.quantize_stream, image(2, 96, 32, 32), 0.1)
    calls["dequantize_stream"] = use(ops.dequantize_stream, stream, 0.1)
    projected = image(2, 97, 32, 32, dtype=torch.uint8).permute(0, 2, 3, 1)  # scores and values side by side
    scores, pixels, table = projected[..., 0], x.permute(0, 2, 3, 1), ops.exponential_table(0.1).to(DEVICE)
    for how in ({}, to):
        calls[f"qseparable_context {how}"] = use(ops.qseparable_context, scores, pixels, table, x_scale=0.1, x_zero_point=3, **how)
    points = {"q_scale": 0.1, "q_zero_point": 3, "k_scale": 0.1, "v_scale": 0.1, "v_zero_point": 3}
    for batch, side, depth in ((1, 32, 36), (1, 16, 48), (1, 8, 60), (8, 32, 16), (8, 32, 60), (2, 64, 36)):
        qkv = image(batch, 12 * depth, side, side, dtype=torch.uint8).permute(0, 2, 3, 1)
        calls[f"qpatch_attention {batch} {side} {depth}"] = use(ops.qpatch_attention, qkv, 4, **points, **to)
    names = [f"{each}_{what}" for each in ("q", "k", "v", "out") for what in ("scale", "zero_point")]
    heads = {"scale": 0.2, "backend": "triton", **dict(zip(names, (0.1, 3) * 4, strict=True))}
    mixed = {"bias": ones(8, 49, 49).cpu(), "mix_scores": ones(8, 8).cpu(), "mix_weights": ones(8, 8).cpu(), "mix_bias": ones(8).cpu()}
    for batch, width, more in ((1, 128, {"bias": mixed["bias"]}), (16, 128, {}), (1, 128, mixed), (16, 32, mixed)):
        q, v = ones(batch, 49, 256, dtype=torch.uint8), ones(batch, 49, 8 * width, dtype=torch.uint8)
        call = functools.partial(ops.prepare_qattention(8, **heads, **more), q, q, v)
        calls[f"qattention {batch} {width} {' '.join(more)}"] = call
    for batch, channels, side in ((1, 192, 28), (64, 24, 56), (1, 512, 28)):  # more keys than registers hold
        tokens, pixels = (ones(batch, size, channels, dtype=torch.uint8) for size in (6, side * side))
        call = functools.partial(ops.prepare_qattention(2, **heads), tokens, pixels, pixels)
        calls[f"qattention {channels} of {side * side} keys"] = call
    mixer = ops.prepare_qpool_mixer(torch.ones(96), a_scale=0.1, a_zero_point=3, backend="triton", **to)
    calls["qpool_mixer"] = functools.partial(mixer, x)
    calls["qseparable_gate"] = use(ops.qseparable_gate, projected[..., 1:], ones(2, 4, 96), v_scale=0.1, v_zero_point=3, **to)
    return calls


def separable_attention_block_calls() -> dict[str, Any]:
    """Large tiles, of many images, and small ones; gradients, too, of which some are two launches."""
    calls, backward = {}, torch.ops.mvit_kernels.separable_attention_block_backward
    for batch, dim, side, dtype in (
        (2, 64, 32, torch.float16), (2, 128, 32, torch.bfloat16), (32, 128, 32, torch.float16), (64, 192, 16, torch.float16),
        (256, 256, 8, torch.float16), (64, 256, 32, torch.float16), (64, 384, 16, torch.float16), (2, 512, 8, torch.float16),
        (2, 128, 32, torch.float32),
    ):  # fmt: skip
        sizes = (dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,)
        inputs = [image(batch, dim, side, side, dtype=dtype), *(random_weight(*size, dtype=dtype) for size in sizes)]
        call = use(ops.separable_attention_block, *inputs, patch_size=(2, 2), collect=batch > 2)
        calls[f"separable_attention_block {batch}x{dim}x{side} {dtype}"] = call
        moments = None if batch == 2 else ones(batch, 2, dtype=torch.float64)
        settings = moments, 1e-5, (2, 2), "triton"
        name = f"separable_attention_block backward {batch}x{dim}x{side} {dtype}"
        calls[name] = functools.partial(backward, inputs[0], *inputs, *settings)
    return calls


def product_calls() -> dict[str, Any]:
    """Tiles of many rows and of few, all norms, and collected moments."""
    calls = {}
    for rows, columns, depth, dtype in (
        (65536, 128, 64, torch.float16), (65536, 432, 144, torch.bfloat16), (4096, 64, 128, torch.float16), (64, 512, 256, torch.float16),
        (1, 1000, 640, torch.float16), (64, 720, 240, torch.bfloat16), (1024, 128, 64, torch.float32),
    ):  # fmt: skip
        a, weight = ones(rows, depth, dtype=dtype), ones(columns, depth, dtype=dtype)
        settings = {"layer_norm": True} if columns > 2 * depth else {"residual": ones(rows, columns, dtype=dtype)}
        calls[f"gemm {rows}x{columns}x{depth} {dtype}"] = use(ops.gemm, a, weight, ones(columns), activation="silu", **settings)
    a, weight = ones(4096, 128, dtype=torch.float16), ones(256, 128, dtype=torch.float16)
    moments = ones(4, 2, dtype=torch.float64)
    calls["gemm norm, collect"] = use(ops.gemm, a, weight, moments=moments, collect=4, activation="gelu")
    calls["gemm collect in a pass"] = use(ops.gemm, a[:4090], weight, collect=5)
    for rows, columns, depth in ((17000, 432, 144), (17000, 576, 192), (17000, 720, 240), (17000, 256, 128)):  # rows that stay in registers
        a, weight = ones(rows, depth, dtype=torch.float16), ones(columns, depth, dtype=torch.float16)
        calls[f"gemm layer norm {columns}x{depth}"] = use(ops.gemm, a, weight, ones(columns), layer_norm=True)
    calls["gemm norm of many rows"] = use(ops.gemm, a, weight, moments=torch.ones(4, 2, dtype=torch.float64, device=DEVICE))
    calls["gemm second"] = use(ops.gemm, a, ones(64, 256, dtype=torch.float16), second=a)
    return calls


def convolution_calls() -> dict[str, Any]:
    calls = {}
    for batch, channels, beside, columns, side, kernel, stride, dtype in (
        (2, 3, 0, 32, 256, 3, 2, torch.float16), (64, 3, 0, 16, 256, 3, 2, torch.bfloat16), (1, 96, 0, 96, 32, 3, 1, torch.float16),
        (64, 96, 96, 96, 32, 3, 1, torch.bfloat16), (1, 160, 160, 160, 8, 3, 1, torch.float16), (16, 64, 0, 128, 32, 1, 2, torch.float16),
        (1, 16, 16, 16, 8, 3, 1, torch.float32), (1, 3, 0, 16, 64, 3, 2, torch.float32),
    ):  # fmt: skip
        x = image(batch, channels, side, side, dtype=dtype, channels_last=channels > 3)
        weight = ones(columns, channels + beside, kernel, kernel, dtype=dtype)
        call = use(ops.conv2d, x, weight, ones(columns), stride=stride, activation="silu")
        name = f"conv2d {tuple(x.shape)}, {beside} to {columns}, {kernel}x{kernel} {dtype}"
        calls[name] = functools.partial(call, second=image(batch, beside, side, side, dtype=dtype)) if beside else call
    return calls


def depthwise_conv2d_calls() -> dict[str, Any]:
    calls = {}
    for batch, channels, side, stride, dtype in (
        (1, 256, 128, 1, torch.float16), (16, 128, 128, 2, torch.bfloat16), (1, 512, 8, 1, torch.float16), (1, 512, 16, 2, torch.float16),
        (1, 64, 32, 1, torch.float32), (2, 24, 16, 1, torch.float16),
    ):  # fmt: skip
        x, weight = image(batch, channels, side, side, dtype=dtype), ones(channels, 1, 3, 3)
        calls[f"depthwise_conv2d {tuple(x.shape)}, {stride} {dtype}"] = use(
            ops.depthwise_conv2d, x, weight, ones(channels), stride=stride, activation="silu"
        )
    return calls


def relative_calls() -> dict[str, Any]:
    """What EfficientFormer, its V2 and Mobile-Former have: attention with bias and with mixed heads, few queries of many keys and many of
    few, several filters for each channel, and what is done to every value."""
    calls = {}
    for batch, queries, keys, heads, depth, width, mixed, dtype in (
        (1, 49, 49, 8, 32, 128, "bias", torch.float16), (64, 49, 49, 8, 32, 128, "bias", torch.bfloat16),
        (1, 49, 196, 8, 16, 64, "all", torch.float16), (64, 49, 49, 8, 32, 128, "all", torch.bfloat16),
        (1, 4, 3136, 2, 8, 8, "none", torch.float16), (16, 784, 4, 2, 16, 16, "none", torch.float16),
        (2, 196, 4, 2, 44, 44, "none", torch.bfloat16), (1, 4, 49, 2, 120, 120, "none", torch.float16),
        (2, 300, 300, 2, 128, 128, "bias", torch.float16),
        (1, 49, 49, 8, 32, 128, "all", torch.float32), (1, 4, 3136, 2, 120, 120, "none", torch.float32),
    ):  # fmt: skip
        tokens = [ones(batch, size, heads * each, dtype=dtype) for size, each in ((queries, depth), (keys, depth), (keys, width))]
        more = {"bias": ones(heads, queries, keys)} if mixed != "none" else {}
        if mixed == "all":
            more |= {"mix_scores": ones(heads, heads), "mix_weights": ones(heads, heads), "mix_bias": ones(heads)}
        call = use(ops.attention, *tokens, heads, **more)
        calls[f"attention {batch} {queries} {keys} {depth} {width} {mixed} {dtype}"] = call
        ended = use(call, residual=ones(batch, queries, heads * width, dtype=dtype), activation="gelu")
        calls[f"attention {batch} {queries} {keys} {depth} {width} {mixed} {dtype}, residual"] = ended
    for channels, times, dtype in ((16, 6, torch.float16), (88, 6, torch.bfloat16), (12, 4, torch.float32)):
        x, wide = image(2, channels, 28, 28, dtype=dtype), times * channels
        call = use(ops.depthwise_conv2d, x, ones(wide, 1, 3, 3), ones(wide), stride=2)
        calls[f"depthwise_conv2d {channels} times {times} {dtype}"] = call
        calls[f"dynamic_relu {channels} {dtype}"] = use(ops.dynamic_relu, x, ones(2, 2 * channels, dtype=dtype))
        behind = use(ops.conv2d_dynamic_relu, x, ones(wide, 1, 3, 3), ones(wide), ones(2, 2 * wide, dtype=dtype), stride=2)
        calls[f"conv2d_dynamic_relu {channels} times {times} {dtype}"] = behind
        for batch, side in ((2, 28), (64, 56)):
            pixels, u = image(batch, channels, side, side, dtype=dtype), ones(batch, 2 * wide, dtype=dtype)
            call = use(ops.conv2d_dynamic_relu, pixels, ones(wide, channels, 1, 1), ones(wide), u)
            calls[f"conv2d_dynamic_relu {batch} {channels} to {wide} {dtype}"] = call
        calls[f"pool_mixer {channels} {dtype}"] = use(ops.pool_mixer, x, ones(channels))
        calls[f"hard_gate {dtype}"] = use(ops.hard_gate, ones(2, 192, dtype=dtype), ones(2, 192, dtype=dtype))
    return calls


def feed_forward_calls() -> dict[str, Any]:
    """Channels of one power of two and of two, tiles of many pixels and of few, two launches."""
    calls = {}
    for batch, dim, side, dtype in (
        (16, 64, 32, torch.float16), (64, 128, 32, torch.float16), (1, 128, 32, torch.bfloat16), (64, 144, 32, torch.bfloat16),
        (256, 192, 16, torch.float16), (256, 240, 8, torch.float16), (64, 256, 32, torch.float16), (64, 384, 16, torch.float16),
        (128, 512, 16, torch.float16), (1, 256, 8, torch.float16), (1, 128, 32, torch.float32),
    ):  # fmt: skip
        x = image(batch, dim, side, side, dtype=dtype)
        sizes = (dim,), (dim,), (2 * dim, dim), (2 * dim,), (dim, 2 * dim), (dim,)
        parameters = [random_weight(*size, dtype=dtype) for size in sizes]
        in_v1 = dim in (144, 192, 240)  # whose norm is of a pixel, not of an image
        settings = {"norm": "layer"} if in_v1 else {"moments": ones(batch, 2, dtype=torch.float64), "collect": True}
        calls[f"feed_forward {tuple(x.shape)} {dtype}"] = use(ops.feed_forward, x, *parameters, **settings)
    backward = torch.ops.mvit_kernels.feed_forward_backward
    of_norm = ones(1, 2, dtype=torch.float64), 1e-5, "group", "silu", "triton"  # whose gradient is another kernel with what it adds to that
    calls["feed_forward backward"] = functools.partial(backward, x, x, *parameters[:-1], *of_norm)
    return calls


def inverted_residual_calls() -> dict[str, Any]:
    """With and without an expansion; tiles of many pixels and of few; all columns in a program and some."""
    calls = {}
    for batch, channels, hidden, columns, side, stride, dtype in (
        (64, 32, 64, 64, 64, 1, torch.float16), (64, 64, 128, 128, 64, 2, torch.bfloat16), (256, 256, 512, 256, 16, 2, torch.float16),
        (1, 64, 256, 96, 64, 2, torch.float16), (1, 384, 768, 512, 16, 2, torch.float16), (1, 256, 0, 128, 32, 1, torch.float16),
        (16, 96, 0, 96, 32, 1, torch.bfloat16), (1, 16, 64, 24, 16, 1, torch.float32),
    ):  # fmt: skip
        x, wide = image(batch, channels, side, side, dtype=dtype), hidden or channels
        expand = (ones(hidden, channels, 1, 1), ones(hidden)) if hidden else (None, None)
        parameters = (*expand, ones(wide, 1, 3, 3), ones(wide), ones(columns, wide, 1, 1), ones(columns))
        call = use(ops.inverted_residual, x, *parameters, stride=stride, residual=stride == 1 and columns == channels, collect=not hidden)
        calls[f"inverted_residual {tuple(x.shape)}, {hidden}, {columns}, {stride} {dtype}"] = call
    return calls


CALLS = {
    **product_calls(),
    **convolution_calls(),
    **depthwise_conv2d_calls(),
    **feed_forward_calls(),
    **inverted_residual_calls(),
    **relative_calls(),
    **separable_attention_block_calls(),
    **separable_attention_calls(),
    **patch_calls(),
    **norm_calls(),
    **avg_pool_calls(),
    **resize_calls(),
    **patch_attention_calls(),
    **integer_calls(),
    **integer_map_calls(),
}
