"""qpool_mixer: pool_mixer of bytes, at tolerance 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_checks import FORMATS, assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, axes, random_bytes

from mvit_kernels import ops

Tensor = torch.Tensor
SIZES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 48, 14, 14), (2, 65, 7, 3), (1, 17, 1, 9), (3, 16, 6, 1)]


def mix_bytes(x: Tensor, scale: Tensor, backend: str | None, **changes: object) -> Tensor:
    settings = {"a_scale": 0.03, "a_zero_point": 117, "out_scale": 0.021, "out_zero_point": 130} | changes
    return ops.qpool_mixer(x, scale, **settings, backend=backend)


def oracle(x: Tensor, scale: Tensor, a_scale: float, a_zero_point: int, out_scale: float, out_zero_point: int, bits: int = 8) -> Tensor:
    f = np.float32
    ratio = float(f(a_scale)) / float(f(out_scale))
    exact = scale.double().numpy()[:, None, None]
    keep, move = ((1 - exact) * ratio).astype(f), (exact * ratio).astype(f)
    q = x.numpy().astype(np.int64) - a_zero_point

    def sums(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        return sum(padded[:, :, i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3))

    t = q.astype(f) * keep + (sums(q).astype(f) * (f(1) / sums(np.ones_like(q)).astype(f))) * move
    return torch.from_numpy(np.clip(np.rint(t).astype(np.int64) + out_zero_point, 0, 2**bits - 1).astype(np.uint8))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bytes(size, fmt: str, backend: str, isa: str, poison) -> None:
    x, scale = random_bytes(*size).contiguous(memory_format=FORMATS[fmt]), torch.rand(size[1])
    for a_zero_point in (0, 117, -(2**20), 2**20):
        for out_zero_point, bits in ((130, 8), (20, 6), (-(2**20), 8)):
            y = mix_bytes(x, scale, backend, a_zero_point=a_zero_point, out_zero_point=out_zero_point, out_bits=bits)
            assert torch.equal(y, oracle(x, scale, 0.03, a_zero_point, 0.021, out_zero_point, bits))


@needs_native
def test_same_bits_with_any_threads(threads) -> None:
    x, scale = random_bytes(3, 40, 30, 30), torch.rand(40)
    assert_same_bits_with_any_threads(lambda: [mix_bytes(x, scale, "cpu")], threads)


def test_opcheck_and_compile() -> None:
    x, scale = random_bytes(2, 3, 4, 5), torch.rand(3)
    torch.library.opcheck(torch.ops.mvit_kernels.qpool_mixer, (x, torch.rand(3), torch.rand(3), 3, 5, 8))
    assert_compiles_and_exports(lambda x: mix_bytes(x, scale, None), [x], [random_bytes(5, 3, 4, 5)], dynamic=[axes(0)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mix_bytes(torch.zeros(1, 2, 3, 3), torch.zeros(2), None), TypeError, "qpool_mixer: x: expected dtype uint8, got float32"),
        (lambda: mix_bytes(random_bytes(1, 2, 3, 3), torch.zeros(3), None), ValueError, "qpool_mixer: scale: expected 2 floats, got"),
        (lambda: mix_bytes(random_bytes(1, 2, 3, 3), torch.zeros(2), None, a_zero_point=2**21), ValueError, "a_zero_point: expected"),
        (lambda: mix_bytes(random_bytes(1, 2, 3, 3), torch.zeros(2), None, out_scale=0.0), ValueError, "out_scale: expected a positive"),
        (lambda: mix_bytes(random_bytes(1, 2, 3, 3), torch.zeros(2), None, out_bits=7), ValueError, "out_bits: expected 8 or 6, got 7"),
    ],
)
def test_bad_input(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
