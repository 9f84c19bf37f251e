"""Random small networks in torch's own ops, views of views and attention in many ways: their programs against themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import fuzz
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels.graph import capture, optimize, run

Tensor = torch.Tensor
BATCH = 7  # while a network is drawn, and a factor of no other size


class Drawn(nn.Module):
    """Ops on any of the last results, each a function of them; those that do not fit are drawn again."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.weights = nn.ParameterList()
        self.size = tuple(self.draw.choice(each) for each in ((1, 2, 3, 4, 6, 12), (1, 2, 4, 6), (1, 2, 4, 6)))
        self.ops: list[tuple[Callable[..., Tensor], tuple[Tensor, ...] | tuple[int, ...]]] = []
        self.values = [torch.randn(BATCH, *self.size)]
        makers = (self.view, self.view, self.part, self.layer, self.layer, self.number, self.sum, self.cat, self.pool, self.patches,
                  self.attention, self.attention, self.attention, self.separable, self.separable, self.mixer, self.gate, self.gate,
                  self.dynamic, self.groups, self.tokens)  # fmt: skip
        with torch.no_grad():
            self.conv(0, 12)
            for _ in range(self.draw.randint(2, 8)):
                kept = len(self.ops)
                try:
                    self.draw.choice(makers)()
                except (RuntimeError, IndexError, ValueError):  # of torch, which has no such op for such shapes
                    del self.ops[kept:], self.values[kept + 1 :]
        self.results = {len(self.ops), self.draw.randint(1, len(self.ops))}
        self.values.clear()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for op, inputs in self.ops:
            values.append(op(*(values[i] for i in inputs)))
        return tuple(values[i] for i in sorted(self.results))

    def put(self, op: Callable[..., Tensor], *inputs: int) -> int:
        y = op(*(self.values[i] for i in inputs))
        if not 0 < y.numel() < 50_000 or y.ndim > 6 or sum(size % BATCH == 0 for size in y.shape) != 1:
            raise IndexError
        self.ops.append((op, inputs))
        self.values.append(y)
        return len(self.ops)

    def any(self) -> int:
        return self.draw.randint(max(0, len(self.values) - 4), len(self.values) - 1)

    def shape(self, i: int) -> list[int]:
        return list(self.values[i].shape)

    def dim(self, i: int) -> int:
        """Any but that of images."""
        return self.draw.choice([dim for dim, size in enumerate(self.shape(i)) if size % BATCH])

    def weight(self, *shape: int) -> nn.Parameter:
        self.weights.append(nn.Parameter(torch.randn(*shape) / 2))
        return self.weights[-1]

    def view(self) -> None:
        x = self.any()
        shape, draw = self.shape(x), self.draw
        order, (one, other) = draw.sample(range(len(shape)), len(shape)), (draw.randrange(len(shape)) for _ in range(2))
        images = next(dim for dim, size in enumerate(shape) if size % BATCH == 0)
        side = draw.choice([each for each in (1, 2, 3, 4) if shape[one] % each == 0])
        self.put(draw.choice([
            lambda x: x.permute(order), lambda x: x.transpose(one, other - len(order)), lambda x: x.movedim(images, 0), lambda x: x.mT,
            lambda x: x.unsqueeze(one), lambda x: x.squeeze(one) if one != images else x, lambda x: x.unflatten(one, (-1, side)),
            lambda x: x.flatten(one, other), lambda x: x.flatten(one, one + 1), lambda x: x.unfold(one, side, side), torch.clone,
        ]), x)  # fmt: skip

    def part(self) -> None:
        x = self.any()
        dim = self.dim(x)
        size = self.shape(x)[dim]
        start, index, count = self.draw.randint(-size, size - 1), self.draw.randrange(-size, size), self.draw.randint(1, size)
        self.put(self.draw.choice([
            lambda x: x[(slice(None),) * dim + (slice(start, None),)], lambda x: x.select(dim, index), lambda x: x.unbind(dim)[index],
            lambda x: x.chunk(count, dim)[-1], lambda x: x.split(count, dim)[0], lambda x: x.split([count, size - count], dim)[0],
            lambda x: x[(slice(None),) * dim + (slice(None, None, 2),)], lambda x: x.flip(dim),
        ]), x)  # fmt: skip

    def conv(self, x: int, columns: int, kernel: int = 1) -> int:
        weight, bias = self.weight(columns, self.shape(x)[1], kernel, kernel), self.weight(columns)
        return self.put(lambda x: F.conv2d(x, weight, bias, padding=kernel // 2), x)

    def linear(self, x: int, columns: int) -> int:
        weight, bias = self.weight(columns, self.shape(x)[-1]), self.weight(columns)
        return self.put(lambda x: F.linear(x, weight, bias), x)

    def layer(self) -> None:
        x, columns = self.any(), self.draw.choice((1, 2, 6, 12))
        kind, shape = self.draw.choice(("conv", "conv3", "linear", "layer", "group", "batch", "activation")), self.shape(x)
        if kind == "linear":
            self.linear(x, columns)
        elif kind in ("conv", "conv3"):
            self.conv(x, columns, 3 if kind == "conv3" else 1)
        elif kind == "activation" or self.values[x].numel() == BATCH:  # torch refuses to norm one value
            self.put(self.draw.choice((F.relu, F.silu, F.gelu, F.hardswish, torch.sigmoid, lambda x: (x * 2).relu_(),
                                        lambda x: x.clamp(0, 1), lambda x: x.clamp(min=0), lambda x: F.hardtanh(x, 0, 6))), x)  # fmt: skip
        else:
            channels = shape[-1 if kind == "layer" else 1]
            if channels % BATCH == 0:  # images, of which there may be others
                raise IndexError
            weight = self.weight(channels)
            self.put({
                "layer": lambda x: F.layer_norm(x, weight.shape, weight), "group": lambda x: F.group_norm(x, 1, weight),
                "batch": lambda x: F.batch_norm(x, weight, weight.exp(), weight),
            }[kind], x)  # fmt: skip

    def number(self) -> None:
        x = self.any()
        dim, shape = self.dim(x), self.shape(x)
        weight = self.weight(*(size if i == dim else 1 for i, size in enumerate(shape))).data
        every = self.weight(*(1 if size % BATCH == 0 or self.draw.random() < 0.3 else size for size in shape)).data
        by = self.draw.choice(
            (2, -0.5, torch.tensor(0.7), torch.tensor([-2.0]), torch.tensor([[3]]), weight, weight.exp(), every, every.abs() + 0.5)
        )
        self.put(self.draw.choice((lambda x: x * by, lambda x: by * x, lambda x: x / by, lambda x: x + by, lambda x: by - x)), x)

    def gate(self) -> None:
        x = self.any()
        u = self.draw.choice((x, self.alike(x)))
        by = self.draw.choice((1, 2, 1 / 6))
        self.put(self.draw.choice((
            lambda x, u: x * torch.sigmoid(u), lambda x, u: x * F.hardsigmoid(u) * by, lambda x, u: F.relu6(u + 3) * x / 6,
            lambda x, u: x * ((u + 3).clamp(0, 6) * by), lambda x, u: x * (F.hardsigmoid(u) - by), lambda x, u: F.hardsigmoid(u).mT * x.mT,
        )), x, u)  # fmt: skip

    def dynamic(self) -> None:
        x = self.any()
        channels = self.shape(x)[1]
        if len(self.shape(x)) != 4 or self.shape(x)[0] != BATCH:
            raise IndexError
        u = self.linear(self.put(lambda x: x.mean((2, 3)), x), 2 * channels)
        one, other, slope = self.draw.choice((0, 0, 0, 1)), self.draw.choice((1, 1, 1, 0)), self.draw.choice((1, 1, 1, 0.5))
        u = self.put(lambda u: F.hardsigmoid(u)[..., None, None], u)
        groups = self.draw.choice((1, 1, 1, *(each for each in (2, 3) if channels % each == 0)))
        parts = lambda u: [each.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2) for each in u.chunk(2, 1)]  # noqa: E731
        self.put(lambda x, u: torch.max(x * (2 * parts(u)[one]), (parts(u)[other] * 2 - slope) * x), x, u)

    def groups(self) -> None:
        """Convolutions in groups, depthwise ones with more filters than channels, and shuffled channels."""
        x = self.any()
        channels = self.shape(x)[1]
        if channels % BATCH == 0:  # images, of which there may be others
            raise IndexError
        groups = self.draw.choice([each for each in (1, 2, 3, 6) if channels % each == 0])
        more, kernel, stride = self.draw.choice((1, 2)) * channels, self.draw.choice((1, 3)), self.draw.choice((1, 2))
        groups = channels if kernel == 3 else groups
        weight = self.weight(more, channels // groups, kernel, kernel)
        y = self.put(lambda x: F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=groups), x)
        count = self.draw.choice([each for each in (1, 2, 3, 6) if more % each == 0])
        y = self.put(self.draw.choice((
            lambda x: F.channel_shuffle(x, count), lambda x: F.relu6(x).unflatten(1, (count, -1)).transpose(1, 2).flatten(1, 2),
        )), y)  # fmt: skip
        if self.draw.random() < 0.5:
            self.conv(y, 6)

    def tokens(self) -> None:
        """Queries that are the same for every image."""
        x = self.patches()
        queries = self.weight(1, *self.shape(x)[1:-2], self.draw.choice((1, 3)), self.shape(x)[-1])
        y = self.draw.choice((
            lambda x: queries.expand(x.shape[0], *queries.shape[1:]), lambda x: queries.repeat(x.shape[0], *[1] * (x.ndim - 1)),
        ))  # fmt: skip
        if self.draw.random() < 0.5:
            q = self.put(lambda x: (y(x) @ x.mT).softmax(-1) @ x + y(x), x)
        else:
            q = self.put(lambda x: (queries @ x.mT * 0.3).softmax(-1) @ x, x)
        self.put(lambda x: x.transpose(0, 1)[-1] if x.ndim == 3 else x, self.linear(q, 6))

    def alike(self, x: int) -> int:
        return self.draw.choice([i for i, each in enumerate(self.values) if each.shape == self.values[x].shape])

    def sum(self) -> None:
        x = self.any()
        self.put(self.draw.choice((torch.add, torch.add, torch.mul, torch.sub)), x, self.draw.choice((self.alike(x), self.any())))

    def cat(self) -> None:
        x = self.any()
        dim = self.dim(x)
        if self.draw.random() < 0.5:  # products of one thing, side by side
            x, other = (self.linear(x, 6), self.linear(x, 2)) if dim == len(self.shape(x)) - 1 else (self.conv(x, 6), self.conv(x, 2))
        else:
            other = self.alike(x)
        self.put(lambda *each: torch.cat(each, dim), *((x, other), (x, other, x), (x,))[self.draw.randrange(3)])

    def pool(self) -> None:
        x = self.any()
        dim, other, keep = self.dim(x), self.dim(x), self.draw.random() < 0.5
        dims = [dim] if dim == other else [dim, other - len(self.shape(x))]
        self.put(self.draw.choice((
            lambda x: x.mean(dims, keepdim=keep), lambda x: x.sum(dims, keepdim=keep), lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.avg_pool2d(x, 3, 1, 1), lambda x: x.softmax(dim), lambda x: F.interpolate(x, (4, 6), mode="bilinear"),
            lambda x: F.avg_pool2d(x, 1, 2), lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 4),
        )), x)  # fmt: skip

    def patches(self) -> int:
        """(B, C, phases, patches) or (B, phases, patches, C); or all pixels, (B, N, C)."""
        x = max(i for i in range(len(self.values)) if len(self.shape(i)) == 4 and self.shape(i)[0] == BATCH)
        if self.draw.random() < 0.3:
            return self.put(lambda x: x.flatten(2).mT, x)
        channels, *sides = self.shape(x)[1:]
        h, w = (self.draw.choice([each for each in (1, 2, 3, 6) if side % each == 0]) for side in sides)
        x = self.put(self.draw.choice((
            lambda x: F.unfold(x, (h, w), stride=(h, w)).unflatten(1, (channels, h * w)),
            lambda x: x.unfold(2, h, h).unfold(3, w, w).permute(0, 1, 4, 5, 2, 3).flatten(4, 5).flatten(2, 3),
        )), x)  # fmt: skip
        return x if self.draw.random() < 0.3 else self.put(lambda x: x.permute(0, 2, 3, 1), x)

    def attention(self) -> None:
        draw = self.draw
        x, heads, depth = self.patches(), draw.choice((1, 2, 3)), draw.choice((1, 2, 4))
        query, key, value = self.thirds(x, heads * depth)
        if heads > 1 or draw.random() < 0.5:
            query, key, value = (
                self.put(lambda x: x.unflatten(-1, (heads, depth)).transpose(-2, -3), each) for each in (query, key, value)
            )
        if draw.random() < 0.2:
            query = self.put(lambda x: x * -0.3, query)
        n = self.shape(query)[-2]
        bias = draw.choice((None, None, *(self.weight(*each) for each in ((n, n), (1, 1, n, n), (heads, 1, n), (3, n, n), (1, n)))))
        if draw.random() < 0.3:
            y = self.put(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias, scale=0.4), query, key, value)
        else:
            y = self.put(lambda q, k: q @ k.mT * 0.4, query, key)
            y = y if bias is None else self.put(lambda x: x + bias, y)
            dim = draw.choice((-1, -1, -1, -1, -2))
            y = self.put(lambda x: x.softmax(dim), y)
            y = self.put(torch.matmul, y, value)
        if len(self.shape(y)) > len(self.shape(x)):
            self.put(lambda x: x.transpose(-2, -3).flatten(-2), y)

    def thirds(self, x: int, columns: int) -> Sequence[int]:
        """Of one linear map, in any order, or a linear map each, or one for several."""
        way = self.draw.choice(("one", "turns", "three", "shared", "none"))
        if way in ("one", "turns"):
            y = self.linear(x, 3 * columns)
            order = self.draw.choice(((0, 1, 2), (0, 1, 2), (2, 0, 1)))
            if way == "one":
                return [self.put(lambda x, i=i: x.chunk(3, -1)[i], y) for i in order]
            return [self.put(lambda x, i=i: x.unflatten(-1, (columns, 3)).select(-1, i), y) for i in order]
        if way == "none":
            return [x, x, x]
        query, key = self.linear(x, columns), self.linear(x, columns)
        return [query, key, self.linear(x, columns)] if way == "three" else [query, query, key]

    def separable(self) -> None:
        draw = self.draw
        x, channels = self.patches(), draw.choice((1, 2, 4))
        y = self.conv(x, 1 + 2 * channels)
        query, key, value = (self.put(lambda x, i=i: x.split([1, channels, channels], 1)[i], y) for i in range(3))
        dim, other, last = draw.choice((-1, -1, -1, -2, 1)), draw.choice((-1, -2)), draw.random() < 0.5
        query = self.put(lambda x: x.softmax(dim), query)
        context = self.put(lambda x, y: (x * y).sum(dim if last else other, keepdim=True), query, key)
        self.put(lambda x, y: F.relu(x) * y, value, context)

    def mixer(self) -> None:
        x, inside = self.any(), self.draw.random() < 0.8
        scale = self.weight(self.draw.choice((1, self.shape(x)[1])), 1, 1)
        self.put(lambda x: x + (F.avg_pool2d(x, 3, 1, 1, count_include_pad=not inside) - x) * scale, x)


def check(seed: int) -> None:
    model = Drawn(seed).eval()
    with torch.no_grad():
        program = optimize(capture(model, model.size))
        model.double()
        for images in (1, 3):
            x = torch.randn(images, *model.size, dtype=torch.float64)
            for actual, expected in zip(run(program, x), model(x), strict=True):
                torch.testing.assert_close(actual, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5, msg=f"{seed}: {program}")


@pytest.mark.usefixtures("one_thread")
def test_some() -> None:
    fuzz.run(check, 25, 15)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("start", range(100, 300, 50))
def test_many(start: int) -> None:
    fuzz.run(check, start, 50)


@pytest.mark.slow
@fuzz.wanted
def test_as_many_as_wanted() -> None:
    fuzz.run(check, 1000)
