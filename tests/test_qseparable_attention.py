from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, random_bytes

import mvit_kernels as mk
from mvit_kernels import reference

pytestmark = pytest.mark.usefixtures("one_thread")

# (B, H, W, d), patch: tails of every vector, several tasks, phases in one or both directions, a phase of one pixel, and of many.
MAPS = [
    ((1, 2, 2, 1), (2, 2)),
    ((2, 4, 6, 7), (2, 2)),
    ((1, 4, 4, 33), (2, 2)),
    ((2, 3, 4, 17), (3, 1)),
    ((1, 2, 8, 65), (1, 4)),
    ((3, 2, 5, 16), (1, 1)),
    ((1, 8, 16, 129), (2, 2)),
    ((1, 36, 32, 40), (2, 2)),
]
CONTEXT = {"x_scale": 0.021, "x_zero_point": 117}
BYTES = {"out_scale": 0.013, "out_zero_point": 130}
GATE = {"v_scale": 0.017, "v_zero_point": 90, "out_scale": 0.02, "out_zero_point": 60}


def draw(size, most: int = 255) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores and values of one projection, and a context."""
    batch, height, width, dim = size
    qv = random_bytes(batch, height, width, 1 + dim, most=most)
    return qv[..., 0], qv[..., 1:], random_bytes(*size, most=most)


def oracle_context(scores, x, table, patch, x_scale, x_zero_point, out_scale=None, out_zero_point=0, out_bits=8):
    """The formula value by value: Python's integers and floats."""
    batch, height, width, dim = x.shape
    y = []
    for image in range(batch):
        for phase in range(patch[0] * patch[1]):
            rows, columns = range(phase // patch[1], height, patch[0]), range(phase % patch[1], width, patch[1])
            q = [int(scores[image, i, j]) for i in rows for j in columns]
            e = [int(table[max(q) - each]) for each in q]
            for channel in range(dim):
                weighted = sum(
                    a * int(x[image, i, j, channel]) for a, (i, j) in zip(e, [(i, j) for i in rows for j in columns], strict=True)
                )
                t = weighted / sum(e) - x_zero_point
                if out_scale is None:
                    y.append(np.float32(t * x_scale))
                else:
                    t = min(max(t * (x_scale / out_scale), -out_zero_point), 2**out_bits - 1 - out_zero_point)
                    y.append(round(t) + out_zero_point)
    dtype = torch.float32 if out_scale is None else torch.uint8
    return torch.tensor(np.array(y)).to(dtype).reshape(batch, patch[0] * patch[1], dim)


def single(value: float) -> float:
    return float(np.float32(value))


@pytest.mark.parametrize(("size", "patch"), MAPS, ids=str)
def test_every_tail(size, patch, isa: str, poison) -> None:
    for most, bits in ((255, 8), (63, 6)):
        scores, v, x = draw(size, most)
        context = functools.partial(mk.ops.qseparable_context, scores, x, patch_size=patch, **CONTEXT)
        gate = functools.partial(mk.ops.qseparable_gate, v, patch_size=patch, out_bits=bits, **GATE)
        for scale in (0.05, 3.0):
            table = mk.ops.exponential_table(scale)
            for settings in ({}, {**BYTES, "out_bits": bits}):
                assert torch.equal(context(table, backend="cpu", **settings), context(table, backend="reference", **settings))
        k = torch.randn(size[0], patch[0] * patch[1], size[3])
        assert torch.equal(gate(k, backend="cpu"), gate(k, backend="reference"))


@pytest.mark.parametrize(("size", "patch"), MAPS[:6], ids=str)
def test_reference_against_the_formula(size, patch) -> None:
    scores, v, x = draw(size)
    table = mk.ops.exponential_table(0.05)
    x_scale, out_scale = single(CONTEXT["x_scale"]), single(BYTES["out_scale"])
    for settings, out in (({}, ()), (BYTES, (out_scale, 130))):
        y = mk.ops.qseparable_context(scores, x, table, patch_size=patch, backend="reference", **CONTEXT, **settings)
        assert torch.equal(y, oracle_context(scores, x, table, patch, x_scale, 117, *out))
    k = torch.randn(size[0], patch[0] * patch[1], size[3])
    y = mk.ops.qseparable_gate(v, k, patch_size=patch, backend="reference", **GATE)
    ratio = np.float32(single(GATE["v_scale"]) / single(GATE["out_scale"]))
    for (b, i, j, c), byte in np.ndenumerate(y.numpy()):
        m = np.float32(k[b, i % patch[0] * patch[1] + j % patch[1], c]) * ratio
        t = np.float32(max(int(v[b, i, j, c]) - 90, 0)) * m
        assert byte == int(np.rint(np.clip(t, -60, 195))) + 60


def test_it_is_separable_attention() -> None:
    """Near `separable_attention` on the same real numbers: within the steps of the table and of the result."""
    scores, v, k = draw((2, 8, 8, 24))
    y = mk.ops.qseparable_context(scores, k, mk.ops.exponential_table(0.02), **CONTEXT)
    y = mk.ops.qseparable_gate(v, y, **GATE)
    real = [0.02 * scores.float()[..., None], 0.021 * (k.float() - 117), 0.017 * (v.float() - 90)]
    exact = reference.separable_attention(torch.cat(real, -1).permute(0, 3, 1, 2).double(), (2, 2)).permute(0, 2, 3, 1)
    assert (0.02 * (y.double() - 60) - exact.clamp(-60 * 0.02, 195 * 0.02)).abs().max() < 0.0102


def test_table() -> None:
    table = mk.ops.exponential_table(0.1)
    assert (table.dtype, table.shape, int(table[0])) == (torch.int32, (256,), 2**16)
    exact = 2.0**16 * torch.exp(-0.1 * torch.arange(256, dtype=torch.float64))
    assert (table - exact).abs().max() <= 0.5001


@needs_native
def test_extremes(isa: str) -> None:
    """All scores equal, one above all others, values at the ends, many pixels: sums of 32 bits are carried on at their largest."""
    size = (1, 34, 32, 70)
    for score, other in ((255, 255), (0, 0), (255, 0)):
        for value in (0, 255):
            scores = torch.full(size[:3], other, dtype=torch.uint8)
            scores[:, ::9, ::7] = score
            x = torch.full(size, value, dtype=torch.uint8)
            x[0, 0, 0] = 255 - value
            for scale in (1e-30, 0.05, 30.0):
                table = mk.ops.exponential_table(scale)
                for patch in ((2, 2), (1, 1)):
                    a, b = (
                        mk.ops.qseparable_context(scores, x, table, patch_size=patch, backend=each, x_scale=1.0, x_zero_point=-(2**31))
                        for each in ("cpu", "reference")
                    )
                    assert torch.equal(a, b)
    v = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 2, 2, 9)
    for value in (float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 1e-40):
        k = torch.full((1, 4, 18), value)
        for zero_point in (-(2**20), 0, 255, 2**20):
            settings = {**GATE, "v_zero_point": zero_point, "out_zero_point": zero_point}
            a, b = (mk.ops.qseparable_gate(v, k, backend=each, **settings) for each in ("cpu", "reference"))
            assert torch.equal(a, b)


@needs_native
def test_threads(threads) -> None:
    scores, v, x = draw((3, 32, 32, 200))
    table, k = mk.ops.exponential_table(0.03), torch.randn(3, 4, 200)

    def both() -> list[torch.Tensor]:
        return [mk.ops.qseparable_context(scores, x, table, backend="cpu", **CONTEXT), mk.ops.qseparable_gate(v, k, backend="cpu", **GATE)]

    assert_same_bits_with_any_threads(both, threads)


@both_backends
def test_any_strides_and_empty(backend: str) -> None:
    context = functools.partial(mk.ops.qseparable_context, backend=backend, **CONTEXT)
    gate = functools.partial(mk.ops.qseparable_gate, backend=backend, **GATE)
    table = mk.ops.exponential_table(0.03)
    scores, _, big = draw((4, 8, 12, 40))
    k = torch.randn(4, 8, 40)
    for i, x in enumerate((big[::2], big[:, :, ::2], big[..., ::2], big.transpose(1, 2), big.movedim(3, 1).contiguous().movedim(1, 3))):
        q = (scores[::2], scores[:, :, ::2], scores, scores.mT, scores)[i]
        assert torch.equal(context(q, x, table), context(q.contiguous(), x.contiguous(), table.repeat_interleave(2)[::2]))
        of_x = k[: x.shape[0], ::2, : x.shape[3]]
        assert torch.equal(gate(x, of_x), gate(x.contiguous(), of_x.contiguous()))
    assert context(scores[:0], big[:0], table).shape == (0, 4, 40)
    assert gate(big[:0], k[:0, :4]).shape == (0, 8, 12, 40)
    assert context(scores, big[..., :0], table).shape == (4, 4, 0)


def test_opcheck() -> None:
    scores, v, x = draw((2, 4, 4, 5))
    table = mk.ops.exponential_table(0.03)
    for scale in (None, 0.1):
        torch.library.opcheck(torch.ops.mvit_kernels.qseparable_context.default, (scores, x, table, (2, 2), 0.02, 7, scale, 9, 8))
    torch.library.opcheck(torch.ops.mvit_kernels.qseparable_gate.default, (v, torch.randn(2, 4, 5), (2, 2), 0.02, 7, 0.1, 9, 8))


def test_compile_and_export() -> None:
    table = mk.ops.exponential_table(0.03)

    def attention(qv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        k = mk.ops.qseparable_context(qv[..., 0], x, table, **CONTEXT)
        return mk.ops.qseparable_gate(qv[..., 1:], k, **GATE)

    assert_compiles_and_exports(attention, *([random_bytes(batch, 4, 6, c) for c in (10, 9)] for batch in (2, 3)))


def test_bad_input() -> None:
    scores, v, x = draw((1, 4, 4, 5))
    table, k = mk.ops.exponential_table(0.1), torch.randn(1, 4, 5)
    context = functools.partial(mk.ops.qseparable_context, **CONTEXT)
    gate = functools.partial(mk.ops.qseparable_gate, **GATE)
    for call, error, message in (
        (lambda: context(None, x, table), TypeError, "scores: expected a tensor"),
        (lambda: context(scores, x.float(), table), TypeError, "x: expected dtype uint8"),
        (lambda: context(scores, x[0], table), ValueError, "x: expected 4 dimensions"),
        (lambda: context(scores[:, 1:], x, table), ValueError, r"scores: expected shape \(1, 4, 4\)"),
        (lambda: context(scores, x, table.long()), TypeError, "table: expected dtype int32"),
        (lambda: context(scores, x, table[1:]), ValueError, "table: expected 256 values, got 255"),
        (lambda: context(scores, x, table + 1), ValueError, r"table: expected values in \[0, 2\^16\], the first not 0, got \[1, 65537\]"),
        (lambda: context(scores, x, torch.zeros_like(table)), ValueError, r"table: expected values in"),
        (lambda: context(scores, x, table - 1), ValueError, r"table: expected values in"),
        (lambda: context(scores, x, table, patch_size=(3, 2)), ValueError, r"x: expected height and width that are multiples of \(3, 2\)"),
        (lambda: context(scores, x, table, patch_size=2), TypeError, "patch_size: expected two integers"),
        (lambda: context(scores[:, :0], x[:, :0], table), ValueError, "x: expected at least one pixel"),
        (lambda: context(scores, x, table, out_scale=1.0), ValueError, "out_zero_point: expected an integer"),
        (lambda: context(scores, x, table, out_zero_point=3), ValueError, "out_zero_point: expected None without an out_scale, got 3"),
        (lambda: context(scores, x, table, out_scale=0.0, out_zero_point=3), ValueError, "out_scale: expected a positive"),
        (lambda: context(scores, x, table, out_bits=4), ValueError, "out_bits: expected 8 or 6"),
        (lambda: context(scores, x, table, x_scale=-1.0), ValueError, "x_scale: expected a positive"),
        (lambda: context(scores, x, table, x_zero_point=2**31), ValueError, "x_zero_point: expected an int32"),
    ):
        with pytest.raises(error, match=f"qseparable_context: {message}"):
            call()
    for call, error, message in (
        (lambda: gate(v.int(), k), TypeError, "v: expected dtype uint8"),
        (lambda: gate(v, k.double()), TypeError, "context: expected dtype float32"),
        (lambda: gate(v, k[:, :3]), ValueError, r"context: expected shape \(1, 4, 5\), got \(1, 3, 5\)"),
        (lambda: gate(v, k, patch_size=(0, 2)), ValueError, "patch_size: expected two positive integers"),
        (lambda: gate(v, k, v_zero_point=2**21), ValueError, r"v_zero_point: expected \|zero_point\| <= 2\^20"),
        (lambda: gate(v, k, out_scale=1e-30), ValueError, r"out_scale: expected v_scale / out_scale between 2\^-64 and 2\^64"),
    ):
        with pytest.raises(error, match=f"qseparable_gate: {message}"):
            call()
    with pytest.raises(ValueError, match=r"backend 'triton' was requested"):
        gate(v, k, backend="triton")
