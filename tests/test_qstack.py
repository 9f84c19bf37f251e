"""A transformer stack in integers: the sums that a product collects for the next norm, and a whole layer of MobileViTv2."""

from __future__ import annotations

import functools

import pytest
import torch
from op_checks import assert_same_bits_with_any_threads, needs_native
from q_checks import assert_compiles_and_exports, both_backends, random_bytes, random_packed_weight

import mvit_kernels as mk
from mvit_kernels import reference

Tensor = torch.Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

# --- the int16 residual stream ---


def stream(*size: int) -> Tensor:
    return torch.randint(-32768, 32768, size, dtype=torch.int16)


STREAM = {"a_scale": 0.1, "a_zero_point": 117, "w_scale": 0.01, "out_dtype": torch.int16, "out_scale": 0.004}


# (M, K, N): tails, several tasks of rows, few rows and many columns, whose task ends inside of a group.
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 5, 7), (30, 20, 33), (4, 30, 700), (60, 64, 128), (1200, 48, 40)], ids=str)
def test_sums_of_results(shape, isa: str, poison, threads) -> None:
    rows, depth, columns = shape
    a, residual = random_bytes(rows, depth), stream(rows, columns)
    for bits in (8, 6):
        product = functools.partial(mk.ops.qgemm, a, random_packed_weight(columns, depth, bits), **STREAM)
        for groups in {1, 2, 3, rows}:
            if rows % groups:
                continue
            for each in (None, residual):
                expected = product(residual=each, backend="cpu")
                wide = expected.long().reshape(groups, -1)
                for count in (1, 2, 3):
                    threads(count)
                    y, sums = product(residual=each, collect=groups, backend="cpu")
                    assert torch.equal(y, expected)
                    assert torch.equal(sums, torch.stack([wide.sum(1), wide.square().sum(1)], 1))
                y, sums = product(residual=each, collect=groups, backend="reference")
                assert torch.equal(y, expected)
                assert torch.equal(sums, reference.stream_sums(expected, groups))


@needs_native
def test_largest_sums(isa: str) -> None:
    """Every result saturates, at either end."""
    weight = mk.ops.pack_weight(torch.full((200, 30), 127, dtype=torch.int8))
    a = torch.full((900, 30), 255, dtype=torch.uint8)
    for zero_point, value in ((0, 32767), (255 * 3, -32768)):
        settings = STREAM | {"a_zero_point": zero_point, "out_scale": 1e-4}
        y, sums = mk.ops.qgemm(a, weight, collect=2, backend="cpu", **settings)
        assert (y == value).all()
        assert sums.tolist() == [[90000 * value, 90000 * value**2]] * 2


@both_backends
def test_sums_of_nothing(backend: str) -> None:
    collect = functools.partial(mk.ops.qgemm, backend=backend, **STREAM)
    for a, columns, groups in ((random_bytes(0, 8), 5, 0), (random_bytes(0, 8), 5, 3), (random_bytes(6, 8), 0, 3)):
        y, sums = collect(a, random_packed_weight(columns, 8), collect=groups)
        assert y.shape == (a.shape[0], columns)
        assert torch.equal(sums, torch.zeros(groups, 2, dtype=torch.int64))
    y, sums = collect(random_bytes(6, 16)[:, ::2], random_packed_weight(5, 8), residual=stream(6, 10)[:, ::2], collect=2)
    assert torch.equal(sums, reference.stream_sums(y, 2))


def test_collect_opcheck_compile_and_export() -> None:
    handle = mk.ops.prepare_qgemm(random_packed_weight(9, 20), 0.1, 117, 0.01, out_dtype=torch.int16, out_scale=0.004)
    args = (random_bytes(6, 20), handle.weight.data, handle.channels, stream(6, 9), 9, 20, 8, 2)
    torch.library.opcheck(torch.ops.mvit_kernels.qgemm_collect.default, args)

    def layer(a: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return handle(a, residual, collect=2)

    assert_compiles_and_exports(layer, *((random_bytes(rows, 20), stream(rows, 9)) for rows in (6, 8)))


def test_collect_bad_input() -> None:
    a, weight = random_bytes(6, 20), random_packed_weight(9, 20)
    with pytest.raises(ValueError, match=r"qgemm: collect: expected a number of groups that divides 6 rows, got 4"):
        mk.ops.qgemm(a, weight, collect=4, **STREAM)
    with pytest.raises(TypeError, match=r"qgemm: collect: expected an integer, got 'all'"):
        mk.ops.qgemm(a, weight, collect="all", **STREAM)
    with pytest.raises(ValueError, match=r"qgemm: collect: expected None for out_dtype torch.float32, got 2"):
        mk.ops.qgemm(a, weight, a_scale=0.1, a_zero_point=117, w_scale=0.01, collect=2)
    with pytest.raises(TypeError, match=r"qgemm: residual: expected dtype torch.int16"):
        mk.ops.qgemm(a, weight, residual=random_bytes(6, 9), collect=2, **STREAM)


# --- a layer of MobileViTv2 ---


class Range:
    """Bytes over the values between the least and the largest that were seen, and 0."""

    def __init__(self, x: Tensor, bits: int = 8) -> None:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        self.scale = (high - low) / (2**bits - 1)
        self.zero_point = round(-low / self.scale)


class Linear:
    """A weight of int8 with a scale for each row, from a float one."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.scale = weight.abs().amax(1) / 127
        self.packed, self.bias = mk.ops.pack_weight((weight / self.scale[:, None]).round().to(torch.int8)), bias


def group_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.group_norm(x.flatten(1)[:, None], 1).reshape(x.shape)


class FloatLayer:
    """norm -> q, v and the context of the normalised input -> its key -> gate -> out, added; norm -> silu(fc1) -> fc2, added."""

    def __init__(self, dim: int) -> None:
        def linear(rows: int, depth: int) -> tuple[Tensor, Tensor]:
            return torch.randn(rows, depth) / depth**0.5, 0.1 * torch.randn(rows)

        self.qv, self.key, self.out = linear(1 + dim, dim), linear(dim, dim), linear(dim, dim)
        self.fc1, self.fc2 = linear(2 * dim, dim), linear(dim, 2 * dim)

    def __call__(self, x: Tensor, see=lambda name, x: x) -> Tensor:
        """x (B, H, W, d); every tensor that becomes integers is shown to `see`."""
        linear, phases = torch.nn.functional.linear, functools.partial(reference.qseparable_attention.phases_of, patch_size=(2, 2))
        normal = see("normal", group_norm(see("x", x)))
        q, v = linear(normal, *self.qv).split([1, x.shape[3]], -1)
        see("q", q), see("v", v)
        context = (phases(q).softmax(2) * phases(normal)).sum(2)
        gated = phases(v).relu() * linear(see("context", context), *self.key)[:, :, None]
        gated = reference.qseparable_attention.map_of(gated, *x.shape[1:3], (2, 2))
        x = see("x", x + linear(see("gated", gated), *self.out))
        hidden = torch.nn.functional.silu(linear(see("normal2", group_norm(x)), *self.fc1))
        return see("x", x + linear(see("hidden", hidden), *self.fc2))


class IntegerLayer:
    """The same on an int16 stream, by the ops."""

    def __init__(self, layer: FloatLayer, x: Tensor, backend: str, activation: str) -> None:
        seen: dict[str, Tensor] = {}

        def see(name: str, value: Tensor) -> Tensor:
            seen[name] = torch.cat([seen.get(name, value.flatten()[:0]), value.flatten()])
            return value

        layer(x, see)
        r = self.ranges = {name: Range(value) for name, value in seen.items()}
        self.scale, self.backend = float(seen["x"].abs().max()) / 32767, backend
        self.table = mk.ops.exponential_table(r["q"].scale)
        qv, key, out, fc1, fc2 = (Linear(*each) for each in (layer.qv, layer.key, layer.out, layer.fc1, layer.fc2))
        count = layer.qv[0].shape[0] - 1

        def product(linear: Linear, source: str, **settings):
            settings = {"w_scale": linear.scale, "bias": linear.bias, "backend": backend, **settings}
            return mk.ops.prepare_qgemm(linear.packed, r[source].scale, r[source].zero_point, **settings)

        to_stream = {"out_dtype": torch.int16, "out_scale": self.scale}
        of_q_and_v = {
            "out_scale": torch.tensor([r["q"].scale] + count * [r["v"].scale]),
            "out_zero_point": torch.tensor([r["q"].zero_point] + count * [r["v"].zero_point]),
        }
        self.qv = product(qv, "normal", out_dtype=torch.uint8, **of_q_and_v)
        self.key = product(key, "context")
        self.out, self.fc2 = product(out, "gated", **to_stream), product(fc2, "hidden", **to_stream)
        byte = {"out_dtype": torch.uint8, "out_scale": r["hidden"].scale, "out_zero_point": r["hidden"].zero_point}
        if activation == "table":  # silu of a byte, over what is a range of its own in a network
            byte["table"] = self._silu(r["hidden"])
            byte |= {"out_scale": 12 / 255, "out_zero_point": 128}
        else:
            byte["activation"] = "silu"
        self.fc1 = mk.ops.prepare_qnorm_gemm(
            fc1.packed, fc1.scale, fc1.bias, scale=self.scale, a_scale=r["normal2"].scale, a_zero_point=r["normal2"].zero_point,
            backend=backend, **byte,
        )  # fmt: skip

    @staticmethod
    def _silu(hidden: Range) -> Tensor:
        real = torch.nn.functional.silu((torch.arange(256) - 128) * (12 / 255))
        return reference.quantize(real, torch.tensor(hidden.scale), torch.tensor(hidden.zero_point))

    def __call__(self, x: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H, W, d) int16 and the sums of its images; so is what it returns."""
        (batch, height, width, dim), r = x.shape, self.ranges
        rows = x.reshape(-1, dim)
        normal = mk.ops.qnorm(
            rows, sums, scale=self.scale, out_scale=r["normal"].scale, out_zero_point=r["normal"].zero_point, backend=self.backend
        )  # fmt: skip
        qv = self.qv(normal).reshape(batch, height, width, 1 + dim)
        context = mk.ops.qseparable_context(
            qv[..., 0], normal.reshape(x.shape), self.table, x_scale=r["normal"].scale, x_zero_point=r["normal"].zero_point,
            out_scale=r["context"].scale, out_zero_point=r["context"].zero_point, backend=self.backend,
        )  # fmt: skip
        key = self.key(context.reshape(-1, dim)).reshape(context.shape)
        gated = mk.ops.qseparable_gate(
            qv[..., 1:], key, v_scale=r["v"].scale, v_zero_point=r["v"].zero_point, out_scale=r["gated"].scale,
            out_zero_point=r["gated"].zero_point, backend=self.backend,
        )  # fmt: skip
        rows, sums = self.out(gated.reshape(-1, dim), rows, collect=batch)
        rows, sums = self.fc2(self.fc1(rows, sums), rows, collect=batch)
        return rows.reshape(x.shape), sums


@pytest.mark.parametrize("activation", ["polynomial", "table"])
@pytest.mark.parametrize("size", [(2, 8, 8, 64), (1, 16, 16, 33)], ids=str)
def test_a_layer(size, activation: str, isa: str, threads) -> None:
    layer, x = FloatLayer(size[3]), torch.randn(size)
    integer, expected = (IntegerLayer(layer, x, backend, activation) for backend in ("cpu", "reference"))
    stream = (x / integer.scale).round().to(torch.int16)
    sums = reference.stream_sums(stream.reshape(-1, size[3]), size[0])
    right = expected(stream, sums)
    for count in (1, 2, 3):
        threads(count)
        for a, b in zip(integer(stream, sums), right, strict=True):
            assert torch.equal(a, b)
    exact = layer(x)
    error = right[0] * integer.scale - exact
    assert 10 * torch.log10(exact.square().sum() / error.square().sum()) > 25


@needs_native
def test_a_layer_from_several_threads(threads) -> None:
    size = (2, 16, 16, 96)
    layer, x = FloatLayer(size[3]), torch.randn(size)
    integer = IntegerLayer(layer, x, "cpu", "polynomial")
    stream = (x / integer.scale).round().to(torch.int16)
    sums = reference.stream_sums(stream.reshape(-1, size[3]), size[0])
    assert_same_bits_with_any_threads(lambda: list(integer(stream, sums)), threads)
