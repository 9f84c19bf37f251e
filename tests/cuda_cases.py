"""Calls of the ops that have CUDA kernels, in every form that a kernel tells apart: for a GPU (tests/gpu), and for what comes before a
kernel (test_cuda_calls.py). Each case makes its inputs and computes on a device by a backend; all results of one case are the same bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from op_checks import FORMATS
from q_checks import byte_map, random_bytes, random_packed_weight, random_weight
from tolerance import assert_float_rule

from mvit_kernels import ops, reference
from mvit_kernels.ops import qpair

Tensor = torch.Tensor
Case = Callable[[torch.device, str], Tensor]  # the device and the backend to compute on


def placed(x: Tensor | None, device: torch.device) -> Tensor | None:
    """x there, with the same strides and what lies between."""
    if x is None or x.device == device:
        return x
    base = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def bytes_out(columns: int, **more: Any) -> dict[str, Any]:
    scales = {"out_scale": torch.rand(columns) * 0.3 + 0.1, "out_zero_point": torch.randint(-100, 300, (columns,))}
    return {"out_dtype": torch.uint8, **scales, **more}


def epilogues(columns: int) -> Iterator[tuple[str, dict[str, Any], torch.dtype | None]]:
    """(name, settings, dtype of the residual) of every way in which results leave."""
    yield "bytes", bytes_out(columns), None
    yield "bytes_relu", bytes_out(columns, activation="relu"), None
    for activation in ("silu", "gelu", "hard_swish"):
        yield f"bytes_{activation}", bytes_out(columns, activation=activation), None
    yield "bytes_table", bytes_out(columns, out_bits=6, table=random_bytes(256)), None
    curve = reference.activation_curve("silu", 0.1, 20)
    yield "bytes_curve", {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 20, "table": curve}, None
    for residual in (torch.uint8, torch.int16):
        more = {"residual_scale": 0.07, "residual_zero_point": 3 if residual == torch.uint8 else 0, "activation": "relu"}
        yield f"bytes_residual_{residual}", bytes_out(columns, **more), residual
    yield "int16", {"out_dtype": torch.int16, "out_scale": 0.01}, None
    yield "int16_residual", {"out_dtype": torch.int16, "out_scale": 0.01}, torch.int16
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield f"{dtype}", {"out_dtype": dtype, "activation": "silu"}, None
        yield f"{dtype}_residual", {"out_dtype": dtype}, dtype


def random_residual(dtype: torch.dtype | None, *size: int) -> Tensor | None:
    if dtype is None:
        return None
    return torch.randn(size).to(dtype) if dtype.is_floating_point else torch.randint(0, 256, size).to(dtype)


def product(rows: int, columns: int, depth: int, bits: int, settings: dict[str, Any], residual: torch.dtype | None, gap: int = 0) -> Case:
    a = random_bytes(rows, depth + gap)[:, :depth]
    weight = random_packed_weight(columns, depth, bits)
    zero_point = torch.randint(-1275, 300, (1, depth)) if depth % 2 else 300
    added = random_residual(residual, rows, columns)
    scales = {"a_scale": 0.05, "a_zero_point": zero_point, "w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns)}
    prepared = {name: ops.prepare_qgemm(weight, **scales, **settings, backend=name) for name in ("cuda", "reference")}
    return lambda device, backend: prepared[backend](placed(a, device), placed(added, device))


def product_of_rows(rows: int, columns: int, depth: int, bits: int, settings: dict[str, Any]) -> Case:
    a, weight = random_bytes(rows, depth), random_packed_weight(columns, depth, bits)
    prepared = {
        name: ops.prepare_qgemm(weight, w_scale=0.01, bias=torch.randn(columns, generator=torch.Generator().manual_seed(1)),
                                **settings, backend=name)
        for name in ("cuda", "reference")
    }  # fmt: skip
    scale, zero_point = torch.rand(2 * rows)[::2], torch.randint(-1275, 300, (rows,), dtype=torch.int32)
    return lambda device, backend: prepared[backend](
        placed(a, device), a_scale=placed(scale, device), a_zero_point=placed(zero_point, device)
    )


def sums(rows: int, columns: int, depth: int, bits: int, zero_point: Any) -> Case:
    a, weight = random_bytes(rows, depth), random_packed_weight(columns, depth, bits)
    return lambda device, backend: ops.qgemm_accumulate(placed(a, device), weight, zero_point, backend=backend)


def qgemm_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, settings, residual in epilogues(40):
        cases[name] = product(35, 40, 33, 8, settings, residual)
    for name, settings, residual in epilogues(37):  # rows of results that are not aligned
        cases[f"{name}_odd"] = product(35, 37, 64, 6, settings, residual, gap=3)
    for bits in (8, 6):
        for size in ((1, 1, 1), (3, 17, 3), (130, 64, 64), (257, 80, 130), (1, 1000, 640), (33, 65, 0), (0, 16, 16)):
            cases[f"{size}_{bits}"] = product(*size, bits, bytes_out(size[1]), None)
            cases[f"rows_{size}_{bits}"] = product_of_rows(*size, bits, {"out_dtype": torch.float32, "activation": "gelu"})
    cases["rows_bytes"] = product_of_rows(20, 24, 40, 8, bytes_out(24))
    for name, zero_point in (("one", 300), ("rows", torch.randint(-300, 300, (9,))), ("channels", torch.randint(-300, 300, (1, 50)))):
        cases[f"sums_{name}"] = sums(9, 21, 50, 6 if name == "rows" else 8, zero_point)
    return cases


def convolution(
    size: tuple[int, int, int, int], columns: int, kernel: int, stride: int, *, second: int = 0, bits: int = 8, wide: bool = True,
    settings: dict[str, Any] | None = None, residual: torch.dtype | None = None, memory: torch.memory_format = torch.channels_last,
) -> Case:  # fmt: skip
    batch, channels, height, width = size
    settings = settings or bytes_out(columns)
    x = byte_map(*size).contiguous(memory_format=memory)
    other = byte_map(batch, second, height, width) if second else None
    both = channels + second
    weight = ops.pack_weight(random_weight(columns, both, kernel, kernel, bits=bits), bits=bits)
    zero_point = torch.randint(-600, 600, (both,)) if wide else 17
    arguments = {"w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns), "kernel_size": kernel, "stride": stride}
    added = random_residual(residual, batch, columns, (height - 1) // stride + 1, (width - 1) // stride + 1)
    prepared = {
        name: ops.prepare_qconv2d(weight, 0.05, zero_point, **arguments, second_channels=second, **settings, backend=name)
        for name in ("cuda", "reference")
    }
    return lambda device, backend: prepared[backend](placed(x, device), placed(other, device), placed(added, device))


def qconv2d_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, settings, residual in epilogues(24):
        cases[name] = convolution((2, 12, 5, 7), 24, 3, 1, settings=settings, residual=residual)
    for kernel in (1, 3):
        for stride in (1, 2):
            for channels, second in ((3, 0), (16, 0), (20, 7), (32, 16)):
                for bits in (8, 6):
                    cases[f"{kernel}x{kernel}_{stride}_{channels}+{second}_{bits}"] = convolution(
                        (2, channels, 6, 9), 33, kernel, stride, second=second, bits=bits
                    )
    for size in ((1, 16, 1, 1), (1, 16, 1, 4), (1, 16, 2, 2), (1, 16, 32, 31), (0, 16, 3, 3)):
        cases[f"{size}"] = convolution(size, 40, 3, 1, wide=False)
    cases["contiguous"] = convolution((1, 16, 4, 5), 16, 3, 1, memory=torch.contiguous_format)
    return cases


def depthwise(
    size: tuple[int, int, int, int], stride: int, *, settings: dict[str, Any] | None = None, residual: torch.dtype | None = None
) -> Case:
    batch, channels, height, width = size
    settings = settings or bytes_out(channels)
    x, weight = byte_map(*size), random_weight(channels, 1, 3, 3)
    added = random_residual(residual, batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    arguments = {"w_scale": torch.rand(channels) * 0.01 + 1e-3, "bias": torch.randn(channels), "stride": stride}
    zero_point = torch.randint(-600, 600, (channels,))
    prepared = {
        name: ops.prepare_qdepthwise_conv2d(weight, a_scale=0.05, a_zero_point=zero_point, **arguments, **settings, backend=name)
        for name in ("cuda", "reference")
    }
    return lambda device, backend: prepared[backend](placed(x, device), placed(added, device))


def qdepthwise_conv2d_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, settings, residual in epilogues(24):
        cases[name] = depthwise((2, 24, 5, 7), 1, settings=settings, residual=residual)
    for stride in (1, 2):
        for channels in (1, 3, 16, 34):
            for height, width in ((1, 1), (2, 2), (4, 17), (9, 8)):
                cases[f"{channels}_{height}x{width}_{stride}"] = depthwise((2, channels, height, width), stride)
    return cases


def inverted_residual_layers(
    channels: int, hidden: int, columns: int, stride: int, *, bits: int = 8, curve: str | None = "silu", zero_point: int = 20,
    scale: float = 0.1, settings: dict[str, Any] | None = None, backend: str | None = None, padding: Any = None,
) -> tuple[ops.QConv2d, ops.QDepthwiseConv2d, ops.QConv2d]:  # fmt: skip
    """expand, depthwise and reduce; hidden bytes of one scale, by a curve or without an activation. padding: what depthwise takes as their
    zero-point, where it is another one."""
    out = {"out_dtype": torch.uint8, "out_scale": scale, "out_zero_point": zero_point}
    if curve is not None:
        out["table"] = reference.activation_curve(curve, scale, zero_point)
    expand_weight = ops.pack_weight(random_weight(hidden, channels, bits=bits), bits=bits)
    expand = ops.prepare_qconv2d(
        expand_weight, 0.05, 300, torch.rand(hidden) * 0.01 + 1e-3, torch.randn(hidden), kernel_size=1, backend=backend, **out
    )
    depthwise = ops.prepare_qdepthwise_conv2d(
        random_weight(hidden, 1, 3, 3), stride=stride, a_scale=scale, a_zero_point=zero_point if padding is None else padding,
        w_scale=torch.rand(hidden) * 0.01 + 1e-3, bias=torch.randn(hidden), backend=backend, **out,
    )  # fmt: skip
    reduce = ops.prepare_qconv2d(
        ops.pack_weight(random_weight(columns, hidden, bits=bits), bits=bits), scale, zero_point, 0.01, torch.randn(columns), kernel_size=1,
        backend=backend, **(settings or bytes_out(columns)),
    )  # fmt: skip
    return expand, depthwise, reduce


def inverted(
    size: tuple[int, int, int, int], hidden: int, columns: int, stride: int, *, residual: torch.dtype | None = None,
    memory: torch.memory_format = torch.channels_last, **more: Any,
) -> Case:  # fmt: skip
    batch, channels, height, width = size
    x = byte_map(*size).contiguous(memory_format=memory)
    layers = inverted_residual_layers(channels, hidden, columns, stride, **more)
    added = random_residual(residual, batch, columns, (height - 1) // stride + 1, (width - 1) // stride + 1)
    prepared = {name: ops.prepare_qinverted_residual(*layers, backend=name) for name in ("cuda", "reference")}
    return lambda device, backend: prepared[backend](placed(x, device), placed(added, device))


def qinverted_residual_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, settings, residual in epilogues(24):
        cases[name] = inverted((1, 12, 9, 7), 40, 24, 1, settings=settings, residual=residual)
    for stride in (1, 2):
        for channels, hidden, columns in ((3, 5, 2), (16, 64, 32), (20, 33, 41), (32, 64, 72), (64, 96, 128)):
            for bits in (8, 6):
                cases[f"{channels}_{hidden}_{columns}_{stride}_{bits}"] = inverted(
                    (2, channels, 10, 19), hidden, columns, stride, bits=bits
                )
    cases["wide_zero_point"] = inverted((1, 16, 9, 17), 32, 16, 1, curve="gelu", zero_point=255)
    for name, padding in (("zero", 0), ("negative", -1), ("no_byte", 256), ("of_channels", torch.arange(32))):
        cases[f"padding_{name}"] = inverted((1, 16, 9, 17), 32, 16, 1, padding=padding)
    cases["without_curves"] = inverted((1, 16, 9, 17), 32, 16, 1, curve=None, zero_point=-300)
    cases["curves_without_steps"] = inverted((1, 16, 9, 17), 32, 16, 1, scale=0.001)
    cases["many_columns"] = inverted((1, 16, 9, 17), 32, 200, 2)
    cases["too_many_columns"] = inverted((1, 16, 9, 17), 32, 130, 1)
    cases["contiguous"] = inverted((1, 16, 4, 5), 32, 16, 2, memory=torch.contiguous_format)
    for size in ((1, 16, 1, 1), (1, 16, 2, 2), (0, 16, 3, 3)):
        cases[f"{size}"] = inverted(size, 32, 16, 1)
    return cases


def feed_forward_layers(
    kind: str, channels: int, hidden: int, *, bits: int = 8, curve: str | None = "silu", zero_point: int = 121, scale: float = 0.1,
    backend: str | None = None,
) -> tuple[ops.QNorm, ops.QConv2d, ops.QConv2d]:  # fmt: skip
    """norm, first and second; hidden bytes by a curve or without an activation. zero_point: of the normalised bytes."""
    stream = 2.0**-9
    norm = ops.prepare_qnorm(
        kind, scale=stream, out_scale=0.03, out_zero_point=zero_point, eps=1e-3, bits=6 if bits == 6 else 8, backend=backend
    )
    out: dict[str, Any] = {"out_dtype": torch.uint8, "out_scale": scale, "out_zero_point": 20}
    if curve is not None:
        out["table"] = reference.activation_curve(curve, scale, 20)
    first = ops.prepare_qconv2d(
        ops.pack_weight(random_weight(hidden, channels, bits=bits), bits=bits), 0.03, zero_point, torch.rand(hidden) * 0.01 + 1e-3,
        torch.randn(hidden), kernel_size=1, backend=backend, **out,
    )  # fmt: skip
    second = ops.prepare_qconv2d(
        ops.pack_weight(random_weight(channels, hidden, bits=bits), bits=bits), scale, 20, torch.rand(channels) * 0.01 + 1e-3,
        torch.randn(channels), kernel_size=1, out_dtype=torch.int16, out_scale=stream, backend=backend,
    )  # fmt: skip
    return norm, first, second


def stream_map(*size: int) -> Tensor:
    """Images about different means, with a few values at both ends of int16."""
    x = 300.0 * torch.randn(size) + 1000.0 * torch.randn(size[0], 1, 1, 1)
    x = torch.where(torch.rand(size) < 0.01, 40000.0 * x.sign(), x).clamp(-(2**15), 2**15 - 1)
    return x.to(torch.int16).contiguous(memory_format=torch.channels_last)


def known_sums(x: Tensor, pieces: int | None) -> Tensor | None:
    """Of the images of a stream, in pieces; None: none."""
    return None if pieces is None else in_pieces(reference.stream_sums(x.permute(0, 2, 3, 1).flatten(0, 2), x.shape[0]), pieces)


def in_pieces(sums: Tensor, pieces: int) -> Tensor:
    """(G, 2) as sums of that many pieces; 0: as they are."""
    if pieces == 0:
        return sums
    parts = torch.randint(-(2**40), 2**40, (len(sums), pieces, 2))
    parts[:, 0] += sums - parts.sum(1)
    return parts


def _half(prepare: Callable[..., Any], layers: tuple[Any, ...], x: Tensor, sums: Tensor | None, collect: bool) -> Case:
    """Of a transformer layer: the map, or with `collect` its sums."""
    prepared = {name: prepare(*layers, backend=name) for name in ("cuda", "reference")}

    def run(device: torch.device, backend: str) -> Tensor:
        y = prepared[backend](placed(x, device), placed(sums, device), collect=collect)
        return y[1] if isinstance(y, tuple) else y

    return run


def feed_forward(
    size: tuple[int, int, int, int], hidden: int, kind: str = "group", *, collect: bool = False, pieces: int | None = None,
    memory: torch.memory_format = torch.channels_last, **more: Any,
) -> Case:  # fmt: skip
    """pieces: that the sums of the images come in, 0: they come whole, None: they are not known. collect: the sums are the result."""
    x = stream_map(*size).contiguous(memory_format=memory)
    layers = feed_forward_layers(kind, size[1], hidden, **more)
    sums = known_sums(x, pieces)
    return _half(ops.prepare_qfeed_forward, layers, x, sums, collect)


def qfeed_forward_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind in ("group", "layer"):
        for channels, hidden in ((1, 1), (16, 40), (33, 70), (64, 128), (100, 33), (128, 64), (144, 288), (192, 96), (240, 100), (256, 64)):
            cases[f"{kind}_{channels}_{hidden}"] = feed_forward((2, channels, 5, 7), hidden, kind)
        cases[f"{kind}_6"] = feed_forward((1, 40, 6, 6), 72, kind, bits=6)
        cases[f"{kind}_collect"] = feed_forward((3, 24, 7, 9), 40, kind, collect=True)
        cases[f"{kind}_wide_zero_point"] = feed_forward((1, 16, 4, 4), 32, kind, zero_point=-1275)
        cases[f"{kind}_contiguous"] = feed_forward((2, 16, 4, 5), 32, kind, memory=torch.contiguous_format)
        cases[f"{kind}_without_curve"] = feed_forward((2, 16, 4, 5), 32, kind, curve=None, collect=True)
        cases[f"{kind}_curve_without_steps"] = feed_forward((1, 16, 4, 5), 32, kind, scale=0.001)
        cases[f"{kind}_too_many_channels"] = feed_forward((1, 260, 3, 3), 32, kind)
        for size in ((1, 16, 1, 1), (0, 16, 3, 3)):
            cases[f"{kind}_{size}"] = feed_forward(size, 32, kind, collect=size[0] == 0)
    for pieces in (0, 1, 5, 40, 256, 257):
        cases[f"sums_{pieces}"] = feed_forward((3, 32, 5, 5), 64, pieces=pieces)
    cases["many_pixels"] = feed_forward((1, 136, 114, 114), 33)  # blocks of all their warps, of 132 multiprocessors
    return cases


def attention_layers(
    dim: int, *, bits: int = 8, patch: tuple[int, int] = (2, 2), zero_point: int = 40, decay: float = 0.05, backend: str | None = None
) -> tuple[ops.QNorm, ops.QConv2d, ops.QSeparableContext, ops.QConv2d, ops.QSeparableGate, ops.QConv2d]:  # fmt: skip
    """norm, qkv, context, key, gate and out; bits: of weights and bytes. zero_point: of normalised bytes and of values. decay: from an
    exponential of scores to the next."""
    stream, normal, mixed, v, gated = 2.0**-9, 0.03, 0.01, 0.02, 0.002

    def product(columns: int, scale: float, point: int, **out: Any) -> ops.QConv2d:
        weight, spread = ops.pack_weight(random_weight(columns, dim, bits=bits), bits=bits), 0.02 if bits == 8 else 0.08
        return ops.prepare_qconv2d(
            weight, scale, point, (torch.rand(columns) + 0.5) * spread / dim**0.5, torch.randn(columns) * 0.1, kernel_size=1, a_bits=bits,
            backend=backend, **out,
        )  # fmt: skip

    norm = ops.prepare_qnorm("group", scale=stream, out_scale=normal, out_zero_point=zero_point, bits=bits, backend=backend)
    qkv = product(
        1 + dim, normal, zero_point, out_dtype=torch.uint8, out_scale=torch.tensor([0.05] + [v] * dim),
        out_zero_point=torch.tensor([130 if bits == 8 else 30] + [zero_point] * dim), out_bits=bits,
    )  # fmt: skip
    context = ops.prepare_qseparable_context(
        reference.exponential_table(decay), x_scale=normal, x_zero_point=zero_point, out_scale=mixed, out_zero_point=25, out_bits=bits,
        patch_size=patch, backend=backend,
    )  # fmt: skip
    gate = ops.prepare_qseparable_gate(
        v_scale=v, v_zero_point=zero_point, out_scale=gated, out_zero_point=31, out_bits=bits, patch_size=patch, backend=backend
    )
    out = product(dim, gated, 31, out_dtype=torch.int16, out_scale=stream)
    return norm, qkv, context, product(dim, mixed, 25), gate, out


def integer_attention_block(
    size: tuple[int, int, int, int], *, collect: bool = False, pieces: int | None = None,
    memory: torch.memory_format = torch.channels_last, **more: Any,
) -> Case:  # fmt: skip
    """pieces, collect: as of `feed_forward`."""
    x = stream_map(*size).contiguous(memory_format=memory)
    layers, sums = attention_layers(size[1], **more), known_sums(x, pieces)
    return _half(ops.prepare_qseparable_attention_block, layers, x, sums, collect)


def qseparable_attention_block_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for channels in (8, 16, 40, 64, 96, 128, 144, 192, 224, 256):
        cases[f"{channels}"] = integer_attention_block((2, channels, 6, 10))
    cases["6"] = integer_attention_block((1, 40, 6, 6), bits=6, zero_point=10)
    cases["collect"] = integer_attention_block((3, 24, 8, 10), collect=True)
    for zero_point in (0, 255, 300, -20):
        cases[f"zero_point_{zero_point}"] = integer_attention_block((1, 16, 4, 4), zero_point=zero_point)
    for decay in (0.0, 9.0):
        cases[f"decay_{decay}"] = integer_attention_block((1, 16, 4, 4), decay=decay)
    cases["patch"] = integer_attention_block((2, 32, 6, 5), patch=(3, 1))
    cases["contiguous"] = integer_attention_block((2, 16, 4, 6), memory=torch.contiguous_format)
    cases["odd_channels"] = integer_attention_block((2, 17, 4, 6), collect=True)
    cases["too_many_channels"] = integer_attention_block((1, 264, 4, 4))
    cases["long_phases"] = integer_attention_block((1, 64, 96, 120))
    for size in ((1, 16, 1, 1), (0, 16, 2, 2)):
        cases[f"{size}"] = integer_attention_block(size, patch=(1, 1), collect=size[0] == 0)
    for pieces in (0, 1, 5, 40):
        cases[f"sums_{pieces}"] = integer_attention_block((3, 32, 6, 6), pieces=pieces)
    cases["many_pixels"] = integer_attention_block((6, 136, 48, 48))  # as above
    return cases


def normed_product(
    rows: int,
    depth: int,
    columns: int,
    groups: int | None = None,
    *,
    bits: int = 8,
    settings: dict[str, Any] | None = None,
    pieces: int = 0,
) -> Case:
    x = stream_map(max(rows, 1), depth, 1, 1).flatten(1)[:rows]
    sums = None if groups is None else in_pieces(reference.stream_sums(x, groups), pieces)
    norm = {"scale": 2.0**-9, "a_scale": 0.03, "a_zero_point": 121, "a_bits": 6 if bits == 6 else 8}
    scales = {"w_scale": torch.rand(columns) * 0.01 + 1e-3, "bias": torch.randn(columns)}
    weight, settings = random_packed_weight(columns, depth, bits), settings or bytes_out(columns)
    prepared = {name: ops.prepare_qnorm_gemm(weight, **scales, **norm, **settings, backend=name) for name in ("cuda", "reference")}
    return lambda device, backend: prepared[backend](placed(x, device), placed(sums, device))


def qnorm_gemm_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for groups in (None, 3):
        for depth, columns in ((1, 1), (16, 48), (33, 99), (64, 40), (100, 33), (128, 129), (144, 432), (200, 64), (256, 17), (300, 40)):
            cases[f"{depth}_{columns}_{groups}"] = normed_product(39, depth, columns, groups)
        cases[f"6_{groups}"] = normed_product(12, 40, 72, groups, bits=6)
        cases[f"relu6_{groups}"] = normed_product(12, 40, 72, groups, settings=bytes_out(72, activation="relu6"))
        curve = reference.activation_curve("silu", 0.1, 20)
        curved = {"out_dtype": torch.uint8, "out_scale": 0.1, "out_zero_point": 20, "table": curve}
        cases[f"curve_{groups}"] = normed_product(12, 40, 72, groups, settings=curved)
    for pieces in (1, 7, 256, 257):
        cases[f"pieces_{pieces}"] = normed_product(12, 40, 72, 2, pieces=pieces)
    cases["many_rows"] = normed_product(26000, 136, 40, 5)  # 32 of them a warp, on 132 multiprocessors
    cases["empty"] = normed_product(0, 40, 72)
    cases["no_groups"] = normed_product(0, 40, 72, 0)
    return cases


def phases(
    size: tuple[int, int, int], heads: int, depth: int, *, patch: tuple[int, int] = (2, 2), gap: int = 0, order: bool = True, **changes: Any
) -> Case:
    """Attention in the phases of a map; gap: bytes between pixels. order: whether channels lie side by side."""
    qkv = random_bytes(*size, 3 * heads * depth + gap)[..., gap:]
    if not order:
        qkv = qkv.movedim(3, 1).contiguous().movedim(1, 3)
    settings = {"q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.021, "v_scale": 0.017, "v_zero_point": 101, "out_scale": 0.011}
    settings |= {"out_zero_point": 90, **changes}
    return lambda device, backend: ops.qpatch_attention(placed(qkv, device), heads, patch_size=patch, backend=backend, **settings)


def qpatch_attention_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for side, depths in ((32, (16, 24, 36)), (16, (20, 30, 48)), (8, (24, 36, 60))):  # of MobileViT XXS, XS and S
        for depth in depths:
            cases[f"{side}_{depth}"] = phases((2, side, side), 4, depth)
    for depth in (1, 7, 15, 16, 31, 32, 33, 48, 63, 64):
        for gap in (0, 1, 4):
            cases[f"depth_{depth}_{gap}"] = phases((1, 6, 10), 3, depth, gap=gap)
    for pixels in (1, 2, 31, 32, 33, 64, 65, 257, 600):
        cases[f"pixels_{pixels}"] = phases((1, 1, pixels), 2, 12, patch=(1, 1))
    for zero_point in (0, 255):
        for scale in (1e-12, 1e-4, 0.1, 1e12):
            cases[f"extreme_{zero_point}_{scale}"] = phases((1, 9, 4), 1, 64, patch=(1, 1), q_zero_point=zero_point, scale=scale)
    cases["far_zero_points"] = phases((1, 8, 12), 2, 18, v_zero_point=-(2**17), out_zero_point=2**17)
    cases["six_bits"] = phases((1, 8, 12), 2, 18, out_bits=6)
    cases["many_heads"] = phases((2, 4, 4), 13, 8, patch=(2, 1))
    cases["copied"] = phases((2, 8, 8), 4, 20, order=False)
    cases["empty"] = phases((0, 8, 8), 4, 20)
    return cases


def attention_block(
    size: tuple[int, int, int, int], dtype: torch.dtype, patch: tuple[int, int] | None, *, mean: float = 0.0, moments: bool = False,
    parameters: torch.dtype | None = None, memory: torch.memory_format = torch.channels_last,
) -> tuple[list[Tensor], dict[str, Any]]:  # fmt: skip
    """(arguments, keywords) of `separable_attention_block`."""
    dim = size[1]
    x = (torch.randn(size) + mean).to(dtype).contiguous(memory_format=memory)
    shapes = (dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,)
    weights = [(torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) == 2 else 1.0)).to(parameters or dtype) for shape in shapes]
    given = {"moments": reference.moments_of(x, size[0])} if moments else {}
    return [x, *weights], {"patch_size": patch, **given}


def attention_blocks() -> dict[str, tuple[list[Tensor], dict[str, Any]]]:
    half, brain = torch.float16, torch.bfloat16
    return {
        "half": attention_block((2, 64, 16, 16), half, (2, 2)),
        "bfloat16": attention_block((2, 96, 8, 12), brain, (2, 2)),
        "unfolded": attention_block((3, 72, 4, 65), half, None, memory=torch.contiguous_format),
        "far_mean": attention_block((1, 128, 8, 8), half, (2, 2), mean=30.0),
        "moments": attention_block((2, 64, 6, 10), half, (3, 2), moments=True),
        "wide_parameters": attention_block((1, 144, 8, 8), brain, (2, 2), parameters=torch.float32),
        "largest": attention_block((1, 512, 8, 8), half, (2, 2)),
        "one_pixel": attention_block((1, 8, 1, 1), half, (1, 1)),
        "images_of_a_block": attention_block((300, 64, 4, 4), half, (2, 2)),
        "several_passes": attention_block((1, 72, 24, 22), brain, (2, 2), mean=3.0),
        "blocks_of_an_image": attention_block((3, 128, 32, 32), half, (2, 2)),
        "empty": attention_block((0, 64, 8, 8), half, (2, 2)),
    }


def attention_blocks_of_every_cluster() -> dict[str, tuple[list[Tensor], dict[str, Any]]]:
    """Where blocks have the shared memory of an H100: one of every depth, clusters of 2, 4 and 8, one with a block that has less and one
    that has nothing; and more images than fit into a block together."""
    sizes = [(2, 192, 16, 16), (2, 256, 8, 8), (3, 128, 32, 32), (2, 256, 32, 32), (1, 128, 64, 64), (1, 256, 40, 40)]
    cases = {f"{size} {dtype}": attention_block(size, dtype, (2, 2)) for size in sizes for dtype in (torch.float16, torch.bfloat16)}
    return cases | {"images": attention_block((530, 256, 8, 8), torch.float16, (2, 2))}


def assert_attention_block(inputs: list[Tensor], keywords: dict[str, Any], device: torch.device) -> None:
    """The kernels, in one launch where there is one and in three, by the float rule, plain torch in the same dtype on the CPU being what
    they are measured with."""
    there = {name: placed(value, device) if isinstance(value, Tensor) else value for name, value in keywords.items()}

    def compute() -> tuple[Tensor, Tensor]:
        return ops.separable_attention_block(*(placed(x, device) for x in inputs), collect=True, backend="cuda", **there)

    with mock.patch.object(importlib.import_module("mvit_kernels.ops.separable_attention_block"), "_image_blocks", return_value=0):
        in_three = compute()
    patch = {"patch_size": keywords["patch_size"]}
    plain = reference.separable_attention_block(*(x.to(inputs[0].dtype) for x in inputs), **patch)
    exact = reference.separable_attention_block(*(x.double() for x in inputs), **patch)
    for ours, moments in (compute(), in_three):
        assert all(ours.is_contiguous(memory_format=kind) for kind in FORMATS.values() if inputs[0].is_contiguous(memory_format=kind))
        assert_float_rule(ours.cpu(), plain, exact)
        assert torch.allclose(moments.cpu(), reference.moments_of(ours.cpu(), len(ours)), equal_nan=True)


def residual_block(
    size: tuple[int, int, int, int], hidden: int, columns: int, dtype: torch.dtype, *, stride: int = 1, residual: bool = False,
    bias: bool = True, parameters: torch.dtype | None = None, memory: torch.memory_format = torch.channels_last,
) -> tuple[list[Tensor | None], dict[str, Any]]:  # fmt: skip
    """(arguments, keywords) of `inverted_residual`."""
    channels = size[1]
    x = torch.randn(size).to(dtype).contiguous(memory_format=memory)
    shapes = (hidden, channels, 1, 1), (hidden,), (hidden, 1, 3, 3), (hidden,), (columns, hidden, 1, 1), (columns,)
    weights: list[Tensor | None] = [
        (torch.randn(shape) / shape[1:].numel() ** 0.5).to(parameters or dtype) for shape in map(torch.Size, shapes)
    ]
    if not bias:
        weights[-1] = None
    return [x, *weights], {"stride": stride, "residual": residual}


def residual_blocks() -> dict[str, tuple[list[Tensor | None], dict[str, Any]]]:
    half, brain = torch.float16, torch.bfloat16
    return {
        "half": residual_block((2, 32, 24, 40), 64, 64, half),
        "residual": residual_block((2, 64, 17, 33), 128, 64, brain, residual=True),
        "wide": residual_block((1, 128, 16, 16), 256, 128, half, residual=True),
        "odd": residual_block((3, 40, 9, 15), 72, 48, brain),
        "down": residual_block((2, 64, 32, 24), 128, 128, half, stride=2),
        "down_odd": residual_block((2, 24, 17, 19), 40, 56, brain, stride=2),
        "down_wide": residual_block((1, 128, 16, 16), 256, 256, half, stride=2),
        "no_bias": residual_block((1, 16, 8, 8), 32, 24, half, bias=False),
        "wide_parameters": residual_block((1, 16, 8, 8), 64, 32, brain, parameters=torch.float32),
        "contiguous": residual_block((1, 16, 8, 8), 64, 32, half, memory=torch.contiguous_format),
        "one_pixel": residual_block((1, 8, 1, 1), 8, 8, half, stride=2),
        "empty": residual_block((0, 32, 8, 8), 64, 32, half),
    }


def residual_blocks_of_every_tile() -> dict[str, tuple[list[Tensor | None], dict[str, Any]]]:
    """Every depth that kernels know, with narrow and wide tiles, whose slices lag where shared memory allows; five of them, so that every
    place is used again."""
    return {
        f"{channels} {columns} {stride} {dtype}": residual_block((1, channels, 9, 17), 136, columns, dtype, stride=stride)
        for stride, widths in ((1, (32, 64, 128)), (2, (64, 128, 256)))
        for columns in widths
        for channels in (16, 32, 64, 128)
        for dtype in (torch.float16, torch.bfloat16)
    }


def assert_residual_block(inputs: list[Tensor | None], keywords: dict[str, Any], device: torch.device) -> None:
    """The kernel by the float rule, plain torch in the same dtype on the CPU being what it is measured with."""
    x = inputs[0]
    assert x is not None
    ours, moments = ops.inverted_residual(*(placed(each, device) for each in inputs), **keywords, collect=True, backend="cuda")
    plain = reference.inverted_residual(*(None if each is None else each.to(x.dtype) for each in inputs), **keywords)
    exact = reference.inverted_residual(*(None if each is None else each.double() for each in inputs), **keywords)
    assert ours.dtype == x.dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_float_rule(ours.cpu(), plain, exact)
    assert torch.allclose(moments.cpu(), reference.moments_of(ours.cpu(), len(ours)), equal_nan=True)


CASES = {
    "qgemm": qgemm_cases,
    "qconv2d": qconv2d_cases,
    "qdepthwise_conv2d": qdepthwise_conv2d_cases,
    "qfeed_forward": qfeed_forward_cases,
    "qinverted_residual": qinverted_residual_cases,
    "qnorm_gemm": qnorm_gemm_cases,
    "qpatch_attention": qpatch_attention_cases,
    "qseparable_attention_block": qseparable_attention_block_cases,
}
HALVES = "qfeed_forward", "qseparable_attention_block"


def choose_halves(monkeypatch: pytest.MonkeyPatch, in_parts: bool) -> None:
    """Halves of layers all go in parts, or all that have kernels by these, whatever pays."""
    monkeypatch.setattr(qpair, "PRODUCT_SECONDS", -1.0 if in_parts else 1.0)


def assert_equal_bits(case: Case, device: torch.device) -> None:
    """Of the kernel, and of plain torch on the CPU."""
    ours, theirs = case(device, "cuda"), case(torch.device("cpu"), "reference")
    assert ours.device == device
    assert ours.dtype == theirs.dtype
    assert ours.stride() == theirs.stride()
    assert torch.equal(ours.cpu(), theirs.cpu())
