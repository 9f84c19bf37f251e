"""Integer weights in the form that kernels read: one tensor of bytes that says what it is. csrc/cpu/core/qweight.h has the layout."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch
import torch.nn.functional as F

from mvit_kernels.messages import shown

from . import checks
from .placed import Placed

OP = "pack_weight"
QPANEL = 16  # columns
MOST = {8: 127, 6: 31}
_MAGIC, _VERSION = b"MVITQMAT", 1
_HEADER = struct.Struct("<8sIIqqqiI16x")


class PackedWeight:
    """A packed (N, K) matrix of int8 or int6 weights.

    It holds one tensor, `data`: uint8, on the CPU, which can be saved (safetensors, pickle, torch.save), copied and given to
    `PackedWeight(data)` again. It is made from the int8 weight and made anew when that changes.

    Attributes:
        data: the bytes.
        columns, depth: N and K.
        bits: 8, or 6: three bytes for four values.

    Raises:
        ValueError: data is no packed weight of this version, is truncated or damaged (its checksum is compared).
    """

    def __init__(self, data: torch.Tensor) -> None:
        checks.tensor("PackedWeight", "data", data, 1, (torch.uint8,))
        data = data.contiguous()
        if data.data_ptr() % 4 or data.storage_offset() % 4:  # a part of a file: sums are read as int32
            data = data.clone()
        raw = _raw(data)
        if len(raw) < _HEADER.size:
            raise ValueError(f"PackedWeight: data: expected at least {_HEADER.size} bytes, got {len(raw)}")
        magic, version, bits, columns, depth, size, largest, checksum = _HEADER.unpack(raw[: _HEADER.size])
        if magic != _MAGIC:
            raise ValueError(f"PackedWeight: data: expected a packed weight, which begins with {_MAGIC!r}, got {magic!r}")
        if version != _VERSION:
            raise ValueError(f"PackedWeight: data: expected version {_VERSION}, got {version}: pack the int8 weight again")
        if bits not in MOST or columns < 0 or depth < 0 or size != len(raw) or size != _size(columns, depth, bits):
            what = f"{columns} x {depth} values of {bits} bits"
            raise ValueError(f"PackedWeight: data: expected {size} bytes, of {what}, got {len(raw)}")
        if checksum != zlib.crc32(raw[_HEADER.size :]):
            raise ValueError(f"PackedWeight: data: expected checksum {checksum}, got {zlib.crc32(raw[_HEADER.size :])}: it is damaged")
        self.data, self.columns, self.depth, self.bits, self.largest = data, columns, depth, bits, largest
        self.filtered: torch.Tensor | None = None  # what `qconv2d` made of it
        self._placed = Placed(data)

    @property
    def sum(self) -> torch.Tensor:
        """(N,) int32: the sum of each row."""
        return self._sums(0)

    @property
    def sum_abs(self) -> torch.Tensor:
        """(N,) int32: the sum of the absolute values of each row."""
        return self._sums(1)

    def on(self, device: torch.device) -> torch.Tensor:
        """`data` on that device, copied there once."""
        (data,) = (self.data,) if device.type == "cpu" else self._placed.on(device)
        assert data is not None
        return data

    def unpack(self) -> torch.Tensor:
        """The (N, K) int8 weight."""
        return unpack_bytes(self.data, self.columns, self.depth, self.bits)

    def _sums(self, which: int) -> torch.Tensor:
        width = 4 * QPANEL * _panels(self.columns)
        begin = _HEADER.size + which * width
        return self.data[begin : begin + width].view(torch.int32)[: self.columns]

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.data,)

    def __repr__(self) -> str:
        return f"PackedWeight({self.columns} x {self.depth}, {self.bits} bits)"


def pack_weight(weight: torch.Tensor, *, bits: int = 8) -> PackedWeight:
    """weight (N, K) int8 with values in [-127, 127], or [-31, 31] for bits=6, as `PackedWeight`.

    The weight of a convolution, (N, C, k, k), becomes the matrix (N, k k C) of what an output pixel sees: columns in the order (ky, kx, c).

    Raises:
        TypeError, ValueError: another dtype, rank, number of bits, or values beyond the range.
    """
    checks.is_tensor(OP, "weight", weight)
    if weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1).flatten(1)
    checks.tensor(OP, "weight", weight, 2, (torch.int8,))
    if bits not in MOST:
        raise ValueError(f"{OP}: bits: expected 8 or 6, got {shown(bits)}")
    weight = weight.detach().cpu()
    if weight.numel() and (low_high := weight.aminmax()):
        low, high = int(low_high.min), int(low_high.max)
        if max(-low, high) > MOST[bits]:
            raise ValueError(f"{OP}: weight: expected values in [-{MOST[bits]}, {MOST[bits]}], got [{low}, {high}]")
    columns, depth = weight.shape
    wide = weight.to(torch.int32)
    sums = torch.stack([wide.sum(1), wide.abs().sum(1)])
    largest = int(sums[1].max()) if sums.numel() else 0
    if largest >= 2**31 // 256:
        raise ValueError(f"{OP}: weight: expected rows whose absolute values sum to less than 2^23, got {largest} with K = {depth}")
    beyond = QPANEL * _panels(columns) - columns
    blocks = _blocks(F.pad(weight, (0, -depth % (4 if bits == 8 else 16), 0, beyond)))
    panels = blocks if bits == 8 else _planes(blocks)
    body = torch.cat([F.pad(sums.to(torch.int32), (0, beyond)).view(torch.uint8).flatten(), panels.flatten()])
    header = _HEADER.pack(
        _MAGIC, _VERSION, bits, columns, depth, _HEADER.size + body.numel(), largest, zlib.crc32(_raw(body))
    )  # fmt: skip
    return PackedWeight(torch.cat([torch.frombuffer(bytearray(header), dtype=torch.uint8), body]))


def check_packed(op: str, weight: torch.Tensor, columns: int, depth: int, bits: int, device: torch.device) -> None:
    """weight has the size of such a packed weight. Whether it is one is what its header says, at which the kernel looks."""
    if bits not in MOST or columns < 0 or depth < 0:
        raise ValueError(f"{op}: weight: expected 8 or 6 bits and sizes of at least 0, got {columns} x {depth} values of {bits} bits")
    checks.prepared(op, "weight", weight, torch.uint8, (_size(columns, depth, bits),), device)


def unpack_bytes(data: torch.Tensor, columns: int, depth: int, bits: int) -> torch.Tensor:
    """The int8 weight (N, K) in the bytes of a `PackedWeight`, on their device."""
    panels = _panels(columns)
    body = data[_HEADER.size + 8 * QPANEL * panels :]
    shape = (panels, -(-depth // 16), 3, QPANEL, 4) if bits == 6 else (panels, -(-depth // 4), QPANEL, 4)
    blocks = _from_planes(body.view(shape)) if bits == 6 else body.view(shape)
    padded = blocks.view(torch.int8).permute(0, 2, 1, 3).reshape(panels * QPANEL, 4 * blocks.shape[1])
    return padded[:columns, :depth].contiguous()


def _raw(data: torch.Tensor) -> memoryview:
    return memoryview(data.cpu().numpy().data)


def _panels(columns: int) -> int:
    return -(-columns // QPANEL)


def _size(columns: int, depth: int, bits: int) -> int:
    panel = -(-depth // 16) * 192 if bits == 6 else -(-depth // 4) * 64
    return _HEADER.size + _panels(columns) * (8 * QPANEL + panel)


def _blocks(padded: torch.Tensor) -> torch.Tensor:
    """(N, K) -> (N / 16, K / 4, 16, 4) uint8."""
    columns, depth = padded.shape
    return padded.reshape(columns // QPANEL, QPANEL, depth // 4, 4).transpose(1, 2).contiguous().view(torch.uint8)


def _planes(blocks: torch.Tensor) -> torch.Tensor:
    """Four blocks of 6-bit values as three planes: (P, 4 n, 16, 4) -> (P, n, 3, 16, 4)."""
    panels, count = blocks.shape[:2]
    v = (blocks & 63).reshape(panels, count // 4, 4, QPANEL, 4)
    last = v[:, :, 3]
    return torch.stack([v[:, :, i] | ((last >> (2 * i)) & 3) << 6 for i in range(3)], dim=2)


def _from_planes(planes: torch.Tensor) -> torch.Tensor:
    p = [planes[:, :, i] for i in range(3)]
    last = p[0] >> 6 | (p[1] >> 6) << 2 | (p[2] >> 6) << 4
    v = torch.stack([*(each & 63 for each in p), last], dim=2)
    return ((v ^ 32) - 32).flatten(1, 2)  # modulo 256: the sign goes all the way up
