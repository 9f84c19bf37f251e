"""What `gpu_check.py` times on a GPU: an op of ours, the same in plain torch, and the least that either must do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from mvit_kernels import ops, reference

Tensor = torch.Tensor
PATCH = (2, 2)


class Case(NamedTuple):
    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]  # what `ours` is held against, and timed against, eager and compiled
    bytes: int  # read and written at least once
    operations: int = 0  # of tensor cores
    exact: bool = False  # integers: the same bits


def cases(device: str, batch: int, side: int, dim: int, dtype: torch.dtype, backend: str) -> Iterator[Case]:
    """Maps (batch, dim, side, side) of the attention blocks, channels_last, and the products of bytes on their pixels."""

    def image(channels: int) -> Tensor:
        return torch.randn(batch, channels, side, side).to(device, dtype).contiguous(memory_format=torch.channels_last)

    def weight(*size: int) -> Tensor:
        return (torch.randn(size) / size[-1] ** 0.5).to(device, dtype)

    x, qkv = image(dim), image(1 + 2 * dim)
    element, pixels = x.element_size(), batch * side * side
    call = functools.partial(functools.partial, backend=backend)
    yield Case(
        "separable_attention", call(ops.separable_attention, qkv, PATCH), functools.partial(reference.separable_attention, qkv, PATCH),
        element * (qkv.numel() + x.numel()),
    )  # fmt: skip
    dy = image(dim)
    yield Case(
        "separable_attention backward",
        functools.partial(torch.ops.mvit_kernels.separable_attention_backward, dy, qkv, PATCH, backend),
        functools.partial(reference.separable_attention_backward, dy, qkv, PATCH), element * (2 * qkv.numel() + x.numel()),
    )  # fmt: skip
    parameters = [weight(dim), weight(dim), weight(1 + 2 * dim, dim), weight(1 + 2 * dim), weight(dim, dim), weight(dim)]
    yield Case(
        "separable_attention_block", call(ops.separable_attention_block, x, *parameters, patch_size=PATCH),
        functools.partial(reference.separable_attention_block, x, *parameters, patch_size=PATCH), 2 * element * x.numel(),
        4 * pixels * dim * dim,
    )  # fmt: skip
    gamma, beta = parameters[:2]
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    for name, data in (("group_norm", x), ("layer_norm", rows)):
        plain = functools.partial(getattr(reference, name), data, gamma, beta)
        yield Case(name, call(getattr(ops, name), data, gamma, beta), plain, 2 * element * x.numel())
    heads = image(3 * dim)
    yield Case(
        "patch_attention", call(ops.patch_attention, heads, 4), functools.partial(reference.patch_attention_fused, heads, 4),
        element * 4 * x.numel(), 4 * pixels * (side * side // 4) * dim,
    )  # fmt: skip
    unfolded = functools.partial(_copied, reference.unfold_patches, x)
    yield Case("unfold_patches", call(ops.unfold_patches, x), unfolded, 2 * element * x.numel())
    yield Case(
        "quantize", call(ops.quantize, x, 0.02, 113), functools.partial(_quantized, x, 0.02, 113), (element + 1) * x.numel(), exact=True
    )  # fmt: skip
    yield from _integers(device, pixels, dim, backend)


def _integers(device: str, rows: int, dim: int, backend: str) -> Iterator[Case]:
    a = torch.randint(0, 256, (rows, dim), dtype=torch.uint8).to(device)
    for bits in (8, 6):
        most = 127 if bits == 8 else 31
        matrix = torch.randint(-most, most + 1, (2 * dim, dim), dtype=torch.int8)
        scales = {"a_scale": 0.02, "a_zero_point": 113, "w_scale": 0.01, "bias": torch.randn(2 * dim)}
        narrow = {"activation": "silu", "out_dtype": torch.uint8, "out_scale": 0.02 * dim**0.5, "out_zero_point": 20}
        packed = ops.pack_weight(matrix, bits=bits)
        ours, same = (ops.prepare_qgemm(packed, **scales, **narrow, backend=each) for each in (backend, "reference"))
        yield Case(
            f"qgemm int{bits}", functools.partial(ours, a), functools.partial(same, a), a.numel() + 2 * rows * dim + matrix.numel(),
            4 * rows * dim * dim, exact=True,
        )  # fmt: skip


def int_mm(device: str, rows: int, dim: int) -> Callable[[], Tensor]:
    """torch's own product of bytes with the same bias, SiLU and bytes at its end, without a zero-point of a: what Inductor makes of it."""
    a, w = (torch.randint(-127, 128, size, dtype=torch.int8).to(device) for size in ((rows, dim), (2 * dim, dim)))
    bias, scale = torch.randn(2 * dim, device=device), 0.02 * dim**0.5

    def product(a: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        y = torch.nn.functional.silu(torch._int_mm(a, w.T).float() * 2e-4 + bias)
        return (y / scale).round().add(20).clamp(0, 255).to(torch.uint8)

    return functools.partial(torch.compile(product, dynamic=False), a, w, bias)


def _copied(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    return function(x).contiguous(memory_format=torch.channels_last)


def _quantized(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return reference.quantize(x, torch.tensor(scale, device=x.device), torch.tensor(zero_point, device=x.device))


def check(case: Case) -> None:
    """Our result is that of plain torch: the same bits of integers, floats as near as 16 bits are."""
    ours, plain = case.ours(), case.plain()
    if case.exact:
        assert torch.equal(ours, plain), case.name
        return
    most = float(plain.double().abs().max())
    off = float((ours.double() - plain.double()).abs().max())
    assert off <= (2e-5 if ours.dtype == torch.float32 else 2e-2) * most, f"{case.name}: off by {off:g} of {most:g}"
