"""What the cuda backend does before a kernel, on machines without a GPU: the arguments that it gives to the extension, and what it refuses.

A stand-in for the extension takes the same addresses, unpacks the weights from the order of tensor cores, and lets the kernels of the CPU
compute with the rest as it came. (csrc/tests has what the CUDA kernels themselves compute.)
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from cuda_cases import (
    CASES,
    HALVES,
    assert_attention_block,
    assert_equal_bits,
    assert_residual_block,
    attention_block,
    attention_blocks,
    attention_layers,
    choose_halves,
    inverted_residual_layers,
    phases,
    residual_block,
    residual_blocks,
    stream_map,
)
from op_checks import needs_native
from q_checks import byte_map, random_packed_weight, random_weight
from tolerance import assert_float_rule
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from mvit_kernels import ops, reference
from mvit_kernels.ops import backend, checks, counts, cuda_support, packing, qchannels, qfragments
from mvit_kernels.ops.placed import Placed

Tensor = torch.Tensor
CPU = torch.device("cpu")


def memory(address: int, count: int, dtype: type) -> np.ndarray:
    raw = ctypes.string_at(address, count * np.dtype(dtype).itemsize)
    return np.frombuffer(raw, dtype=dtype)


def of_neighbours(places: Tensor) -> Tensor:
    """What `qfragments.neighbour_order` was given."""
    return places.reshape(-1, 2, 4, 2, places.shape[1]).transpose(1, 2).flatten(0, 3)


def matrix_of(tiles: int, columns: int, depth: int, bits: int, multiples: tuple[int, int] = (64, 64)) -> Tensor:
    """(N, K) int8 from tiles, value by value from what csrc/cuda/primitives/qfragments.h says; N and K rounded up to `multiples`."""
    if depth == 0:
        return torch.zeros(columns, 0, dtype=torch.int8)
    deep = -(-depth // multiples[1]) * multiples[1] // 32
    size = 512 if bits == 8 else 384
    raw = memory(tiles, -(-columns // multiples[0]) * multiples[0] // 16 * deep * size, np.uint8).reshape(-1, deep, size)
    n, k = np.meshgrid(np.arange(columns), np.arange(depth), indexing="ij")
    lane, word, byte = n % 8 * 4 + k % 16 // 4, n % 16 // 8 * 2 + k % 32 // 16, k % 4
    tile = raw[n // 16, k // 32]
    rows = np.arange(columns)[:, None], np.arange(depth)[None, :]
    if bits == 8:
        return torch.from_numpy(tile[(*rows, lane * 16 + word * 4 + byte)].view(np.int8).copy())
    planes = [tile[(*rows, plane * 128 + lane * 4 + byte)] for plane in range(3)]
    own = np.choose(np.minimum(word, 2), planes) & 0xFC
    last = (planes[0] & 3) << 6 | (planes[1] & 3) << 4 | (planes[2] & 3) << 2
    return torch.from_numpy(np.where(word == 3, last, own).astype(np.uint8).view(np.int8) >> 2)


def product_of(tiles: int, columns: int, depth: int, bits: int) -> Tensor:
    """(N, K) int8 from the tiles of a product of bytes, whose columns lie as csrc/cuda/ops/qproduct.cuh says."""
    n = torch.arange(columns)
    places = n // 32 * 32 + n % 8 // 2 * 8 + n % 32 // 8 * 2 + n % 2
    return matrix_of(tiles, -(-columns // 32) * 32, depth, bits)[places]


def stream_at(address: int, rows: int, channels: int) -> Tensor:
    return torch.from_numpy(memory(address, rows * channels, np.int16).copy()).reshape(rows, channels)


def normal_at(address: int, batch: int, pixels: int, channels: int, norm: tuple[Any, ...]) -> Tensor:
    """Bytes (B pixels, channels) of a stream, whose norm is given as to the extension."""
    at, pieces, *how = norm
    assert pieces <= 256  # every warp adds them up
    sums = None
    if at:
        sums = torch.from_numpy(memory(at, 2 * batch * pieces, np.int64).copy()).reshape(batch, pieces, 2).sum(1)
    return reference.qnorm(stream_at(address, batch * pixels, channels), sums, *how)


def pair_at(slices: int, channels: int, hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(init, scale, first weight, second weight) of the slices of csrc/cuda/ops/qpair.cuh, number by number."""
    depth = -(-channels // 32)
    numbers, first, second = [], [], []
    for slice_ in range(-(-hidden // 32)):
        at = slices + slice_ * (384 + 2048 * depth)
        numbers.append(torch.from_numpy(memory(at, 96, np.int32).copy()))
        first.append(matrix_of(at + 384, 32, 32 * depth, 8, (32, 32)))
        second.append(matrix_of(at + 384 + 1024 * depth, 32 * depth, 32, 8, (16, 32)))
    h, c = torch.arange(32), torch.arange(32 * depth)
    columns = h // 16 * 16 + h % 4 // 2 * 8 + h % 16 // 4 * 2 + h % 2
    into = c // 32 * 32 + c % 8 // 4 * 16 + c % 32 // 8 * 4 + c % 4
    out = c // 32 * 32 + c % 8 // 2 * 8 + c % 32 // 8 * 2 + c % 2
    w1, w2 = torch.cat([each[columns][:, into] for each in first]), torch.cat([each[out] for each in second], dim=1)
    assert not any(beyond.any() for beyond in (w1[hidden:], w1[:, channels:], w2[channels:], w2[:, hidden:]))
    init = torch.cat([each[:64].reshape(16, 2, 2) for each in numbers])
    assert torch.equal(init[:, 0], init[:, 1])
    scale = torch.cat([each[64:].view(torch.float32) for each in numbers])[:hidden]
    return init[:, 0].flatten()[:hidden], scale, w1[:hidden, :channels], w2[:channels, :hidden]


def write_parts(parts: int, epilogue: tuple[Any, ...], batch: int, pixels: int, channels: int, pieces: int) -> None:
    """Sums of pieces of a stream that was written."""
    y = stream_at(epilogue[-2], batch * pixels, channels).reshape(batch, pixels, channels)
    groups = [reference.stream_sums(part.reshape(-1, channels), batch) for part in torch.tensor_split(y, pieces, dim=1)]
    raw = torch.stack(groups, dim=1).numpy().tobytes()
    ctypes.memmove(parts, raw, len(raw))


class StandIn:
    """The functions of mvit_kernels._cuda with those of mvit_kernels._cpu."""

    def qgemm(
        self, device: int, stream: int, rows: int, a: int, a_stride: int, tiles: int, form: tuple[int, int, int], epilogue: tuple[Any, ...],
        row_scale: int, row_zero_point: int, column_sum: int,
    ) -> None:  # fmt: skip
        columns, depth, bits = form
        matrix = product_of(tiles, columns, depth, bits)
        assert np.array_equal(memory(column_sum, columns, np.int32), matrix.to(torch.int64).sum(1).numpy())
        packed = ops.pack_weight(matrix, bits=bits).data
        *most, y, y_stride = epilogue
        status = backend.native.qgemm(
            rows, a, a_stride, packed.data_ptr(), packed.numel(), form, *most, row_scale, row_zero_point, y, y_stride, 1
        )
        assert (device, stream, status) == (-1, 0, 0)

    def qconv2d(
        self, device: int, stream: int, size: Any, kernel: int, stride: int, x: int, x_stride: Any, second: int, second_channels: int,
        second_stride: Any, border: int, tiles: int, form: tuple[int, int, int], epilogue: tuple[Any, ...],
    ) -> None:  # fmt: skip
        columns, depth, bits = form
        together = 3 if kernel == 3 and not second_channels and size[1] <= 5 else 1  # taps
        taps = product_of(tiles, columns, depth, bits).unflatten(1, (kernel * kernel // together, -1))
        first = -(-size[1] // 16) * 16
        matrix = torch.cat([taps[:, :, : together * size[1]], taps[:, :, first : first + second_channels]], dim=2).flatten(1)
        assert int(matrix.to(torch.int64).abs().sum()) == int(taps.to(torch.int64).abs().sum())  # the gaps are zeros
        packed = ops.pack_weight(matrix, bits=bits).data
        # With a border, bytes outside of the map are 0 here too, and zero-points are not looked at.
        *most, residual_stride, residual_scale, residual_zero_point, y, y_stride = epilogue
        assert residual_stride == y_stride == columns
        status = backend.native.qconv2d(
            tuple(size), kernel, stride, x, tuple(x_stride), second, second_channels, tuple(second_stride), 0, border, packed.data_ptr(),
            packed.numel(), (columns, matrix.shape[1], bits), 0, *most, residual_scale, residual_zero_point, y, 1,
        )  # fmt: skip
        assert (device, stream, status) == (-1, 0, 0)

    def qdepthwise_conv2d(
        self, device: int, stream: int, size: Any, stride: int, x: int, x_stride: Any, taps: int, border: int, epilogue: tuple[Any, ...]
    ) -> None:
        """As a convolution whose weight is 0 between different channels."""
        channels, padded = size[1], -(-size[1] // 16) * 16
        words = torch.from_numpy(memory(taps, 12 * padded, np.int8).copy()).reshape(3, padded, 4)  # kx, c, ky
        assert not words[:, channels:].any()
        assert not words[:, :, 3].any()
        weight = torch.zeros(channels, channels, 3, 3, dtype=torch.int8)
        index = torch.arange(channels)
        weight[index, index] = words[:, :channels, :3].permute(1, 2, 0)
        fragments = qfragments.PackFragments(channels, 9 * channels, 8, qfragments.parts_of(3, channels, 0))(ops.pack_weight(weight).data)
        form = (channels, fragments.depth, 8)
        self.qconv2d(
            device, stream, size, 3, stride, x, x_stride, 0, 0, x_stride, border, fragments.tiles.data_ptr(), form, epilogue
        )  # fmt: skip

    def separable_attention_block(
        self, device: int, stream: int, dtype: int, size: Any, patch: Any, eps: float, x: int, y: int, weights: list[int], moments: int,
        scratch: list[int],
    ) -> None:  # fmt: skip
        """In float64, of what lies at the addresses; scratch memory is as large as the kernels write."""
        batch, dim, height, width = size
        kind = {1: torch.bfloat16, 2: torch.float16}[dtype]
        count = batch * dim * height * width
        if count == 0:
            return
        lengths = batch * height * width, 2 * batch * -(-height * width // 32), batch * patch[0] * patch[1] * dim, 2 * batch
        for address, length, width_of in zip(scratch, lengths, (4, 8, 4, 4), strict=True):
            ctypes.memset(address, 0xFF, length * width_of)
        query, gamma, beta, key, key_bias, _, value_bias, _, out_bias = (
            torch.from_numpy(memory(at, dim * (dim if i == 3 else 1), np.float32).copy()).double() for i, at in enumerate(weights)
        )
        value, out = (matrix_of(weights[i], dim, 2 * dim, 8).contiguous().view(kind).double() for i in (5, 7))
        values = torch.frombuffer(bytearray(ctypes.string_at(x, 2 * count)), dtype=kind)
        image = values.reshape(batch, height, width, dim).permute(0, 3, 1, 2).double()
        if moments:
            given = torch.from_numpy(memory(moments, 2 * batch, np.float64).copy()).reshape(batch, 2)
            assert torch.allclose(given, reference.moments_of(image, batch))
        # `query` has gamma in it; what else moves a score moves all of a softmax.
        qkv = torch.cat([query[None] / gamma, key.reshape(dim, dim), value])
        bias = torch.cat([torch.zeros(1).double(), key_bias, value_bias])
        result = reference.separable_attention_block(image, gamma, beta, qkv, bias, out, out_bias, eps, patch_size=tuple(patch)).to(kind)
        raw = result.permute(0, 2, 3, 1).contiguous().view(torch.uint8).numpy().tobytes()
        ctypes.memmove(y, raw, len(raw))
        assert (device, stream) == (-1, 0)

    def separable_attention_image_blocks(
        self, channels: int, height: int, width: int, patch_height: int, patch_width: int, device: int
    ) -> int:  # fmt: skip
        return (2 if height > 8 else 1) if channels <= 256 and height * width > 0 and patch_height * patch_width <= 16 else 0

    def separable_attention_image_exchange(self, channels: int) -> int:
        return 100

    def separable_attention_image(
        self, device: int, stream: int, dtype: int, size: Any, patch: Any, eps: float, x: int, y: int, tiles: int, vectors: int,
        moments: int, exchange: int,
    ) -> None:  # fmt: skip
        """In float64, of what lies at the addresses."""
        batch, dim, height, width = size
        if height > 8:
            ctypes.memset(exchange, 0xFF, 2 * 100 * batch)
        kind, wide = {1: torch.bfloat16, 2: torch.float16}[dtype], -(-dim // 64) * 64
        count = batch * dim * height * width
        if count == 0:
            return
        query, key_bias, value_bias, value_sums, out_bias = (
            torch.from_numpy(memory(vectors, 5 * wide, np.float32).copy()).reshape(5, wide).double()
        )
        key, value, out = (
            of_neighbours(matrix_of(tiles + i * 2 * wide**2, wide, 2 * wide, 8).contiguous().view(kind)).double() for i in range(3)
        )
        out = of_neighbours(out.T.contiguous()).T
        assert torch.allclose(value_sums, value.sum(1), rtol=1e-6)
        for beyond in (query, key_bias, value_bias, out_bias, key, value, out, key.T, value.T, out.T):
            assert not beyond[dim:].any()
        values = torch.frombuffer(bytearray(ctypes.string_at(x, 2 * count)), dtype=kind)
        image = values.reshape(batch, height, width, dim).permute(0, 3, 1, 2).double()
        qkv = torch.cat([query[None, :dim], key[:dim, :dim], value[:dim, :dim]])
        bias = torch.cat([torch.zeros(1).double(), key_bias[:dim], value_bias[:dim]])
        plain = torch.ones(dim).double(), torch.zeros(dim).double()  # the norm's gamma and beta are inside of the weights
        result = reference.separable_attention_block(
            image, *plain, qkv, bias, out[:dim, :dim], out_bias[:dim], eps, patch_size=tuple(patch)
        ).to(kind)  # fmt: skip
        raw = result.permute(0, 2, 3, 1).contiguous().view(torch.uint8).numpy().tobytes()
        ctypes.memmove(y, raw, len(raw))
        if moments:
            ctypes.memmove(moments, reference.moments_of(result, batch).numpy().tobytes(), 16 * batch)
        assert (device, stream) == (-1, 0)

    def qpatch_attention(
        self, device: int, stream: int, size: Any, heads: int, patch: Any, qkv: int, stride: Any, q_zero_point: int, v_zero_point: int,
        f: float, g: float, table: int, out_zero_point: int, out_bits: int, y: int,
    ) -> None:  # fmt: skip
        _, dim, height, width = size
        dense = height * width * dim, width * dim, dim
        status = backend.native.qpatch_attention(
            size, heads, patch, qkv, stride, q_zero_point, v_zero_point, f, g, table, out_zero_point, out_bits, y, dense, 1
        )
        assert (device, stream, status) == (-1, 0, 0)

    def inverted_residual_shared(self, channels: int, columns: int, stride: int) -> int:
        raise NotImplementedError

    def qinverted_residual_shared(self, channels: int, columns: int, stride: int) -> int:
        return 1000 if columns <= 128 * stride else 0

    def shared_of_block(self, device: int) -> int:
        return 1000

    def qinverted_residual(
        self, device: int, stream: int, size: Any, hidden: int, columns: int, stride: int, padding: int, x: int, slices: int,
        expand_curve: int, filter_curve: int, epilogue: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """The first two layers in plain torch, of what lies at the addresses; the last as a product."""
        batch, channels, height, width = size
        if batch == 0:
            return
        expand_bytes, reduce_bytes, numbers_bytes = 2048 * -(-channels // 32), 1024 * -(-columns // 16), 4 * 7 * 64
        numbers, expand, reduce = [], [], []
        for slice_ in range(-(-hidden // 64)):
            at = slices + slice_ * (numbers_bytes + expand_bytes + reduce_bytes)
            numbers.append(torch.from_numpy(memory(at, 7 * 64, np.int32).copy()).reshape(7, 64))
            expand.append(of_neighbours(matrix_of(at + numbers_bytes, 64, channels, 8, (64, 32))))
            reduce.append(of_neighbours(matrix_of(at + numbers_bytes + expand_bytes, -(-columns // 16) * 16, 64, 8, (16, 64)))[:columns])
        *taps_of_columns, filter_init, filter_scale, init, scale = torch.cat(numbers, dim=1)[:, :hidden]
        curves = [torch.from_numpy(memory(each, 196, np.int16).copy()) for each in (expand_curve, filter_curve)]
        raw = torch.from_numpy(memory(x, batch * channels * height * width, np.uint8).copy())
        image = raw.reshape(batch, height, width, channels).permute(0, 3, 1, 2).to(torch.int64)

        def finished(sums: Tensor, scale: Tensor, curve: Tensor) -> Tensor:
            real = sums.to(torch.float32) * scale.view(torch.float32)[:, None, None]
            return reference.apply_curve(real, curve).to(torch.int64)

        sums = torch.einsum("bchw,ec->behw", image, torch.cat(expand)[:hidden].to(torch.int64)) + init[:, None, None]
        wide = torch.nn.functional.pad(finished(sums, scale, curves[0]), (1, 1, 1, 1), value=padding)
        taps = torch.stack(taps_of_columns).view(torch.int8).reshape(3, hidden, 4)
        assert not taps[:, :, 3].any()
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        sums = filter_init.to(torch.int64)[:, None, None].repeat(batch, 1, out_height, out_width)
        for ky in range(3):
            for kx in range(3):
                seen = wide[:, :, ky : ky + stride * (out_height - 1) + 1 : stride, kx : kx + stride * (out_width - 1) + 1 : stride]
                sums += seen * taps[kx, :, ky, None, None]
        filtered = finished(sums, filter_scale, curves[1]).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        tiles = qfragments.tiles(qfragments.product_order(torch.cat(reduce, dim=1)[:, :hidden]), 8)
        form, none = (columns, hidden, 8), torch.cat(reduce, dim=1)[:, :hidden].to(torch.int64).sum(1).to(torch.int32)
        rows = batch * out_height * out_width
        self.qgemm(device, stream, rows, filtered.data_ptr(), hidden, tiles.data_ptr(), form, epilogue, 0, 0, none.data_ptr())

    def qfeed_forward_pieces(self, channels: int, pixels: int) -> int:
        return -(-pixels // 8) if channels <= 256 else 0

    def qfeed_forward(
        self, device: int, stream: int, batch: int, pixels: int, channels: int, hidden: int, x: int, norm: tuple[Any, ...], slices: int,
        curve: int, epilogue: tuple[Any, ...], parts: int,
    ) -> None:  # fmt: skip
        """The norm and the first layer in plain torch, of what lies at the addresses; the second as a product."""
        if batch * pixels == 0:
            return
        init, scale, w1, w2 = pair_at(slices, channels, hidden)
        total = normal_at(x, batch, pixels, channels, norm).to(torch.int64) @ w1.to(torch.int64).T + init
        steps = torch.from_numpy(memory(curve, 196, np.int16).copy())
        middle = reference.apply_curve(total.to(torch.float32) * scale, steps).to(torch.uint8)
        self.second_of_pair(device, stream, middle, w2, epilogue)
        if parts:
            write_parts(parts, epilogue, batch, pixels, channels, self.qfeed_forward_pieces(channels, pixels))

    def second_of_pair(self, device: int, stream: int, middle: Tensor, weight: Tensor, epilogue: tuple[Any, ...]) -> None:
        middle, (columns, depth) = middle.contiguous(), weight.shape
        tiles, sums = qfragments.tiles(qfragments.product_order(weight), 8), weight.to(torch.int64).sum(1).to(torch.int32)
        self.qgemm(
            device, stream, len(middle), middle.data_ptr(), depth, tiles.data_ptr(), (columns, depth, 8), epilogue, 0, 0, sums.data_ptr()
        )

    def qattention_pieces(self, channels: int, phases: int, points: int) -> int:
        return phases * -(-points // 8) if channels <= 256 else 0

    def qattention_context_shared(self, channels: int, points: int) -> int:
        return points if channels <= 256 else 0

    def qattention_context(
        self, device: int, stream: int, size: Any, patch: Any, x: int, norm: tuple[Any, ...], query: int, channels: int, stride: int,
        table: int, scale: float, byte: tuple[int, int], context: int,
    ) -> None:  # fmt: skip
        """In plain torch, of what lies at the addresses."""
        batch, dim, height, width = size
        if batch == 0:
            return
        assert dim % 8 == 0
        normal = normal_at(x, batch, height * width, dim, norm)
        row = torch.from_numpy(memory(query, -(-dim // 32) * 32, np.int8).copy())
        assert not row[dim:].any()
        of_score = torch.from_numpy(memory(channels, 7 * stride, np.int32).copy()).reshape(7, stride)[:, :1]
        own = qchannels.unpack_channels(of_score, 1)
        scores = reference.qgemm(normal, row[None, :dim], own, plain=True, activation="none", out_dtype=torch.uint8)
        image = normal.reshape(batch, height, width, dim)
        exponentials = torch.from_numpy(memory(table, 256, np.int32).copy())
        mixed = reference.qseparable_context(
            scores.reshape(batch, height, width), image, exponentials, tuple(patch), scale, norm[4], 1.0, *byte
        )
        raw = mixed.contiguous().numpy().tobytes()
        ctypes.memmove(context, raw, len(raw))
        assert (device, stream) == (-1, 0)

    def qattention_values(
        self, device: int, stream: int, size: Any, patch: Any, x: int, norm: tuple[Any, ...], key: int, ratio: float, v: tuple[int, int],
        byte: tuple[int, int], slices: int, epilogue: tuple[Any, ...], parts: int,
    ) -> None:  # fmt: skip
        """The values and their gate in plain torch, of what lies at the addresses; the last layer as a product."""
        (batch, dim, height, width), phases = size, patch[0] * patch[1]
        if batch == 0:
            return
        init, scale, w1, w2 = pair_at(slices, dim, dim)
        total = normal_at(x, batch, height * width, dim, norm).to(torch.int64) @ w1.to(torch.int64).T + init
        values = (total.to(torch.float32) * scale).clamp(-v[0], 2 ** v[1] - 1 - v[0]).round().to(torch.int64) + v[0]
        image = values.to(torch.uint8).reshape(batch, height, width, dim)
        keys = torch.from_numpy(memory(key, batch * phases * dim, np.float32).copy()).reshape(batch, phases, dim)
        gated = reference.qseparable_gate(image, keys, tuple(patch), ratio, v[0], 1.0, *byte)
        self.second_of_pair(device, stream, gated.reshape(-1, dim), w2, epilogue)
        if parts:
            pieces = self.qattention_pieces(dim, phases, height * width // phases)
            write_parts(parts, epilogue, batch, height * width, dim, pieces)

    qnorm_gemm_channels = 512

    def qnorm_gemm(
        self, device: int, stream: int, groups: int, rows: int, channels: int, columns: int, x: int, norm: tuple[Any, ...], slices: int,
        epilogue: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """The norm in plain torch, and the product."""
        if groups * rows == 0:
            return
        depth, numbers, parts = -(-channels // 32), [], []
        for slice_ in range(-(-columns // 32)):
            at = slices + slice_ * (256 + 1024 * depth)
            numbers.append(torch.from_numpy(memory(at, 64, np.int32).copy()))
            parts.append(matrix_of(at + 256, 32, 32 * depth, 8, (32, 32)))
        n, c = torch.arange(32), torch.arange(32 * depth)
        into = c // 32 * 32 + c % 8 // 4 * 16 + c % 32 // 8 * 4 + c % 4
        places = n % 8 // 2 * 8 + n // 8 * 2 + n % 2
        weight = torch.cat([each[places][:, into] for each in parts])
        assert not weight[columns:].any()
        assert not weight[:, channels:].any()
        weight = weight[:columns, :channels]
        first = n % 8 // 4 * 32 + n // 8 * 8 + n % 4 // 2 * 4 + n % 2
        init = torch.cat([each[first] for each in numbers])
        assert torch.equal(init, torch.cat([each[first + 2] for each in numbers]))
        assert np.array_equal(init[:columns].numpy(), memory(epilogue[0], columns, np.int32))
        a = normal_at(x, groups, rows, channels, norm).contiguous()
        tiles = qfragments.tiles(qfragments.product_order(weight), 8)
        form, none = (columns, channels, 8), weight.to(torch.int64).sum(1).to(torch.int32)
        self.qgemm(device, stream, groups * rows, a.data_ptr(), channels, tiles.data_ptr(), form, epilogue, 0, 0, none.data_ptr())

    def inverted_residual(
        self, device: int, stream: int, dtype: int, size: Any, hidden: int, columns: int, stride: int, residual: bool, x: int, y: int,
        slices: int, bias: int,
    ) -> None:  # fmt: skip
        """In float64, of what lies at the addresses."""
        batch, channels, height, width = size
        kind = {1: torch.bfloat16, 2: torch.float16}[dtype]
        count = batch * channels * height * width
        if count == 0:
            return
        expand_bytes, reduce_bytes = 1024 * -(-channels // 16), 1024 * -(-columns // 16)
        taps_bytes, tiles = 32 * 20, 2 * 128 + 32 * 20
        rows, biases, filters, reduced = [], [], [], []
        for slice_ in range(-(-hidden // 32)):
            at = slices + slice_ * (expand_bytes + reduce_bytes + tiles)
            biases.append(torch.stack([torch.from_numpy(memory(at + i, 32, np.float32).copy()) for i in (0, 128 + taps_bytes)]))
            halves = torch.from_numpy(memory(at + 128, 32 * 10, np.int16).copy()).view(kind)
            first, last = halves[: 32 * 8].reshape(32, 8), halves[32 * 8 :].reshape(32, 2)
            assert not last[:, 1].any()
            filters.append(torch.cat([first, last[:, :1]], dim=1)[:, [0, 1, 6, 2, 3, 7, 4, 5, 8]])
            rows.append(matrix_of(at + tiles, 32, 2 * channels, 8, (32, 32)).contiguous().view(kind))
            places = matrix_of(at + tiles + expand_bytes, -(-columns // 16) * 16, 64, 8, (16, 64))
            reduced.append(of_neighbours(places)[:columns].contiguous().view(kind))
        taps_bias, expand_bias = 2 * torch.cat(biases, dim=1)[:, :hidden].double()
        taps = 2 * torch.cat(filters)[:hidden].double()
        expand, reduce = 2 * torch.cat(rows)[:hidden].double(), torch.cat(reduced, dim=1)[:, :hidden].double()
        values = torch.frombuffer(bytearray(ctypes.string_at(x, 2 * count)), dtype=kind)
        image = values.reshape(batch, height, width, channels).permute(0, 3, 1, 2).double()
        result = reference.inverted_residual(
            image, expand[:, :, None, None], expand_bias, taps.reshape(hidden, 1, 3, 3), taps_bias,
            reduce[:, :, None, None], torch.from_numpy(memory(bias, columns, np.float32).copy()).double(), stride=stride, residual=residual,
        ).to(kind)  # fmt: skip
        raw = result.permute(0, 2, 3, 1).contiguous().view(torch.uint8).numpy().tobytes()
        ctypes.memmove(y, raw, len(raw))
        assert (device, stream) == (-1, 0)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_support, "native", StandIn())
    monkeypatch.setattr(cuda_support, "place", lambda x: (-1, 0))
    monkeypatch.setattr(cuda_support, "processors", lambda device: 132)
    for choice in backend.Choice.every:
        if "cuda" in choice.implementations:
            taking_all = dataclasses.replace(choice.implementations["cuda"], refuse=lambda *_: None)
            monkeypatch.setitem(choice.implementations, "cuda", taking_all)


@needs_native
@pytest.mark.usefixtures("stand_in", "one_thread")
@pytest.mark.parametrize("op", CASES)
def test_kernels_are_given_what_the_ops_compute_with(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_halves(monkeypatch, in_parts=False)
    for case in CASES[op]().values():
        assert_equal_bits(case, CPU)


@needs_native
@pytest.mark.usefixtures("stand_in", "one_thread")
@pytest.mark.parametrize("op", HALVES)
def test_halves_of_layers_are_the_same_in_parts(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = importlib.import_module(f"mvit_kernels.ops.{op}"), []
    by_kernels = module._by_cuda_kernels
    monkeypatch.setattr(module, "_by_cuda_kernels", lambda *arguments: asked.append(1) or by_kernels(*arguments))
    choose_halves(monkeypatch, in_parts=True)
    cases = CASES[op]()
    for case in cases.values():
        assert_equal_bits(case, CPU)
    assert len(asked) == len(cases)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("size", "are"), [((2, 16, 4, 6), True), ((2, 17, 4, 6), False), ((1, 264, 4, 4), False), ((1, 64, 96, 120), False)], ids=str
)
def test_attention_halves_of_bytes_that_are_three_launches(size: tuple[int, ...], are: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    op, asked = importlib.import_module("mvit_kernels.ops.qseparable_attention_block"), []
    choose_halves(monkeypatch, in_parts=False)
    by_kernels = op._by_cuda_kernels
    monkeypatch.setattr(op, "_by_cuda_kernels", lambda *arguments: asked.append(1) or by_kernels(*arguments))
    ops.prepare_qseparable_attention_block(*attention_layers(size[1]), backend="cuda")(stream_map(*size))
    assert bool(asked) is not are


@pytest.mark.usefixtures("stand_in", "one_thread")
@pytest.mark.parametrize(("padding", "is_one"), [(0, True), (255, True), (-1, False), (256, False), (torch.arange(32), False)], ids=str)
def test_inverted_residuals_of_bytes_that_are_three_launches(padding: Any, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    op, asked = importlib.import_module("mvit_kernels.ops.qinverted_residual"), []
    by_kernels = op._by_cuda_kernels
    monkeypatch.setattr(op, "_by_cuda_kernels", lambda *arguments: asked.append(1) or by_kernels(*arguments))
    ops.prepare_qinverted_residual(*inverted_residual_layers(16, 32, 16, 1, padding=padding), backend="cuda")(byte_map(1, 16, 4, 4))
    assert bool(asked) is not is_one


@pytest.mark.usefixtures("stand_in", "one_thread")
def test_attention_blocks_are_given_what_they_compute_with() -> None:
    for inputs, keywords in attention_blocks().values():
        assert_attention_block(inputs, keywords, CPU)


@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        ((1, 64, 4, 4), torch.float32, "no kernel for torch.float32"),
        ((1, 12, 4, 4), torch.float16, "multiples of 8 channels up to 512, got 12"),
        ((1, 520, 4, 4), torch.float16, "multiples of 8 channels up to 512, got 520"),
    ],
)
def test_attention_blocks_that_are_refused(monkeypatch: pytest.MonkeyPatch, size: Any, dtype: torch.dtype, reason: str) -> None:
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    inputs, keywords = attention_block(size, dtype, (2, 2))
    with pytest.raises(ValueError, match=f"backend 'cuda' was requested and cannot take this call: .*{reason}"):
        ops.separable_attention_block(*inputs, **keywords, backend="cuda")


@pytest.mark.usefixtures("stand_in")
def test_which_attention_blocks_are_one_launch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    op = importlib.import_module("mvit_kernels.ops.separable_attention_block")
    monkeypatch.setattr(cuda_support, "refuse", lambda _: None)

    def first(*size: int, dtype: torch.dtype = torch.float16) -> str:
        return op._order(torch.empty(size, dtype=dtype, device="meta"), (2, 2))[0]

    assert first(66, 256, 8, 8) == first(66, 192, 8, 16) == first(33, 128, 32, 32) == "cuda"
    assert first(65, 256, 8, 8) == first(65, 192, 8, 16) == first(32, 128, 32, 32) == "triton"
    assert first(256, 260, 8, 8) == first(256, 264, 8, 8) == first(256, 64, 8, 8, dtype=torch.float32) == "triton"
    assert first(2**17, 8, 2**7, 2**7) == "triton"  # more pixels than kernels count
    with packing.passing_weights():
        assert first(256, 128, 32, 32) == "triton"
    shapes = ShapeEnv()
    any_size = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 4)
    x = FakeTensorMode(shape_env=shapes).from_tensor(torch.empty(2, 64, 16, 16, dtype=torch.float16), symbolic_context=any_size)
    assert op._order(x, (2, 2))[0] == "triton"
    assert not shapes.guards  # compiled code stays one of any size


@pytest.mark.usefixtures("stand_in", "one_thread")
def test_residual_blocks_are_given_what_they_compute_with() -> None:
    for inputs, keywords in residual_blocks().values():
        assert_residual_block(inputs, keywords, CPU)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: residual_block((1, 16, 4, 4), 32, 16, torch.float32), "no kernel for torch.float32"),
        (lambda: residual_block((1, 12, 4, 4), 32, 16, torch.float16), "multiples of 8 channels, got 12, 32 hidden and 16 of y"),
        (lambda: residual_block((1, 16, 4, 4), 0, 16, torch.float16), "multiples of 8 channels, got 16, 0 hidden and 16 of y"),
        (lambda: residual_block((1, 16, 4, 4), 32, 136, torch.float16), "do not hold so many channels of y with stride 1, got 136"),
        (lambda: residual_block((1, 128, 4, 4), 32, 128, torch.float16), "a block needs 113440 bytes of shared memory, and has 101376 at"),
    ],
    ids=["float32", "channels", "hidden", "columns", "shared"],
)
@pytest.mark.skipif(cuda_support.native is None, reason="the CUDA kernels are not built: no nvcc was found")
def test_residual_blocks_that_are_refused(monkeypatch: pytest.MonkeyPatch, call: Any, reason: str) -> None:
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    monkeypatch.setattr(cuda_support, "_shared_of_block", lambda index: 101376)
    inputs, keywords = call()
    with pytest.raises(ValueError, match=f"backend 'cuda' was requested and cannot take this call: .*{reason}"):
        ops.inverted_residual(*inputs, **keywords, backend="cuda")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: phases((1, 4, 4), 2, 65), "heads of at most 64 channels, got 65"),
        (lambda: phases((1, 4, 4), 2, 8, q_zero_point=-1), "a q_zero_point in 0 .. 255, got -1"),
        (lambda: phases((1, 4, 4), 2, 8, q_zero_point=256), "a q_zero_point in 0 .. 255, got 256"),
        (lambda: phases((1, 64, 64), 2, 36), "a block needs 151680 bytes of shared memory, and has 101376 at"),
    ],
    ids=["deep", "low", "high", "shared"],
)
@pytest.mark.skipif(cuda_support.native is None, reason="the CUDA kernels are not built: no nvcc was found")
def test_phases_that_are_refused(monkeypatch: pytest.MonkeyPatch, call: Any, reason: str) -> None:
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    monkeypatch.setattr(cuda_support, "_shared_of_block", lambda index: 101376)
    with pytest.raises(ValueError, match=f"backend 'cuda' was requested and cannot take this call: .*{reason}"):
        call()(CPU, "cuda")


def test_phases_of_far_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something is that far away, or what is written would be."""
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    choose = importlib.import_module("mvit_kernels.ops.qpatch_attention").choose
    for shape, strides, heads in (
        ((1, 4, 4, 24), (1, 2**30, 24, 1), 2), ((1, 4, 4, 24), (1, 96, 2**30, 1), 2), ((1, 1, 2**14, 3 * 2**18), (1, 1, 0, 1), 2**18),
    ):  # fmt: skip
        qkv = torch.empty_strided(shape, strides, dtype=torch.uint8, device="meta")
        with pytest.raises(ValueError, match="cannot take this call: it takes images of at most 2147483647 bytes from first to last"):
            choose("cuda", qkv, heads, (1, 1), 120)


def test_residual_blocks_with_other_formulas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    (x, _, _, *rest), keywords = residual_block((1, 16, 4, 4), 16, 16, torch.float16)
    with pytest.raises(ValueError, match="no kernel without an expansion"):
        ops.inverted_residual(x, None, None, *rest, **keywords, backend="cuda")
    inputs, keywords = residual_block((1, 16, 4, 4), 32, 16, torch.float16)
    with pytest.raises(ValueError, match="SiLU alone, got relu"):
        ops.inverted_residual(*inputs, **keywords, activation="relu", backend="cuda")


@pytest.mark.usefixtures("stand_in", "one_thread")
def test_gradients_of_residual_blocks_are_those_of_plain_torch() -> None:
    """Of plain torch in the dtype of x, by the float rule."""
    inputs, keywords = residual_block((2, 16, 5, 4), 32, 16, torch.float16, residual=True)
    gradients = []
    for function, dtype in (
        (functools.partial(ops.inverted_residual, backend="cuda"), torch.float16),
        (reference.inverted_residual, torch.float16), (reference.inverted_residual, torch.float64),
    ):  # fmt: skip
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        y = function(*leaves, **keywords)
        gradients.append(torch.autograd.grad(y, leaves, torch.ones_like(y)))
    for ours, theirs, exact in zip(*gradients, strict=True):
        assert_float_rule(ours, theirs, exact)


@pytest.mark.usefixtures("stand_in", "one_thread")
@pytest.mark.parametrize("refusal", [None, "Triton is not installed"])
def test_gradients_of_attention_blocks_are_triton_s_where_it_takes_them(monkeypatch: pytest.MonkeyPatch, refusal: str | None) -> None:
    asked = []
    op = importlib.import_module("mvit_kernels.ops.separable_attention_block")

    def by_triton(*arguments: Any) -> tuple[Tensor, ...]:
        asked.append("triton")
        return op._composed_backward(*arguments)

    monkeypatch.setattr(op, "_triton_refuse", lambda *_: refusal)
    monkeypatch.setattr(op, "_triton_backward", by_triton)
    inputs, keywords = attention_block((2, 16, 4, 4), torch.float16, (2, 2))
    gradients = []
    for each in ("cuda", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = ops.separable_attention_block(*leaves, **keywords, backend=each)
        gradients.append(torch.autograd.grad(y, leaves, torch.ones_like(y)))
    assert asked == ([] if refusal else ["triton"])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("size", [(1, 1), (16, 32), (17, 33), (80, 130)], ids=str)
def test_tiles_hold_the_weight(bits: int, size: tuple[int, int]) -> None:
    weight = random_weight(*size, bits=bits)
    fragments = qfragments.PackFragments(*size, bits)(ops.pack_weight(weight, bits=bits).data)
    assert torch.equal(product_of(fragments.tiles.data_ptr(), *size, bits), weight)
    padded = torch.zeros(-(-size[0] // 64) * 64, -(-size[1] // 64) * 64, dtype=torch.int8)
    padded[: size[0], : size[1]] = weight
    assert torch.equal(product_of(fragments.tiles.data_ptr(), *padded.shape, bits), padded)


# --- what is refused ---


def test_tensors_of_the_cpu_are_refused() -> None:
    a, weight = torch.zeros(2, 1, dtype=torch.uint8), random_packed_weight(3, 1)
    reason = "not built" if cuda_support.native is None else "the tensor is on cpu"
    for call in (
        lambda: ops.qgemm(a, weight, a_scale=1.0, a_zero_point=0, w_scale=1.0, backend="cuda"),
        lambda: ops.qgemm_accumulate(a, weight, 0, backend="cuda"),
        lambda: ops.qconv2d(a[None, None], weight, kernel_size=1, a_scale=1.0, a_zero_point=0, w_scale=1.0, backend="cuda"),
        lambda: ops.qdepthwise_conv2d(a[None, None], random_weight(1, 1, 3, 3), a_scale=1.0, a_zero_point=0, backend="cuda"),
        lambda: phases((1, 2, 2), 1, 4)(CPU, "cuda"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"backend 'cuda' was requested and cannot take this call: .*{reason}"):
            call()


def test_deep_weights_of_six_bits_are_refused() -> None:
    """Four times their sums must fit in int32."""
    most = next(depth for depth in range(67_000, 69_000) if 4 * 31 * 255 * (depth + 1) >= 2**31)
    assert cuda_support.refuse_deep_int6(most, 6) is None
    assert cuda_support.refuse_deep_int6(most + 1, 8) is None
    assert f"up to a depth of {most}, this one has {most + 1}" in str(cuda_support.refuse_deep_int6(most + 1, 6))


class OnGpu:
    """What `refuse` asks a tensor."""

    is_cuda, device = True, torch.device("cuda", 3)


def test_old_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_support.too_old.cache_clear()
    monkeypatch.setattr(cuda_support, "native", StandIn())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    capabilities = {3: (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert cuda_support.refuse(OnGpu()) == "GPU 3 has compute capability 7.5, the kernels need 8.0"
    cuda_support.too_old.cache_clear()
    capabilities[3] = (9, 0)
    assert cuda_support.refuse(OnGpu()) is None
    cuda_support.too_old.cache_clear()


@pytest.mark.parametrize(
    ("built", "torch_cuda", "available", "reason"),
    [(False, "13.0", True, "not built"), (True, None, False, "built without CUDA"), (True, "13.0", False, "no GPU is available")],
)
def test_why_no_device_is_usable(
    monkeypatch: pytest.MonkeyPatch, built: bool, torch_cuda: str | None, available: bool, reason: str
) -> None:
    monkeypatch.setattr(cuda_support, "native", StandIn() if built else None)
    monkeypatch.setattr(cuda_support, "REASON", "the CUDA kernels are not built (no nvcc)")
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    detail, told = cuda_support.describe()
    assert detail == ""
    assert reason in told


def test_backends_tell_what_the_support_says() -> None:
    info = backend.backends()["cuda"]
    assert (info.detail, info.reason) == cuda_support.describe()
    assert info.usable == (not info.reason)


def test_unaligned_channels_are_refused() -> None:
    x = torch.zeros(64, dtype=torch.int32)
    cuda_support.aligned("qgemm", "channels", x)
    with pytest.raises(ValueError, match="qgemm: channels: expected memory at a multiple of 16 bytes, got 0x"):
        cuda_support.aligned("qgemm", "channels", x[1:])


def test_nothing_is_copied_into_a_graph_that_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    refused = cuda_support.once
    monkeypatch.setattr(cuda_support, "once", lambda what, _: refused(what, torch.device("cuda")))
    expected = "expected to be on cuda before a CUDA graph is captured, got a first call inside of the capture: call the op once before"
    with pytest.raises(RuntimeError, match=f"prepared tensors: {expected}"):
        Placed(torch.zeros(1)).on(torch.device("cuda"))
    with pytest.raises(RuntimeError, match=f"packed weights: {expected}, and capture again after a change of weights"):
        packing.packed(lambda x: pytest.fail("packed inside of the capture"), torch.zeros(1))


def test_a_call_that_prepares_for_itself_is_no_part_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = type("OnGpu", (), {"is_cuda": True})()
    monkeypatch.setattr(checks, "all_tensors", lambda *_, **__: None)
    monkeypatch.setattr(checks, "is_tensor", lambda *_: None)
    weight, scales = random_packed_weight(8, 9), {"a_scale": 0.1, "a_zero_point": 3, "w_scale": 0.1}
    points = {f"{name}_{each}": 1 for name in ("q", "k", "v", "out") for each in ("scale", "zero_point")}
    for name, call in {
        "qgemm": lambda: ops.qgemm(x, weight, **scales),
        "qconv2d": lambda: ops.qconv2d(x, weight, kernel_size=3, **scales),
        "qdepthwise_conv2d": lambda: ops.qdepthwise_conv2d(x, random_weight(2, 1, 3, 3), **scales),
        "qnorm_gemm": lambda: ops.qnorm_gemm(x, weight, scale=0.1, **scales),
        "qattention": lambda: ops.qattention(x, x, x, 1, scale=1.0, **points),
    }.items():
        with pytest.raises(RuntimeError, match=f"{name}: expected a call of what prepare_{name} makes, which was called once before"):
            call()


def test_sizes_that_the_kernels_cannot_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one element: nothing is read, nor written."""
    monkeypatch.setattr(cuda_support, "refuse", lambda *_: None)
    monkeypatch.setattr(cuda_support, "refuse_shared", lambda *_: None)
    native = {"inverted_residual_shared": lambda *_: 1024, "qnorm_gemm_channels": 512}
    monkeypatch.setattr(cuda_support, "native", type("Native", (), native))
    large, small = (torch.zeros(1, dtype=torch.half).expand(size, 8, 2**7, 2**7) for size in (2**17, 2**16))
    matrix, taps = torch.zeros(1).expand(8, 8, 1, 1), torch.zeros(1).expand(8, 1, 3, 3)
    calls = {
        "separable_attention_block": (),
        "inverted_residual": (matrix, None, taps, None, matrix, None, 1, False, "silu"),
        "qconv2d": (72, 8, 16),
        "qdepthwise_conv2d": (taps,),
        "qfeed_forward": ([16, 8, 8], [8, 16, 8]),
    }
    modules = {name: importlib.import_module(f"mvit_kernels.ops.{name}") for name in (*calls, "qnorm_gemm")}
    for name, rest in calls.items():
        refuse = modules[name]._cuda_refuse
        assert refuse(large, *rest) == "it has no kernel for 2147479552 pixels or rows and more, got 2147483648"
        assert refuse(small, *rest) is None
    refuse, of_lines = modules["qconv2d"]._cuda_refuse, modules["qdepthwise_conv2d"]._cuda_refuse
    assert refuse(small, 72, 8, 64 * 65535) is None
    assert refuse(small, 72, 8, 64 * 65535 + 1) == "it takes up to 4194240 channels of y, got 4194241"
    of_rows, product = modules["qnorm_gemm"]._cuda_refuse, (8, 8, torch.uint8, True, None)
    rows = torch.zeros(1, dtype=torch.int16).expand(counts.MOST, 8)
    assert of_rows(rows, *product) == "it has no kernel for 2147479552 pixels or rows and more, got 2147479552"
    assert of_rows(rows[1:], *product) is None
    wide = torch.zeros(1).expand(1, 2**10, 1, 2**21)
    assert of_lines(wide) == "it has no kernel for rows of a map that are 2^31 values long and more, got 2147483648"
    assert of_lines(wide[..., 1:]) is None


@pytest.mark.skipif(cuda_support.native is None, reason="the CUDA kernels are not built: no nvcc was found")
def test_what_halves_of_layers_need_is_counted_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    native, points = cuda_support.native, 82_595_525
    assert native.qattention_context_shared(8, 33) == 64 * (48 + 1 + 3) + 32
    assert native.qattention_context_shared(8, points) == -(-points // 32) * 32 * 52 + 32
    assert native.qattention_context_shared(8, 2**40) == 2**40 * 52 + 32
    assert native.qattention_pieces(8, 3, 2**40) == 3 * 2**35
    assert native.qfeed_forward_pieces(8, 2**31 - 1) == 2**26
    monkeypatch.setattr(cuda_support, "_shared_of_block", lambda index: 101376)
    monkeypatch.setattr(cuda_support, "processors", lambda device: 132)
    choose_halves(monkeypatch, in_parts=False)
    are_three = importlib.import_module("mvit_kernels.ops.qseparable_attention_block")._is_three_launches
    line = torch.zeros(1, dtype=torch.int16).expand(1, 8, 1, points)
    assert are_three(line[..., :1000], (1, 1), False)
    assert not are_three(line, (1, 1), False)
    norm, nothing = (0, 1, 1.0, 1.0, 0, 1e-5, 8), 0
    with pytest.raises(RuntimeError, match="qattention_context: the CUDA kernel was not launched: cudaErrorInvalidConfiguration"):
        native.qattention_context(
            0, 0, tuple(line.shape), (1, 1), nothing, norm, nothing, nothing, 1, nothing, 1.0, (0, 8), nothing
        )  # fmt: skip


class Streams:
    """Stands in for those of a GPU: `told` is what they were asked to do. Nothing here has what the host waits with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.capturing, self.told = 0, False, []
        streams = self

        class Stream:
            def __init__(self, _: torch.device) -> None:
                self.number = streams.current

            def wait_event(self, event: Event) -> None:
                streams.told.append(("wait", self.number, event.recorded))

        class Event:
            def record(self, stream: Stream) -> None:
                self.recorded = stream.number
                streams.told.append(("record", stream.number))

        class Kept:
            def record_stream(self, stream: Stream) -> None:
                streams.told.append(("keep", stream.number))

        self.tensor = Kept
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: self.current, raising=False)


def test_streams_wait_for_the_one_that_packed_and_the_host_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    streams.current = 1
    made = cuda_support.Made(torch.device("cuda", 1), [streams.tensor(), streams.tensor()])
    assert streams.told == [("record", 1)]
    made.take()
    streams.current, streams.capturing = 2, True
    made.take()  # what is captured can wait for nothing that went before
    assert streams.told == [("record", 1)]
    streams.capturing = False
    for _ in range(3):  # once is enough
        made.take()
    assert streams.told == [("record", 1), ("wait", 2, 1), ("keep", 2), ("keep", 2)]
    streams.current = 3
    made.take()
    assert streams.told[4:] == [("wait", 3, 1), ("keep", 3), ("keep", 3)]


def test_packed_weights_of_a_gpu_are_taken_before_every_call_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Made:
        def __init__(self, device: torch.device, tensors: list[Tensor]) -> None:
            told.append(("made", device.type, len(tensors)))

        def take(self) -> None:
            told.append("take")

    monkeypatch.setattr(cuda_support, "Made", Made)
    monkeypatch.setattr(packing, "_on_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def recipe(x: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        told.append("packed")
        return x + 1, (x, 3)

    weight = torch.zeros(3)
    first = packing.packed(recipe, weight)
    assert told == ["packed", ("made", "cpu", 2)]
    assert packing.packed(recipe, weight) is first
    assert told[2:] == ["take"]
    weight.add_(1)
    assert packing.packed(recipe, weight) is not first
    assert told[3:] == ["packed", ("made", "cpu", 2)]


def test_what_changes_beside_weights_changes_what_was_packed() -> None:
    weight, count = torch.zeros(3), torch.zeros(())
    first = packing.packed(torch.neg, weight, beside=[count])
    assert packing.packed(torch.neg, weight, beside=[count]) is first
    count.add_(1)
    again = packing.packed(torch.neg, weight, beside=[count])
    assert again is not first
    assert packing.packed(torch.neg, weight, beside=[count.clone()]) is not again


def test_prepared_tensors_follow_the_input() -> None:
    """On `meta`, the one other device that is always there: fakes of every op take what was prepared there."""
    weight = random_packed_weight(8, 9)
    assert weight.on(CPU) is weight.data
    product = ops.prepare_qgemm(weight, 0.1, 3, 0.01, out_dtype=torch.uint8, out_scale=0.1, out_zero_point=0)
    assert product(torch.empty(2, 9, dtype=torch.uint8, device="meta")).shape == (2, 8)
    assert weight.on(torch.device("meta")) is weight.on(torch.device("meta"))
    layer = ops.prepare_qconv2d(weight, 0.1, 3, 0.01, kernel_size=3, out_dtype=torch.float32)
    assert layer(torch.empty(2, 1, 4, 4, dtype=torch.uint8, device="meta")).device.type == "meta"
    thin = ops.prepare_qdepthwise_conv2d(random_weight(2, 1, 3, 3), a_scale=0.1, a_zero_point=3)
    assert thin(torch.empty(2, 2, 4, 4, dtype=torch.uint8, device="meta")).device.type == "meta"


def test_kernels_of_ops_with_gradients_are_heard() -> None:
    """What is launched past `cuda_support.launch` would be missing where a call is made again (ops/launches.py)."""
    launching = 0
    for choice in backend.Choice.every:
        if "cuda" not in choice.implementations:
            continue
        source = inspect.getsource(inspect.getmodule(choice.implementations["cuda"].forward))
        if "register_autograd(" in source:
            launching += "cuda_support.launch(" in source
            assert not re.search(r"\bnative\.\w+\(\s*\*cuda_support\.place", source), choice.op
    assert launching == 2


def test_torch_goes_to_another_device_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    elsewhere = cuda_support.there(0)
    assert isinstance(elsewhere, torch.cuda.device)
    assert elsewhere.idx == 0
    assert not any(isinstance(cuda_support.there(device), torch.cuda.device) for device in (1, -1))
