"""The attention half of a MobileViTv2 layer in one op: schema, checks, fake, backward and backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from . import checks, counts, cuda_support, triton_support
from .backend import Choice, Implementation, native
from .fastest import in_order
from .group_norm import choose as choose_group_norm
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    empty_moments,
    is_channels_last,
    is_compiling,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    single,
    wide_dtype,
    widen,
)
from .moments import joined, moments_of
from .packing import Packed, are_passing, by_dtype, fold_norm, pack_matrix, packed, passing_weights
from .qfragments import neighbour_order, tiles
from .replay import WeightedReplays
from .separable_attention import choose as choose_attention

OP = "separable_attention_block"
_kernels, _gradients = triton_support.Kernels(OP), triton_support.Kernels(f"{OP}_backward")
_WIDEST = 512  # channels of a pixel that the Triton kernels keep in registers
Tensor = torch.Tensor
Optional = torch.Tensor | None


def separable_attention_block(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, eps: float = 1e-5, *,
    patch_size: tuple[int, int] | None = None, moments: Tensor | None = None, collect: bool = False, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """x + W_o attention(W_qkv GroupNorm(1)(x)), with no K tensor, no normalised copy and no unfolded copy.

    Args:
        x: (B, d, P, N), or a map (B, d, H, W) with patch_size; float32, bfloat16, float16 or float64. channels_last runs in place, other
            formats are copied.
        norm_w, norm_b: (d,); qkv_w (1 + 2d, d) or (1 + 2d, d, 1, 1), rows in the order q, k, v; qkv_b (1 + 2d,); out_w (d, d) or
            (d, d, 1, 1), out_b (d,): float32 or the dtype of x.
        patch_size: (ph, pw), of which H and W are multiples: attention stays inside each of the ph * pw pixel phases.
        moments: (B, 2) float64, mean and variance of each image of x, if they are known. The gradient is that of the block, in which they
            depend on x.
        collect: also give the moments of y.
        backend: None for automatic choice, or the name of one.

    Returns:
        y, of the shape, dtype and memory format of x; with `collect`, (y, moments (B, 2) float64).
        Of bfloat16, what products take is rounded to it: weights, normalized and gated values. Sums are float32.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: MobileViTv2, arXiv 2206.02680, section 3, equation 3 and figure 3.
    """
    if patch_size is not None:
        checks.pair(OP, "patch_size", patch_size)
    checks.backend(OP, backend)
    simple = not collect and type(eps) is float and type(patch_size) in (tuple, type(None)) and not is_compiling()
    inputs, weights, settings = (x, moments), (norm_w, norm_b, qkv_w, qkv_b, out_w, out_b), (eps, patch_size, backend)
    if simple and (again := _replays.again(inputs, weights, settings)) is not None:
        return again
    checks.all_tensors(OP, x=x, norm_w=norm_w, norm_b=norm_b, qkv_w=qkv_w, qkv_b=qkv_b, out_w=out_w, out_b=out_b)
    checks.tensors(OP, moments=moments)
    if simple:
        return _replays(inputs, weights, settings)
    call = _call if type(eps) is float else _forward_op  # which converts what is like a number, and refuses the rest
    y, collected = call(
        x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, eps, patch_size, collect, backend=backend
    )  # fmt: skip
    return (y, collected) if collect else y


def _check(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional,
    patch_size: list[int] | None,
) -> tuple[int, int]:  # fmt: skip
    """The patch of the map that x is, or may be seen as: (B, d, P, N) is a map of P rows, each a phase."""
    checks.tensor(OP, "x", x, 4, FLOAT_DTYPES)
    dim = x.shape[1]
    checks.parameter(OP, "norm_w", norm_w, 1, x, (dim,))
    checks.parameter(OP, "norm_b", norm_b, 1, x, (dim,))
    checks.matrix(OP, "qkv_w", qkv_w, x, (1 + 2 * dim, dim))
    checks.parameter(OP, "qkv_b", qkv_b, 1, x, (1 + 2 * dim,))
    checks.matrix(OP, "out_w", out_w, x, (dim, dim))
    checks.parameter(OP, "out_b", out_b, 1, x, (dim,))
    if moments is not None:
        checks.moments(OP, moments, x, x.shape[0])
    if patch_size is not None:
        checks.whole_patches(OP, "x", x.shape[2], x.shape[3], checks.patch_size(OP, patch_size))
    return _patch(x, patch_size)


def _patch(x: Tensor, patch_size: list[int] | None) -> tuple[int, int]:
    return (max(x.shape[2], 1), 1) if patch_size is None else (patch_size[0], patch_size[1])


# --- backends ---


class _Weights(NamedTuple):
    query: Tensor
    key: Packed
    value: Packed
    out: Packed


def _pack(norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, *, dtype: torch.dtype) -> _Weights:
    dim = norm_w.shape[0]
    weight, bias = fold_norm(norm_w, norm_b, qkv_w, qkv_b)
    query, key, value = weight.split([1, dim, dim])
    _, key_bias, value_bias = bias.split([1, dim, dim])  # the query's cancels
    return _Weights(
        query.float().flatten(), pack_matrix(key, key_bias), pack_matrix(value, value_bias, dtype),
        pack_matrix(out_w.flatten(1), out_b, dtype),
    )  # fmt: skip


_PACK = by_dtype(_pack)


def _cpu_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional, eps: float,
    patch_size: list[int] | None, collect: bool, patch: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights: _Weights = packed(_PACK[x.dtype], norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)
    channels_last, size = is_channels_last(x), x.shape
    x = dense(x, True)
    y = empty_in_format(x, tuple(size), True)
    if moments is not None:
        moments = moments.contiguous()
    collected = empty_moments(size[0] if collect else 0, y)
    status = native.separable_attention_block(
        FLOAT_CODES[x.dtype], size, patch, weights.query.data_ptr(), weights.key.weight.data_ptr(), weights.key.bias.data_ptr(),
        weights.value.weight.data_ptr(), weights.value.bias.data_ptr(), weights.out.weight.data_ptr(), weights.out.bias.data_ptr(),
        0 if moments is None else moments.data_ptr(), eps, x.data_ptr(), y.data_ptr(),
        collected.data_ptr() if collect else 0, torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return dense(y, channels_last), collected


def _cpu_backward(dy: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    """With the kernels of the norm and of attention."""
    norm, attention = choose_group_norm.implementations["cpu"], choose_attention.implementations["cpu"]
    assert attention.backward is not None
    attention_backward = attention.backward

    def readable(qkv: Tensor, patch: Any) -> Tensor:  # patches of any width only where it is channels_last
        return qkv if attention.refuse(qkv, patch) is None else dense(qkv, channels_last=True)

    return _composed_backward(
        dy, x, *parameters, group_norm=norm.forward, group_norm_backward=norm.backward,
        attention=lambda qkv, patch: attention.forward(readable(qkv, patch), patch),
        attention_backward=lambda dy, qkv, patch: attention_backward(dy, readable(qkv, patch), patch),
    )  # fmt: skip


_TILE = 32  # pixels, of csrc/cuda/ops/separable_attention_block.h; its channels likewise
_CHANNELS, _MOST_CHANNELS = 8, 512
_IMAGE_MULTIPLE, _IMAGE_MOST = 64, 256  # of csrc/cuda/ops/separable_attention_image.h: channels are rounded up to, and at most


def _image_blocks(x: Tensor, patch: tuple[int, int]) -> int:
    """How many blocks of the CUDA kernel for whole images hold one; 0 where it has no kernel."""
    _, dim, height, width = x.shape
    if x.dtype not in (torch.float16, torch.bfloat16) or dim % _CHANNELS or not 0 < dim <= _IMAGE_MOST:
        return 0
    if counts.refuse(counts.rows(x)) is not None:
        return 0
    with cuda_support.there(x.get_device()):
        blocks: int = cuda_support.native.separable_attention_image_blocks(dim, height, width, *patch, x.get_device())
    return blocks


def _order(x: Tensor, patch: tuple[int, int]) -> tuple[str, ...]:
    """Not measured yet: by counts of its machine code, the kernel for whole images takes some 15 us on an H200 for as many blocks as there
    are multiprocessors, with an image of 192 x 16 x 16 each or half of one of 128 x 32 x 32, where Triton's launches took 50 and 40. It is
    taken where there is one, if there are images enough to give half of the multiprocessors something to do; and if its weights, which take
    more launches to pack, are packed once. For few images of 256 x 8 x 8 the counts say 8 us, and Triton's launches took 12: what they do
    not count, fetching 75 to 124 KB of instructions (`cuobjdump -sass`) that run about once, may be more than that.

    The CUDA kernels of other maps are not: on an H100 their tiles of 32 pixels wait for their weights, 1.7 us an image of 128 x 32 x 32
    among 256."""
    is_any_size = any(isinstance(size, torch.SymInt) for size in x.shape)  # a compiler's; the kernel that runs is asked for again
    if is_any_size or are_passing():
        return "triton", "cuda", "reference"
    blocks = _image_blocks(x, patch) if cuda_support.refuse(x) is None else 0
    if blocks == 0:
        return "triton", "cuda", "reference"
    return in_order(OP, x, (*x.shape, *patch), 2 * blocks * x.shape[0] >= cuda_support.processors(x.device))


def _cuda_refuse(x: Tensor, *_: object) -> str | None:
    if (reason := cuda_support.refuse(x)) is not None:
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it has no kernel for {x.dtype}"
    if x.shape[1] % _CHANNELS or x.shape[1] > _MOST_CHANNELS:
        return f"it takes multiples of {_CHANNELS} channels up to {_MOST_CHANNELS}, got {x.shape[1]}"
    return counts.refuse(counts.rows(x))


class _ImageWeights(NamedTuple):
    """csrc/cuda/ops/separable_attention_image.h."""

    tiles: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class _PackImage:
    dtype: torch.dtype  # of x, which weights of products take too

    def __call__(self, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor) -> _ImageWeights:
        dim = norm_w.shape[0]
        weight, bias = fold_norm(norm_w, norm_b, qkv_w, qkv_b)
        (query, key, value), (_, key_bias, value_bias) = weight.split([1, dim, dim]), bias.split([1, dim, dim])  # the query's bias cancels
        beyond = -dim % _IMAGE_MULTIPLE
        matrices = [F.pad(each.to(self.dtype), (0, beyond, 0, beyond)) for each in (key, value, out_w.flatten(1))]
        vectors = query[0], key_bias, value_bias, matrices[1][:dim].double().sum(1), out_b
        matrices[2] = neighbour_order(matrices[2].T).T  # whose depth is the columns of values
        ordered = [neighbour_order(each).contiguous().view(torch.int8) for each in matrices]
        return _ImageWeights(
            torch.cat([tiles(each, 8) for each in ordered]), torch.stack([F.pad(each.float(), (0, beyond)) for each in vectors])
        )


class _CudaWeights(NamedTuple):
    """In the order of python/bind_cuda.cpp; float32 but for the tiles."""

    query: Tensor
    gamma: Tensor
    beta: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor
    out: Tensor
    out_bias: Tensor


@dataclass(frozen=True)
class _PackCuda:
    dtype: torch.dtype  # of x, which weights of products take too

    def __call__(self, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor) -> _CudaWeights:
        dim = norm_w.shape[0]
        query, key, value = qkv_w.flatten(1).split([1, dim, dim])
        _, key_bias, value_bias = qkv_b.split([1, dim, dim])  # the query's cancels
        folded = (query[0].double() * norm_w.double()).float()
        return _CudaWeights(
            folded, single(norm_w), single(norm_b), single(key), single(key_bias), self._tiles(value), single(value_bias),
            self._tiles(out_w.flatten(1)), single(out_b),
        )  # fmt: skip

    def _tiles(self, weight: Tensor) -> Tensor:
        return tiles(weight.to(self.dtype).contiguous().view(torch.int8), 8)


def _cuda_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional, eps: float,
    patch_size: list[int] | None, collect: bool, patch: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    channels_last, (batch, dim, height, width) = is_channels_last(x), x.shape
    x = cuda_support.aligned_copy(dense(x, True))
    y = empty_in_format(x, tuple(x.shape), True)
    if blocks := _image_blocks(x, patch):  # which finds the moments of x as it reads it
        image: _ImageWeights = packed(_PackImage(x.dtype), norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)
        collected = x.new_empty(batch if collect else 0, 2, dtype=torch.float64)
        told = cuda_support.native.separable_attention_image_exchange(dim) * blocks * batch if blocks > 1 else 0
        exchange = x.new_empty(told, dtype=torch.uint8)
        cuda_support.launch(
            cuda_support.native.separable_attention_image, *cuda_support.place(x), FLOAT_CODES[x.dtype], x.shape, patch, eps, x.data_ptr(),
            y.data_ptr(), image.tiles.data_ptr(), image.vectors.data_ptr(), collected.data_ptr() if collect else 0,
            exchange.data_ptr(),
        )  # fmt: skip
        return dense(y, channels_last), collected
    weights: _CudaWeights = packed(_PackCuda(x.dtype), norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)
    pixels = height * width
    parts = x.new_empty(2 * batch * -(-pixels // _TILE), dtype=torch.float64)
    sizes = [batch * pixels, batch * patch[0] * patch[1] * dim, 2 * batch]
    scores, context, normal = x.new_empty(sum(sizes), dtype=torch.float32).split(sizes)
    moments = joined(moments)
    if moments is not None:
        moments = moments.contiguous()
    cuda_support.launch(
        _cuda_kernels, *cuda_support.place(x), FLOAT_CODES[x.dtype], x.shape, patch, eps, x.data_ptr(), y.data_ptr(),
        0 if moments is None else moments.data_ptr(), *(each.data_ptr() for each in (*weights, scores, parts, context, normal)),
    )  # fmt: skip
    collected = moments_of(y, batch) if collect else y.new_empty(0, 2, dtype=torch.float64)
    return dense(y, channels_last), collected


def _cuda_kernels(
    device: int, stream: int, dtype: int, size: Sequence[int], patch: Sequence[int], eps: float, x: int, y: int, moments: int, *others: int
) -> None:  # fmt: skip
    """others: addresses of the weights, then of scratch memory."""
    weights, scratch = others[: len(_CudaWeights._fields)], others[len(_CudaWeights._fields) :]
    cuda_support.native.separable_attention_block(device, stream, dtype, size, patch, eps, x, y, list(weights), moments, list(scratch))


def _cuda_backward(dy: Tensor, x: Tensor, *parameters: Any) -> tuple[Tensor, ...]:
    """There are no kernels for it here: by Triton's, where they take x, or else by plain torch."""
    backward = _triton_backward if _triton_refuse(x) is None else _composed_backward
    return backward(dy, x, *parameters)


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    if x.shape[1] > _WIDEST:
        return f"it has no kernel for more than {_WIDEST} channels, got {x.shape[1]}"
    return triton_support.refuse_rows(x, FLOAT_CODES)


@dataclass(frozen=True)
class _TritonWeights:
    """The recipe of `mvit_kernels.triton_kernels.separable_attention_block.Weights` for x of that dtype."""

    dtype: torch.dtype

    def __call__(self, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor) -> Any:
        return _kernels.arrange(*fold_norm(norm_w, norm_b, qkv_w, qkv_b), out_w.flatten(1), out_b, self.dtype)


def _triton_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional, eps: float,
    patch_size: list[int] | None, collect: bool, patch: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights = packed(_TritonWeights(x.dtype), norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)
    channels_last = is_channels_last(x)
    x = dense(x, True)
    y = empty_in_format(x, tuple(x.shape), True)
    collected = _kernels.forward(x, weights, moments, eps, patch, y, collect)
    return dense(y, channels_last), collected


def _triton_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional,
    eps: float, patch_size: list[int] | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Products are in the dtype of x. Parameters are found as the forward has arranged them."""
    weights = packed(_TritonWeights(x.dtype), norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)
    channels_last = is_channels_last(x)
    x, dy = dense(x, True), dense(dy, True)
    dx = empty_in_format(x, tuple(x.shape), True)
    of_norm = norm_w.contiguous(), norm_b.contiguous(), qkv_w.flatten(1).contiguous()
    dnorm_w, dnorm_b, dqkv_w, dqkv_b, dout_w, dout_b = _gradients.backward(
        dy, x, weights, *of_norm, moments, eps, _patch(x, patch_size), dx
    )  # fmt: skip
    dqkv_w, dout_w = dqkv_w.reshape(qkv_w.shape), dout_w.reshape(out_w.shape)
    return dense(dx, channels_last), dnorm_w, dnorm_b, dqkv_w, dqkv_b, dout_w, dout_b


def _reference_forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional, eps: float,
    patch_size: list[int] | None, collect: bool, patch: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = [*widen(x, x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b), eps]
    y = reference.separable_attention_block(*arguments, patch_size=None if patch_size is None else patch)
    y = dense(y.to(x.dtype), is_channels_last(x))
    collected = reference.moments_of(y, y.shape[0]) if collect else torch.empty(0, 2, dtype=torch.float64, device=x.device)
    return y, collected


def _composed_backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional,
    eps: float, patch_size: list[int] | None, **steps: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    arguments = [*widen(x, dy, x, norm_w, norm_b, qkv_w, qkv_b, out_w), eps]
    patch = None if patch_size is None else _patch(x, patch_size)
    dx, *gradients = reference.separable_attention_block_backward(*arguments, patch_size=patch, **steps)
    return dense(dx.to(x.dtype), is_channels_last(x)), *gradients


choose = Choice(
    OP,
    order=_order,
    cuda=Implementation(_cuda_forward, _cuda_backward, _cuda_refuse),
    triton=Implementation(_triton_forward, _triton_backward, _triton_refuse),
    cpu=Implementation(_cpu_forward, _cpu_backward, refuse_off_floats),
    reference=Implementation(_reference_forward, _composed_backward),
)


# --- registration ---


def _forward(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional = None,
    eps: float = 1e-5, patch_size: list[int] | None = None, collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    patch = _check(x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, patch_size)
    return choose(backend, x, patch).forward(x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, eps, patch_size, collect, patch)


def _forward_fake(
    x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional = None,
    eps: float = 1e-5, patch_size: list[int] | None = None, collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, patch_size)
    y = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return y, x.new_empty(x.shape[0] if collect else 0, 2, dtype=torch.float64)


def _backward(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, moments: Optional,
    eps: float, patch_size: list[int] | None, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    patch = _check(x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, patch_size)
    checks.like(f"{OP}_backward", "dy", dy, x, x.shape)
    backward = choose(backend, x, patch).backward
    assert backward is not None
    with passing_weights():  # compiled code calls this with weights on its way, too
        return backward(dy, x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments, eps, patch_size)


def _backward_fake(
    dy: Tensor, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, *_: object
) -> tuple[Tensor, ...]:
    dx = empty_in_format(x, tuple(x.shape), is_channels_last(x))
    return dx, *(x.new_empty(each.shape, dtype=wide_dtype(x)) for each in (norm_w, norm_b, qkv_w, qkv_b, out_w, out_b))


_forward_op = register(
    OP,
    "(Tensor x, Tensor norm_w, Tensor norm_b, Tensor qkv_w, Tensor qkv_b, Tensor out_w, Tensor out_b, Tensor? moments=None,"
    " float eps=1e-05, int[]? patch_size=None, bool collect=False, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor norm_w, Tensor norm_b, Tensor qkv_w, Tensor qkv_b, Tensor out_w, Tensor out_b, Tensor? moments,"
    " float eps, int[]? patch_size, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, x: Tensor, norm_w: Tensor, norm_b: Tensor, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor,
    moments: Optional = None, eps: float = 1e-5, patch_size: list[int] | None = None, collect: bool = False, *,
    backend: str | None = None,
) -> None:  # fmt: skip
    ctx.save_for_backward(x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b, moments)
    ctx.settings = eps, patch_size
    ctx.dtypes = [each.dtype for each in (x, norm_w, norm_b, qkv_w, qkv_b, out_w, out_b)]
    # The backward may run on another thread, outside the use_backend block of the forward.
    ctx.backend = choose.backend(backend, x, _patch(x, patch_size))


def _gradient(ctx: Any, dy: Tensor, _: object) -> tuple[Optional, ...]:
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        gradients = _composed_backward(dy, *ctx.saved_tensors, *ctx.settings)
    else:
        gradients = _backward_op(dy, *ctx.saved_tensors, *ctx.settings, ctx.backend)
    return *(each.to(dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None, None, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=8, inputs=(0, 7))


def _one(x: Tensor, moments: Optional, *arguments: Any) -> Tensor:
    """The call without moments of y."""
    *weights, eps, patch_size, backend = arguments
    y: Tensor = _call(x, *weights, moments, eps, patch_size, False, backend=backend)[0]
    return y


_replays = WeightedReplays(OP, _one)
