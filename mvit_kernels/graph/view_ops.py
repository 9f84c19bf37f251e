"""Torch's ops that move elements about, or leave some out: views, without a node. What is no view, torch makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builder import Builder, Named, origin
from .views import IMAGES, View, folded, unfolded, whole

Tensor = torch.Tensor


def _reshape(build: Builder, named: Named, path: str) -> Any:
    """Whatever gives the same elements in the same order."""
    x, shape = named["self"], named["_shape"]
    y = x.reshape(shape) if isinstance(x, View) and shape is not None else None
    return None if y is None else _unshuffled(build, y)


def _unshuffled(build: Builder, x: View) -> View:
    """Of a map whose channels are in another order, a product where that can be."""
    order = shuffled(x)
    name = None if order is None else build.rows(x.name, order)
    return x if name is None else build.map(name)


def shuffled(x: View) -> list[int] | None:
    """The order of the channels, if it is another one, and all else is as in a map."""
    if len(x.dims) != 4 or len(x.size) != 3 or not x.whole or x.is_map or any(factor.axis != "c" for factor in x.dims[1]):
        return None
    straight = whole(x.name, x.size, "b,c,h,w")
    if (x.dims[0], *x.dims[2:]) != (straight.dims[0], *straight.dims[2:]):
        return None
    order = [0]
    for factor in x.dims[1]:
        order = [index + i * factor.step for index in order for i in range(factor.size)]
    return order


def _squeeze(build: Builder, named: Named, path: str) -> Any:
    """Not of images: one is squeezed, more are not."""
    x, dims = named["self"], named.get("dim")
    if not isinstance(x, View):
        return None
    squeezed = range(len(x.dims)) if dims is None else [dims] if isinstance(dims, int) else dims
    return None if any(x.shape[each] == IMAGES for each in squeezed) else _reshape(build, named, path)


def _permute(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    return x.permute(each % len(x.dims) for each in named["dims"]) if isinstance(x, View) else None


def _transpose(build: Builder, named: Named, path: str) -> Any:
    x, (one, other) = named["self"], [named[name] for name in ("dim0", "dim1", "axis0", "axis1") if name in named] or (-2, -1)
    if not isinstance(x, View):
        return None
    order = list(range(len(x.dims)))
    order[one], order[other] = order[other], order[one]
    return x.permute(order)


def _channel_shuffle(build: Builder, named: Named, path: str) -> Any:
    x, groups = named["input"] if "input" in named else named["self"], named["groups"]
    if not isinstance(x, View):
        return None
    b, channels, *rest = x.shape
    parts = x.reshape([b, groups, channels // groups, *rest])
    return None if parts is None else _reshape(build, {**named, "self": parts.permute([0, 2, 1, *range(3, len(parts.dims))])}, path)


def _movedim(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not isinstance(x, View):
        return None
    one, other = named["source"] % len(x.dims), named["destination"] % len(x.dims)
    order = [i for i in range(len(x.dims)) if i != one]
    return x.permute([*order[:other], one, *order[other:]])


def _unfold(build: Builder, named: Named, path: str) -> Any:
    """Windows side by side; of others torch makes copies."""
    x = named["self"]
    return x.windows(named["dimension"] % len(x.dims), named["size"]) if isinstance(x, View) and named["size"] == named["step"] else None


def _patch_of(named: Named) -> tuple[int, int] | None:
    """Of windows side by side, without borders."""
    kernel, stride, padding, dilation = (pair(named[name]) for name in ("kernel_size", "stride", "padding", "dilation"))
    return (kernel[0], kernel[1]) if kernel == stride and padding == [0, 0] and dilation == [1, 1] else None


def _im2col(build: Builder, named: Named, path: str) -> Any:
    x, patch = named["self"], _patch_of(named)
    return unfolded(x, patch) if isinstance(x, View) and patch is not None else None


def _col2im(build: Builder, named: Named, path: str) -> Any:
    x, patch, size = named["self"], _patch_of(named), named["output_size"]
    return folded(x, (size[0], size[1]), patch) if isinstance(x, View) and patch is not None and len(size) == 2 else None


def _unfold_patches(build: Builder, named: Named, path: str) -> Any:
    """Our own: (B, C, P, N)."""
    x, (height, width) = named["x"], pair(named["patch_size"])
    y = unfolded(x, (height, width)) if isinstance(x, View) else None
    return None if y is None else y.reshape([*x.shape[:2], y.shape[1] // x.shape[1], y.shape[2]])


def _fold_patches(build: Builder, named: Named, path: str) -> Any:
    p, (height, width), size = named["p"], pair(named["patch_size"]), named["output_size"]
    if not isinstance(p, View) or len(p.dims) != 4:
        return None
    b, channels, phases, patches = p.shape
    y = p.reshape([b, channels * phases, patches])
    return None if y is None else folded(y, (size[0], size[1]), (height, width))


def _expand(build: Builder, named: Named, path: str) -> Any:
    """What is the same for every image, as often as there are images: tokens, a map, any floats. Or as many as there are already."""
    x, shape = named["self"], named["_shape"]
    if isinstance(x, View):
        return x if x.shape == shape else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or shape is None or [size % IMAGES for size in shape].count(0) != 1:
        return None
    images = next((i for i, size in enumerate(shape) if size == IMAGES), None)
    x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
    if images is None or x.shape[images] != 1:
        return None
    x = x.repeat([1 if i == images else size // x.shape[i] for i, size in enumerate(shape)]).movedim(images, 0)[0]
    y = build.constant(x, origin(named, "self", path))
    back = [*range(1, len(shape))]
    back.insert(images, 0)
    return None if y is None else y.permute(back)


def _select(build: Builder, named: Named, path: str) -> Any:
    """One of the tokens, or some of the channels."""
    x, index = named["self"], named["index"]
    if not isinstance(x, View) or not isinstance(index, int):
        return None
    dim = named["dim"] % len(x.dims)
    index %= x.shape[dim]
    if len(x.size) == 3 and x.whole and x.shape[dim] > 1 and x.dims[dim] == whole(x.name, x.size, "hw").dims[0]:
        pixel = build.add("pixel", (x.name,), x.size[:1], f"{x.name}.pixel{index}", {"index": index})
        return View(pixel, x.size[:1], (*x.dims[:dim], *x.dims[dim + 1 :]))
    return x.select(dim, index)


def _slice(build: Builder, named: Named, path: str) -> Any:
    """All of it, or some of the channels."""
    x, start, end, step = (named[name] for name in ("self", "start", "end", "step"))
    if step == 1 and ((start in (None, 0) and end in (None, 2**63 - 1)) or (isinstance(x, View) and x.shape == named["_shape"])):
        return x
    if not isinstance(x, View) or step != 1 or not all(isinstance(each, (int, type(None))) for each in (start, end)):
        return None
    dim = named["dim"] % len(x.dims)
    start, stop, _ = slice(start, end).indices(x.shape[dim])
    return x.narrow(dim, start, stop - start) if stop > start else None


def _split(build: Builder, named: Named, path: str) -> Any:
    """Channels in several parts, of as many as are given, of so many each, or so many of them."""
    x = named["self"]
    if not isinstance(x, View):
        return None
    dim = named["dim"] % len(x.dims)
    total, sizes = x.shape[dim], named.get("split_sizes", named.get("split_size"))
    if "chunks" in named:
        sizes = -(-total // named["chunks"])
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    if not isinstance(sizes, list) or not all(isinstance(each, int) for each in sizes):  # so many images
        return None
    parts = tuple(x.narrow(dim, sum(sizes[:i]), size) if size else None for i, size in enumerate(sizes))
    return None if None in parts else parts


def _unbind(build: Builder, named: Named, path: str) -> Any:
    x = named["self"]
    if not isinstance(x, View):
        return None
    dim = named["dim"] % len(x.dims)
    parts = tuple(x.select(dim, index) for index in range(x.shape[dim])) if x.shape[dim] <= x.channels else (None,)
    return None if None in parts else parts


def _to(build: Builder, named: Named, path: str) -> Any:
    """Programs are captured in float32."""
    return named["self"] if named["dtype"] == torch.float32 and isinstance(named["self"], View) else None


def _same(build: Builder, named: Named, path: str) -> Any:
    return named["self"] if "self" in named else named["input"]


def pair(value: Any) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * 2 if len(value) == 1 else value


_aten = torch.ops.aten
RULES: dict[Any, Callable[[Builder, Named, str], Any]] = {
    _aten.reshape.default: _reshape,
    _aten.view.default: _reshape,
    _aten._unsafe_view.default: _reshape,
    _aten.flatten.using_ints: _reshape,
    _aten.unflatten.int: _reshape,
    _aten.squeeze.default: _squeeze,
    _aten.squeeze.dim: _squeeze,
    _aten.squeeze.dims: _squeeze,
    _aten.unsqueeze.default: _reshape,
    _aten.permute.default: _permute,
    _aten.transpose.int: _transpose,
    _aten.swapaxes.default: _transpose,
    _aten.swapdims.default: _transpose,
    _aten.mT.default: _transpose,
    _aten.movedim.int: _movedim,
    _aten.channel_shuffle.default: _channel_shuffle,
    _aten.unfold.default: _unfold,
    _aten.im2col.default: _im2col,
    _aten.col2im.default: _col2im,
    torch.ops.mvit_kernels.unfold_patches.default: _unfold_patches,
    torch.ops.mvit_kernels.fold_patches.default: _fold_patches,
    _aten.expand.default: _expand,
    _aten.repeat.default: _expand,
    _aten.select.int: _select,
    _aten.slice.Tensor: _slice,
    _aten.split_with_sizes.default: _split,
    _aten.split.Tensor: _split,
    _aten.split.sizes: _split,
    _aten.chunk.default: _split,
    _aten.unbind.int: _unbind,
    _aten.to.dtype: _to,
    _aten.contiguous.default: _same,
    _aten.clone.default: _same,
}
