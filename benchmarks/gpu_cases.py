"""What `gpu_check.py` times on a GPU: an op of ours, the same in plain torch, and the least that either must do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from mvit_kernels import ops, reference
from mvit_kernels.ops.backend import Choice, use_backend

Tensor = torch.Tensor
PATCH = (2, 2)
SILU: dict[str, Any] = {"out_scale": 0.02, "out_zero_point": 14}  # of bytes behind it
# The inverted residuals of MobileViTv2-1.0 at 256 x 256: side of x, its channels, hidden channels, channels of y, stride.
RESIDUALS = ((128, 32, 64, 64, 1), (128, 64, 128, 128, 2), (64, 128, 256, 128, 1), (64, 128, 256, 256, 2), (32, 256, 512, 384, 2))


class Case(NamedTuple):
    name: str
    ours: dict[str, Callable[[], Any]]  # by the backends that have a kernel for it
    plain: Callable[[], Any]  # what they are held against, and timed against, eager and compiled
    bytes: int  # read and written at least once
    operations: int = 0  # of tensor cores
    exact: bool = False  # integers: the same bits
    near: float = 2e-2  # of the largest value: how far apart floats of 16 bits may be
    compiled: Callable[[], Any] | None = None  # what Inductor compiles and is timed, too: compilations take seconds, so of few ops
    peer: bool = True  # whether plain torch is timed, too: in a CUDA graph, where it does not wait for the GPU


def cases(device: str, batch: int, side: int, dim: int, dtype: torch.dtype, backends: tuple[str, ...]) -> Iterator[Case]:
    """Maps (batch, dim, side, side) of the attention blocks, channels_last, and the products of bytes on their pixels."""

    def image(channels: int) -> Tensor:
        return torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def weight(*size: int) -> Tensor:
        return (torch.randn(size) / size[-1] ** 0.5).to(device, dtype)

    x, qkv = image(dim), image(1 + 2 * dim)
    element, pixels = x.element_size(), batch * side * side

    def call(op: str, *args: Any, **settings: Any) -> dict[str, Callable[[], Any]]:
        return {each: functools.partial(getattr(ops, op), *args, **settings, backend=each) for each in having(op, backends)}

    plain = functools.partial(reference.separable_attention, qkv, PATCH)
    yield Case(
        "separable_attention", call("separable_attention", qkv, PATCH), plain, element * (qkv.numel() + x.numel()), compiled=plain
    )  # fmt: skip
    dy = image(dim)
    plain = functools.partial(reference.separable_attention_backward, dy, qkv, PATCH)
    yield Case(
        "separable_attention backward",
        {
            each: functools.partial(torch.ops.mvit_kernels.separable_attention_backward, dy, qkv, PATCH, each)
            for each in having("separable_attention", backends)
        },
        plain, element * (2 * qkv.numel() + x.numel()), compiled=plain,
    )  # fmt: skip
    parameters = [weight(dim), weight(dim), weight(1 + 2 * dim, dim), weight(1 + 2 * dim), weight(dim, dim), weight(dim)]
    plain = functools.partial(reference.separable_attention_block, x, *parameters, patch_size=PATCH)
    yield Case(
        "separable_attention_block", call("separable_attention_block", x, *parameters, patch_size=PATCH), plain, 2 * element * x.numel(),
        4 * pixels * dim * dim, compiled=plain,
    )  # fmt: skip
    backward, moments = torch.ops.mvit_kernels.separable_attention_block_backward, reference.moments_of(x, batch)  # as in a network
    plain = functools.partial(reference.separable_attention_block_backward, dy, x, *parameters[:-1], patch_size=PATCH)
    yield Case(
        "separable_attention_block backward",
        {
            each: functools.partial(backward, dy, x, *parameters, moments, 1e-5, PATCH, each)
            for each in having("separable_attention_block", backends) if each != "cuda"  # whose backward is that of triton
        },
        plain, 3 * element * x.numel(), 10 * pixels * dim * dim, near=0.1, compiled=plain,  # sums over all pixels, most of which cancels
    )  # fmt: skip
    gamma, beta = parameters[:2]
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    for name, data in (("group_norm", x), ("layer_norm", rows)):
        plain = functools.partial(getattr(reference, name), data, gamma, beta)
        compiled = plain if name == "group_norm" else None
        yield Case(name, call(name, data, gamma, beta), plain, 2 * element * x.numel(), compiled=compiled)
    widen, narrow, bias, wide_bias = weight(2 * dim, dim), weight(dim, 2 * dim), weight(dim), weight(2 * dim)
    yield Case(
        "gemm", call("gemm", rows, widen, wide_bias, activation="silu"),
        functools.partial(reference.gemm, rows, widen, wide_bias, activation="silu"), element * (3 * x.numel() + widen.numel()),
        4 * pixels * dim * dim,
    )  # fmt: skip
    for norm in ("group", "layer"):
        layer = [gamma, beta, widen, wide_bias, narrow, bias]
        yield Case(
            f"feed_forward {norm}", call("feed_forward", x, *layer, norm=norm),
            functools.partial(reference.feed_forward, x, *layer, norm=norm), element * (2 * x.numel() + 2 * widen.numel()),
            8 * pixels * dim * dim,
        )  # fmt: skip
    filters, taps = weight(dim, dim, 3, 3) / 3, weight(dim, 1, 3, 3)
    yield Case(
        "conv2d", call("conv2d", x, filters, bias, activation="silu"),
        functools.partial(reference.conv2d, x, filters, bias, activation="silu"), element * (2 * x.numel() + filters.numel()),
        18 * pixels * dim * dim,
    )  # fmt: skip
    yield Case(
        "depthwise_conv2d", call("depthwise_conv2d", x, taps, bias, activation="silu"),
        functools.partial(reference.depthwise_conv2d, x, taps, bias, activation="silu"), 2 * element * x.numel(),
    )  # fmt: skip
    heads = image(3 * dim)
    yield Case(
        "patch_attention", call("patch_attention", heads, 4), functools.partial(reference.patch_attention_fused, heads, 4),
        element * 4 * x.numel(), 4 * pixels * (side * side // 4) * dim,
    )  # fmt: skip
    unfolded = functools.partial(_copied, reference.unfold_patches, x)
    yield Case("unfold_patches", call("unfold_patches", x), unfolded, 2 * element * x.numel())
    yield Case(
        "quantize", call("quantize", x, 0.02, 113), _quantized(x, 0.02, 113), (element + 1) * x.numel(), exact=True
    )  # fmt: skip
    yield from _relatives(x, call)
    yield from _integers(device, pixels, dim, backends)
    yield from _between_products(device, batch, side, dim, backends)
    yield from _dynamic(device, batch, side, dim, backends)
    yield from _integer_halves(device, batch, side, dim, backends)


def _relatives(x: Tensor, call: Callable[..., dict[str, Callable[[], Any]]]) -> Iterator[Case]:
    """What EfficientFormer, its V2 and Mobile-Former have beside: attention of 49 pixels in 8 heads, by itself and with mixed heads, of few
    tokens and all pixels of x; and what is done to every value of x."""
    batch, dim = x.shape[:2]
    like = {"device": x.device, "dtype": x.dtype}
    q, k, v = (torch.randn(batch, 49, 8 * width, **like) for width in (32, 32, 128))
    mixed = {name: torch.randn(size, **like) / 3 for name, size in (("bias", (8, 49, 49)), ("mix_scores", (8, 8)), ("mix_weights", (8, 8)))}
    tokens, pixels = torch.randn(batch, 6, dim, **like), x.permute(0, 2, 3, 1).flatten(1, 2)
    for name, inputs, heads, mixtures in (
        ("attention bias", (q, k, v), 8, {"bias": mixed["bias"]}), ("attention mixed", (q, k, v), 8, mixed),
        ("attention tokens", (tokens, pixels, pixels), 2, {}), ("attention pixels", (pixels, tokens, tokens), 2, {}),
    ):  # fmt: skip
        queries, keys, depth = inputs[0].shape[1], inputs[1].shape[1], inputs[0].shape[2] + inputs[2].shape[2]
        moved = sum(each.numel() for each in {id(each): each for each in inputs}.values()) + batch * queries * inputs[2].shape[2]
        plain = reference.Mixtures(mixtures.get("bias"), mixtures.get("mix_scores"), mixtures.get("mix_weights"))
        yield Case(
            name, call("attention", *inputs, heads, **mixtures),
            functools.partial(reference.attention, *inputs, heads, (inputs[0].shape[2] // heads) ** -0.5, plain),
            x.element_size() * moved, 2 * batch * queries * keys * depth,
        )  # fmt: skip
    for op, other in (("dynamic_relu", torch.randn(batch, 2 * dim, **like)), ("pool_mixer", torch.randn(dim, **like))):
        yield Case(op, call(op, x, other), functools.partial(getattr(reference, op), x, other), 2 * x.element_size() * x.numel())
    weight, u = torch.randn(2 * dim, dim, 1, 1, **like) / dim**0.5, torch.randn(batch, 4 * dim, **like)
    taps = torch.randn(dim, 1, 3, 3, **like) / 3
    for what, product, moved in (("", (x, weight, None, u), 3), (" depthwise", (x, taps, None, u[:, : 2 * dim].contiguous()), 2)):
        yield Case(
            f"conv2d_dynamic_relu{what}", call("conv2d_dynamic_relu", *product),
            functools.partial(reference.conv2d_dynamic_relu, *product), moved * x.element_size() * x.numel(),
            4 * x.numel() * dim if moved == 3 else 0,
        )  # fmt: skip
    heads = 8
    image, keys = torch.randn(batch, 49, heads * 128, **like), (q, k, v)
    yield Case(
        "attention residual", call("attention", *keys, heads, **mixed, residual=image, activation="gelu"),
        lambda: reference.activate(reference.attention(*keys, heads, 32**-0.5, reference.Mixtures(*mixed.values())) + image, "gelu"),
        x.element_size() * (sum(each.numel() for each in keys) + 2 * image.numel()), 2 * batch * 49 * 49 * 8 * (32 + 128), peer=False,
    )  # fmt: skip
    yield Case("avg_pool", call("avg_pool", x), functools.partial(reference.avg_pool, x), x.element_size() * x.numel())
    moments = reference.moments_of(x.permute(0, 2, 3, 1).flatten(0, 2), batch)
    pools = call("avg_pool", x, moments=moments)
    pools.pop("cpu", None)  # which has no kernel for it
    plain_pool = lambda: reference.avg_pool(torch.group_norm(x, 1))  # noqa: E731
    yield Case("avg_pool norm", pools, plain_pool, x.element_size() * x.numel(), peer=False)
    double = 2 * x.shape[2], 2 * x.shape[3]
    yield Case(
        "resize", call("resize", x, double, activation="gelu"), functools.partial(reference.resize, x, double, False, "gelu"),
        x.element_size() * 5 * x.numel(),
    )  # fmt: skip


def _integers(device: str, rows: int, dim: int, backends: tuple[str, ...]) -> Iterator[Case]:
    """Products with SiLU: by a curve, as compiled networks have it, and by the segments of the public activation."""
    a = torch.randint(0, 256, (rows, dim), dtype=torch.uint8, device=device)
    curve = {"table": reference.activation_curve("silu", SILU["out_scale"], SILU["out_zero_point"])}
    for name, bits, silu in (("qgemm int8", 8, curve), ("qgemm int6", 6, curve), ("qgemm int8 segments", 8, {"activation": "silu"})):
        most = 2 ** (bits - 1) - 1
        matrix = torch.randint(-most, most + 1, (2 * dim, dim), dtype=torch.int8)
        scales = {"a_scale": 0.02, "a_zero_point": 113, "w_scale": 1.25 / (most * dim**0.5), "bias": torch.randn(2 * dim)}
        packed = ops.pack_weight(matrix, bits=bits)
        ours, plain = (
            {
                each: functools.partial(ops.prepare_qgemm(packed, **scales, **silu, **SILU, out_dtype=torch.uint8, backend=each), a)
                for each in names
            }
            for names in (having("qgemm", backends), ["reference"])
        )
        yield Case(
            name, ours, plain["reference"], a.numel() + 2 * rows * dim + matrix.numel(), 4 * rows * dim * dim, exact=True,
            compiled=int_mm(a, matrix, **scales) if bits == 8 else None, peer=False,
        )  # fmt: skip


def residual(device: str, batch: int, block: tuple[int, ...], dtype: torch.dtype, backends: tuple[str, ...]) -> Case:
    """One of RESIDUALS, by those of the backends that take it."""
    side, channels, hidden, columns, stride = block

    def weight(*size: int) -> Tensor:
        return (torch.randn(size) / torch.Size(size[1:]).numel() ** 0.5).to(device, dtype)

    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    shapes = (hidden, channels, 1, 1), (hidden,), (hidden, 1, 3, 3), (hidden,), (columns, hidden, 1, 1), (columns,)
    weights = [weight(*shape) for shape in shapes]
    settings: dict[str, Any] = {"stride": stride, "residual": stride == 1 and channels == columns}
    arguments = x, *weights, stride, settings["residual"], "silu"
    (choice,) = (each for each in Choice.every if each.op == "inverted_residual")
    taking = [each for each in having("inverted_residual", backends) if choice.implementations[each].refuse(*arguments) is None]
    pixels, of_y = batch * side**2, batch * (side // stride) ** 2
    return Case(
        "inverted_residual", {each: functools.partial(ops.inverted_residual, x, *weights, **settings, backend=each) for each in taking},
        functools.partial(reference.inverted_residual, x, *weights, **settings),
        x.element_size() * (pixels * channels + of_y * columns), 2 * hidden * (pixels * channels + of_y * columns),
    )  # fmt: skip


def _between_products(device: str, batch: int, side: int, dim: int, backends: tuple[str, ...]) -> Iterator[Case]:
    """What else a quantized network does with maps of bytes (batch, side, side, dim) and int16 streams."""
    x, scores = (torch.randint(0, 256, (batch, side, side, count), dtype=torch.uint8, device=device) for count in (dim, 1))
    stream = torch.randint(-9999, 9999, (batch * side * side, dim), dtype=torch.int16, device=device)
    table, count = ops.exponential_table(0.02).to(device), x.numel()
    to = {"out_scale": 0.03, "out_zero_point": 121}
    beside = {"a_scale": 0.02, "a_zero_point": 113, "b_scale": 0.03, "b_zero_point": 7}
    points = {"q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.02, "v_scale": 0.02, "v_zero_point": 101}
    image, context = x.permute(0, 3, 1, 2), torch.randn(batch, 4, dim, device=device)
    for name, op, inputs, settings, moved in (
        ("qnorm of images", "qnorm", (stream,), {"groups": batch, "scale": 0.001, **to}, 3 * count),
        ("qnorm of rows", "qnorm", (stream,), {"scale": 0.001, **to}, 3 * count),
        ("qadd", "qadd", (x, x), {**beside, **to, "activation": "silu"}, 2 * count),
        ("qlookup", "qlookup", (x, torch.arange(256, device=device).to(torch.uint8)), {}, 2 * count),
        ("qavg_pool", "qavg_pool", (image,), {"a_scale": 0.02, "a_zero_point": 113, **to}, count),
        ("qresize", "qresize", (image, (side // 2, side // 2)), {}, count + count // 4),
        ("qseparable_context", "qseparable_context", (scores[..., 0], x, table), {"x_scale": 0.02, "x_zero_point": 113, **to}, count),
        ("qseparable_gate", "qseparable_gate", (x, context), {"v_scale": 0.02, "v_zero_point": 113, **to}, 2 * count),
        ("qpatch_attention", "qpatch_attention", (torch.cat([x, x, x], 3), 4), {**points, **to}, 4 * count),
    ):  # fmt: skip
        ours, plain = (
            {each: functools.partial(getattr(ops, op), *inputs, **settings, backend=each) for each in names}
            for names in (having(op, backends), ["reference"])
        )
        yield Case(name, ours, plain["reference"], moved, exact=True, peer=False)


def _dynamic(device: str, batch: int, side: int, dim: int, backends: tuple[str, ...]) -> Iterator[Case]:
    """Convolutions of bytes with a dynamic ReLU behind them, held against the three ops one after another."""
    x = torch.randint(0, 256, (batch, dim, side, side), dtype=torch.uint8, device=device).contiguous(memory_format=torch.channels_last)
    taps, matrix = (torch.randint(-127, 128, size, dtype=torch.int8) for size in ((dim, 1, 3, 3), (2 * dim, dim)))
    scales = {"a_scale": 0.02, "a_zero_point": 113, "w_scale": 0.01}
    for name, layer, columns, operations in (
        ("qconv2d_dynamic_relu", ops.prepare_qconv2d(ops.pack_weight(matrix), kernel_size=1, **scales), 2 * dim, 4 * x.numel() * dim),
        ("qconv2d_dynamic_relu depthwise", ops.prepare_qdepthwise_conv2d(taps, **scales), dim, 0),
    ):  # fmt: skip
        u, to = torch.randn(batch, 2 * columns, device=device), {"out_scale": 0.02 * dim**0.5, "out_zero_point": 20}
        ours = {
            each: functools.partial(ops.prepare_qconv2d_dynamic_relu(layer, **to, backend=each), x, u)
            for each in having("qconv2d_dynamic_relu", backends)
        }

        def plain(layer: Any = layer, u: Tensor = u, to: dict[str, Any] = to) -> Tensor:
            return ops.quantize(ops.dynamic_relu(layer(x), u), to["out_scale"], to["out_zero_point"])

        yield Case(name, ours, plain, (1 + columns // dim) * x.numel(), operations, exact=True, peer=False)


def _integer_halves(device: str, batch: int, side: int, dim: int, backends: tuple[str, ...]) -> Iterator[Case]:
    """The feed-forward halves of layers of integers, with SiLU as compiled networks have it; of images, whose sums are known, and of
    pixels; and the attention half. All are held against the ops one after another."""
    x = torch.randint(-9999, 9999, (batch, dim, side, side)).to(device, torch.int16).contiguous(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    first, second = (ops.pack_weight(torch.randint(-127, 128, size, dtype=torch.int8)) for size in ((2 * dim, dim), (dim, 2 * dim)))
    curve = reference.activation_curve("silu", 0.02, 14)
    layers = (
        ops.prepare_qconv2d(
            first, 0.03, 121, 1 / (100 * dim**0.5), torch.randn(2 * dim), kernel_size=1, out_dtype=torch.uint8, out_scale=0.02,
            out_zero_point=14, table=curve,
        ),
        ops.prepare_qconv2d(
            second, 0.02, 14, 1 / (100 * dim**0.5), torch.randn(dim), kernel_size=1, out_dtype=torch.int16, out_scale=0.001
        ),
    )  # fmt: skip
    for kind, sums in (("group", reference.stream_sums(rows, batch)), ("layer", None)):
        norm = ops.prepare_qnorm(kind, scale=0.001, out_scale=0.03, out_zero_point=121)
        halves = {each: ops.prepare_qfeed_forward(norm, *layers, backend=each) for each in having("qfeed_forward", backends)}

        def plain(norm: ops.QNorm = norm, sums: Tensor | None = sums) -> Tensor:
            return layers[1](layers[0](norm(x, sums)), residual=x)

        yield Case(
            f"qfeed_forward {kind}", {each: functools.partial(half, x, sums) for each, half in halves.items()}, plain,
            4 * x.numel(), 8 * x.numel() * dim, exact=True, peer=False,
        )  # fmt: skip
    yield _integer_attention_half(x, reference.stream_sums(rows, batch), backends)
    weight = ops.pack_weight(torch.randint(-127, 128, (3 * dim, dim), dtype=torch.int8))
    product = {"scale": 0.001, "a_scale": 0.03, "a_zero_point": 121, "out_dtype": torch.uint8, "out_scale": 0.03, "out_zero_point": 121}
    ours, plain_product = (
        {each: functools.partial(ops.prepare_qnorm_gemm(weight, 1 / (100 * dim**0.5), **product, backend=each), rows) for each in names}
        for names in (having("qnorm_gemm", backends), ["reference"])
    )
    yield Case(
        "qnorm_gemm", ours, plain_product["reference"], 5 * x.numel(), 6 * x.numel() * dim, exact=True, peer=False
    )  # fmt: skip


def _integer_attention_half(x: Tensor, sums: Tensor, backends: tuple[str, ...]) -> Case:
    dim = x.shape[1]

    def product(columns: int, scale: float, zero_point: int, **out: Any) -> ops.QConv2d:
        weight = ops.pack_weight(torch.randint(-127, 128, (columns, dim), dtype=torch.int8))
        return ops.prepare_qconv2d(weight, scale, zero_point, 1 / (100 * dim**0.5), torch.randn(columns), kernel_size=1, **out)

    norm = ops.prepare_qnorm("group", scale=0.001, out_scale=0.03, out_zero_point=121)
    qkv = product(1 + dim, 0.03, 121, out_dtype=torch.uint8, out_scale=0.04, out_zero_point=128)
    context = ops.prepare_qseparable_context(
        reference.exponential_table(0.04), x_scale=0.03, x_zero_point=121, out_scale=0.01, out_zero_point=128
    )
    key, gate = product(dim, 0.01, 128), ops.prepare_qseparable_gate(v_scale=0.04, v_zero_point=128, out_scale=0.02, out_zero_point=128)
    out = product(dim, 0.02, 128, out_dtype=torch.int16, out_scale=0.001)
    halves = {
        each: ops.prepare_qseparable_attention_block(norm, qkv, context, key, gate, out, backend=each)
        for each in having("qseparable_attention_block", backends)
    }

    def pixels(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def plain() -> Tensor:
        normal = norm(x, sums)
        values = qkv(normal)
        mixed = context(values[:, 0], pixels(normal)).unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        gated = gate(pixels(values[:, 1:]), pixels(key(mixed)).flatten(1, 2))
        return out(gated.permute(0, 3, 1, 2), residual=x)

    return Case(
        "qseparable_attention_block", {each: functools.partial(half, x, sums) for each, half in halves.items()}, plain,
        6 * x.numel(), 4 * x.numel() * dim, exact=True, peer=False,
    )  # fmt: skip


def integer_residual(device: str, batch: int, block: tuple[int, ...], backends: tuple[str, ...]) -> Case:
    """The same of bytes, with SiLU as compiled networks have it; held against its three layers one after another."""
    side, channels, hidden, columns, stride = block

    def weight(*size: int) -> Tensor:
        return torch.randint(-127, 128, size, dtype=torch.int8)

    curved = {
        "out_dtype": torch.uint8, "out_scale": 0.02, "out_zero_point": 14, "table": reference.activation_curve("silu", 0.02, 14),
    }  # fmt: skip
    narrow = {"out_dtype": torch.uint8, "out_scale": 0.05, "out_zero_point": 128}
    of_hidden = {"a_scale": 0.02, "a_zero_point": 14}
    expand = ops.prepare_qconv2d(
        ops.pack_weight(weight(hidden, channels)), 0.02, 113, 1 / (60 * channels**0.5), torch.randn(hidden), kernel_size=1, **curved
    )
    depthwise = ops.prepare_qdepthwise_conv2d(weight(hidden, 1, 3, 3), stride=stride, w_scale=1 / 200, **of_hidden, **curved)
    reduce = ops.prepare_qconv2d(
        ops.pack_weight(weight(columns, hidden)), w_scale=1 / (60 * hidden**0.5), kernel_size=1, **of_hidden, **narrow
    )
    x = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    blocks = {
        each: ops.prepare_qinverted_residual(expand, depthwise, reduce, backend=each) for each in having("qinverted_residual", backends)
    }
    return Case(
        "qinverted_residual", {each: functools.partial(block, x) for each, block in blocks.items()},
        lambda: reduce(depthwise(expand(x))), batch * side**2 * (channels + columns // stride**2), exact=True,
    )  # fmt: skip


def having(op: str, backends: tuple[str, ...]) -> list[str]:
    """Those of the backends that have a kernel for the op."""
    (choice,) = (each for each in Choice.every if each.op == op)
    return [each for each in backends if each in choice.implementations]


def int_mm(a: Tensor, matrix: Tensor, *, a_scale: float, a_zero_point: int, w_scale: float, bias: Tensor) -> Callable[[], Tensor]:
    """torch's own product of bytes, with the same bias, SiLU and bytes at its end. It takes int8: 128 is subtracted from a, and what that
    and the zero-point leave is in the bias."""
    left, factor = matrix.sum(1, dtype=torch.int64) * (128 - a_zero_point), a_scale * w_scale
    columns, w = (bias + left * factor).to(a.device), matrix.to(a.device)

    def product(a: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        y = torch.nn.functional.silu(torch._int_mm(a, w.T).float() * factor + bias)
        return (y / SILU["out_scale"]).round().add(SILU["out_zero_point"]).clamp(0, 255).to(torch.uint8)

    return functools.partial(product, (a ^ 128).view(torch.int8), w, columns)


def _copied(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    return function(x).contiguous(memory_format=torch.channels_last)


def _quantized(x: Tensor, scale: float, zero_point: int) -> Callable[[], Tensor]:
    """Plain torch, with the numbers on the device before: inside of a CUDA graph nothing comes from the host."""
    return functools.partial(reference.quantize, x, torch.tensor(scale, device=x.device), torch.tensor(zero_point, device=x.device))


def wrong(case: Case) -> dict[str, str]:
    """What is wrong with our results, by backend: the same bits of integers as plain torch has, floats as near as 16 bits are."""
    with use_backend("reference"):  # also where it is made of our ops
        plain = _tensors(case.plain())
    found = {}
    for backend, call in case.ours.items():
        try:
            results = _tensors(call())
            # Gradients of weights are float32 beside maps of 16 bits, too, from which they are.
            near = case.near if any(each.element_size() == 2 for each in (*plain, *results)) else 2e-5
            for right, ours in zip(plain, results, strict=True):
                if case.exact:
                    assert torch.equal(ours, right), "not the bits of plain torch"
                elif right.numel():
                    most, off = float(right.double().abs().max()), float((ours.double() - right.double()).abs().max())
                    assert off <= near * most, f"off by {off:g} of {most:g}"
        except Exception as error:  # of one backend; others may be right
            found[backend] = f"{type(error).__name__}: {error}"
    return found


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
