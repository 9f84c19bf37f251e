"""qresize: equal bits on every instruction set, in plain torch and to a loop of numpy, and near torch's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_checks import FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes

from mvit_kernels import ops

Tensor = torch.Tensor
# size, output_size
SIZES = [
    ((1, 1, 1, 1), (1, 1)),
    ((2, 3, 1, 5), (4, 1)),
    ((1, 16, 7, 9), (8, 10)),
    ((2, 33, 8, 10), (7, 9)),
    ((1, 65, 5, 5), (5, 5)),
    ((1, 7, 3, 4), (17, 1)),
    ((0, 3, 4, 4), (5, 5)),
    ((1, 2, 31, 15), (13, 40)),
]


def exact(x: Tensor, output_size: tuple[int, int], align_corners: bool) -> Tensor:
    return (
        F.interpolate(x.double(), output_size, mode="bilinear", align_corners=align_corners)
        if x.shape[0]
        else x.new_zeros(0, 3, 5, 5).double()
    )


def oracle(x: Tensor, output_size: tuple[int, int], align_corners: bool) -> Tensor:
    """By matrices of integer weights."""

    def matrix(size: int, out: int) -> np.ndarray:
        weights = np.zeros((out, size), np.int64)
        for i in range(out):
            scale = (size - 1) / (out - 1) if align_corners and out > 1 else 0.0 if align_corners else size / out
            at = i * scale if align_corners else max((i + 0.5) * scale - 0.5, 0.0)
            first = min(int(at), size - 1)
            weight = round((at - first) * 2048)
            weights[i, first] += 2048 - weight
            weights[i, min(first + 1, size - 1)] += weight
        return weights

    rows, columns = (matrix(size, out) for size, out in zip(x.shape[2:], output_size, strict=True))
    sums = rows @ x.numpy().astype(np.int64) @ columns.T
    return torch.from_numpy(np.rint(sums.astype(np.float32) * np.float32(2.0**-22)).astype(np.uint8))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("size", "output_size"), SIZES, ids=str)
def test_resize(size, output_size, fmt: str, align_corners: bool, backend: str, poison) -> None:
    x = random_bytes(*size).contiguous(memory_format=FORMATS[fmt])
    y = ops.qresize(x, output_size, align_corners=align_corners, backend=backend)
    assert torch.equal(y, oracle(x, output_size, align_corners))
    assert y.is_contiguous(memory_format=torch.channels_last)
    difference = (y - exact(x, output_size, align_corners)).abs()
    assert not difference.numel() or difference.max() <= 0.625
    if size[2:] == output_size:
        assert torch.equal(y, x)
    constant = torch.full(size, 255, dtype=torch.uint8)
    assert (ops.qresize(constant, output_size, align_corners=align_corners, backend=backend) == 255).all()


def test_any_strides(backend: str) -> None:
    big = random_bytes(4, 6, 8, 10)
    for x in (big[1:, ::2], big[..., ::2], big.transpose(2, 3), big.permute(0, 3, 1, 2), big[:, :1].expand(-1, 3, -1, -1)):
        assert torch.equal(ops.qresize(x, (9, 9), backend=backend), oracle(x, (9, 9), False))


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x = random_bytes(3, 50, 31, 31)
    assert_same_bits_with_any_threads(lambda: [ops.qresize(x, (32, 32), backend="cpu")], threads)


def test_opcheck() -> None:
    x = random_bytes(2, 3, 4, 5)
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(torch.ops.mvit_kernels.qresize, (each, [5, 6], True))


def test_compiles_and_exports() -> None:
    def larger(x: Tensor) -> Tensor:
        return ops.qresize(x, (x.shape[2] + 1, x.shape[3] + 1), align_corners=True)

    assert_compiles_and_exports(larger, [random_bytes(2, 3, 4, 5)], [random_bytes(5, 3, 7, 9)], dynamic=[axes(0, 2, 3)])


X = torch.zeros(1, 2, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.qresize(None, (2, 2)), TypeError, "qresize: x: expected a tensor, got NoneType"),
        (lambda: ops.qresize(X.float(), (2, 2)), TypeError, "qresize: x: expected dtype uint8, got float32"),
        (lambda: ops.qresize(X[0], (2, 2)), ValueError, r"qresize: x: expected 4 dimensions, got shape \(2, 4, 4\)"),
        (lambda: ops.qresize(X[:, :, :0], (2, 2)), ValueError, "qresize: x: expected at least one channel and one pixel"),
        (lambda: ops.qresize(X, 3), TypeError, "qresize: output_size: expected two integers, got 3"),
        (lambda: ops.qresize(X, (3, 0)), ValueError, r"qresize: output_size: expected two positive integers, got \(3, 0\)"),
        (lambda: ops.qresize(X, (3, 3), align_corners=None), TypeError, "qresize: align_corners: expected True or False, got None"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
