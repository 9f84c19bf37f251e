"""Inverted residual (MobileNetV2, arXiv 1801.04381) in one pass: schema, checks, fake, backward and backends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mvit_kernels import reference

from . import checks, counts, cuda_support, triton_support
from .backend import Choice, Implementation, native
from .fastest import in_order
from .library import (
    FLOAT_CODES,
    FLOAT_DTYPES,
    dense,
    empty_in_format,
    empty_moments,
    is_channels_last,
    narrow,
    out_size,
    raise_status,
    refuse_off_floats,
    register,
    register_autograd,
    single,
    wide,
    wide_dtype,
    widen,
)
from .moments import moments_of
from .packing import Packed, by_dtype, pack_depthwise, pack_matrix, packed
from .qfragments import neighbour_order, tiles

OP = "inverted_residual"
_kernels = triton_support.Kernels(OP)
Tensor = torch.Tensor
Optional = torch.Tensor | None


def inverted_residual(
    x: Tensor, expand_w: Tensor | None, expand_b: Tensor | None, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor,
    reduce_b: Tensor | None, *, stride: int = 1, residual: bool = False, activation: str | None = "silu", collect: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """reduce(act(depthwise(act(expand(x))))) (+ x), norms folded, in bands of rows: neither of the wide maps exists in memory.

    Args:
        x: (B, C, H, W) float32, bfloat16, float16 or float64; channels_last is read in place, other formats are copied.
        expand_w, expand_b: (E, C, 1, 1) and (E,), or None and None: no expansion, E = C.
        depthwise_w, depthwise_b: (E, 1, 3, 3) and (E,), with zero padding 1; reduce_w (O, E, 1, 1), reduce_b (O,) or None. All float32 or
            the dtype of x.
        stride: of the depthwise convolution, 1 or 2.
        residual: add x; needs stride 1 and O = C.
        activation: after the expansion and the depthwise convolution: None, "relu", "silu", "gelu", "relu6" or "hard_swish".
        collect: also give mean and variance of each image of y.
        backend: None for automatic choice, or the name of one.

    Returns:
        y (B, O, ceil(H / stride), ceil(W / stride)), dtype of x, always channels_last; with `collect`, (y, moments (B, 2) float64).
        Of bfloat16, on a GPU of float16, too, what products take is rounded to it: weights and filtered values; on a GPU expanded values
        and, in CUDA kernels, depthwise weights, too. Sums are float32.
        Gradients are torch's own, of any backend.

    Raises:
        TypeError, ValueError: arguments of another rank, dtype, size or device, or the requested backend cannot take them.

    Source: MobileNetV2, arXiv 1801.04381, section 3.3 and figure 3.
    """
    checks.all_tensors(OP, x=x, depthwise_w=depthwise_w, depthwise_b=depthwise_b, reduce_w=reduce_w)
    checks.tensors(OP, expand_w=expand_w, expand_b=expand_b, reduce_b=reduce_b)
    checks.integer(OP, "stride", stride)
    checks.backend(OP, backend)
    y, collected = _call(
        x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b, stride, residual, activation or "none", collect,
        backend=backend,
    )  # fmt: skip
    return (y, collected) if collect else y


def _check(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str,
) -> None:  # fmt: skip
    checks.image(OP, "x", x, FLOAT_DTYPES)
    channels = hidden = x.shape[1]
    if (expand_w is None) != (expand_b is None):
        raise ValueError(f"{OP}: expand_b: expected None if and only if expand_w is None, got {'None' if expand_b is None else 'a tensor'}")
    if expand_w is not None and expand_b is not None:
        hidden = expand_w.shape[0] if expand_w.ndim else 0
        checks.parameter(OP, "expand_w", expand_w, 4, x, (hidden, channels, 1, 1))
        checks.parameter(OP, "expand_b", expand_b, 1, x, (hidden,))
    checks.parameter(OP, "depthwise_w", depthwise_w, 4, x, (hidden, 1, 3, 3))
    checks.parameter(OP, "depthwise_b", depthwise_b, 1, x, (hidden,))
    columns = reduce_w.shape[0] if reduce_w.ndim else 0
    checks.parameter(OP, "reduce_w", reduce_w, 4, x, (columns, hidden, 1, 1))
    if reduce_b is not None:
        checks.parameter(OP, "reduce_b", reduce_b, 1, x, (columns,))
    checks.stride(OP, stride)
    if residual and (stride != 1 or columns != channels):
        raise ValueError(f"{OP}: residual: expected False unless stride is 1 and O = C, got stride {stride}, O {columns}, C {channels}")
    checks.activation(OP, activation)


# --- backends ---


class _Weights(NamedTuple):
    expand: Packed | None
    depthwise: Packed
    reduce: Packed


def _pack(
    expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional, *,
    dtype: torch.dtype,
) -> _Weights:  # fmt: skip
    expand = None if expand_w is None else pack_matrix(expand_w.flatten(1), expand_b, dtype)
    return _Weights(expand, pack_depthwise(depthwise_w, depthwise_b), pack_matrix(reduce_w.flatten(1), reduce_b, dtype))


_PACK = by_dtype(_pack)


def _cpu_forward(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights: _Weights = packed(_PACK[x.dtype], expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b)
    x = dense(x, channels_last=True)
    y = empty_in_format(x, out_size(x, reduce_w.shape[0], stride), channels_last=True)
    collected = empty_moments(x.shape[0] if collect else 0, y)
    expand = weights.expand
    status = native.inverted_residual(
        FLOAT_CODES[x.dtype], x.shape, depthwise_w.shape[0], reduce_w.shape[0], stride, 0 if expand is None else expand.weight.data_ptr(),
        0 if expand is None else expand.bias.data_ptr(), weights.depthwise.weight.data_ptr(), weights.depthwise.bias.data_ptr(),
        weights.reduce.weight.data_ptr(), weights.reduce.bias.data_ptr(), reference.ACTIVATIONS.index(activation), residual, x.data_ptr(),
        y.data_ptr(), collected.data_ptr() if collect else 0, torch.get_num_threads(),
    )  # fmt: skip
    if status:
        raise_status(OP, status)
    return y, collected


_SLICE, _MULTIPLE, _TILE = 32, 8, 16  # of csrc/cuda/ops/inverted_residual.h: hidden channels at once, channels at once, columns of a tile


def _cuda_refuse(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str,
) -> str | None:  # fmt: skip
    if (reason := cuda_support.refuse(x)) is not None:
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it has no kernel for {x.dtype}"
    if expand_w is None:
        return "it has no kernel without an expansion"
    if activation != "silu":
        return f"its kernel has SiLU alone, got {activation}"
    if (reason := counts.refuse(counts.rows(x))) is not None:
        return reason
    channels, hidden, columns = x.shape[1], expand_w.shape[0], reduce_w.shape[0]
    if not all(each and each % _MULTIPLE == 0 for each in (channels, hidden, columns)):
        return f"it takes multiples of {_MULTIPLE} channels, got {channels}, {hidden} hidden and {columns} of y"
    needed = cuda_support.native.inverted_residual_shared(channels, columns, stride)
    if needed == 0:
        return f"its tiles do not hold so many channels of y with stride {stride}, got {columns}"
    return cuda_support.refuse_shared(x, needed)


# Measured on an H100 with 1 and 256 images of two networks, of kernels before their steps had one barrier, narrow ones three blocks on a
# multiprocessor and filters tensor cores: seconds of a slice in a wave of blocks, of a small launch, and bytes a second of three launches
# that write what the next one reads.
_SLICE_SECONDS, _LAUNCH_SECONDS, _MAP_RATE = 3.9e-6, 4e-6, 2.3e12


def one_launch_pays(x: Tensor, hidden: int, columns: int, stride: int, rate: float = _MAP_RATE) -> bool:
    """Whether one launch of the CUDA kernel, which makes a tile slice by slice, however few tiles there are, takes less than three, which
    write both hidden maps to memory, at `rate` bytes a second."""
    images, channels, height, width = x.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    tiles = images * -(-out_height // 8) * -(-out_width // (16 if stride == 1 else 8))
    at_once = cuda_support.processors(x.device) * (1 if stride == 2 and columns > 128 else 2)
    one = _SLICE_SECONDS * -(-hidden // _SLICE) * -(-tiles // at_once)
    pixels, out_pixels = images * height * width, images * out_height * out_width
    size = x.element_size() * (pixels * (channels + 2 * hidden) + out_pixels * (2 * hidden + columns))
    return one < max(3 * _LAUNCH_SECONDS, size / rate)


def _order(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, *_: object,
) -> tuple[str, ...]:  # fmt: skip
    hidden, columns = depthwise_w.shape[0], reduce_w.shape[0]
    return in_order(OP, x, (*x.shape, hidden, columns, stride), one_launch_pays(x, hidden, columns, stride))


class _CudaWeights(NamedTuple):
    slices: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _PackCuda:
    """Slices of 32 hidden channels: csrc/cuda/ops/inverted_residual.h."""

    dtype: torch.dtype  # of x, which weights of products take too

    def __call__(
        self, expand_w: Tensor, expand_b: Tensor, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional
    ) -> _CudaWeights:
        columns, slices = reduce_w.shape[0], -(-expand_w.shape[0] // _SLICE)
        # What SiLU is taken of comes at half its size (csrc/cuda/primitives/activation.cuh).
        filter_bias, expand_bias = (self._sliced(each.float()[:, None] / 2) for each in (depthwise_b, expand_b))
        expand = self._tiles(expand_w.flatten(1).float() / 2, _SLICE, _TILE)
        reduce = self._tiles(neighbour_order(reduce_w.flatten(1)), _TILE, _SLICE).unflatten(0, (-(-columns // _TILE), slices, -1))
        parts = filter_bias, self._taps(depthwise_w), expand_bias, expand, reduce.transpose(0, 1)
        bias = reduce_w.new_zeros(columns) if reduce_b is None else reduce_b
        return _CudaWeights(
            torch.cat([each.contiguous().view(torch.uint8).reshape(slices, -1) for each in parts], dim=1).contiguous(),
            F.pad(single(bias), (0, -columns % _TILE)),
        )

    @staticmethod
    def _sliced(rows: Tensor) -> Tensor:
        """(E, n) as (slices, 32, n), with zeros."""
        return F.pad(rows, (0, 0, 0, -rows.shape[0] % _SLICE)).unflatten(0, (-1, _SLICE))

    def _taps(self, weight: Tensor) -> Tensor:
        """In the order of csrc/cuda/ops/residual_filter.cuh: (slices, 32 channels * 10)."""
        taps = self._sliced((weight.flatten(1).float() / 2).to(self.dtype))
        first, last = taps[:, :, [0, 1, 3, 4, 6, 7, 2, 5]], F.pad(taps[:, :, 8:], (0, 1))
        return torch.cat([first.flatten(1), last.flatten(1)], dim=1)

    def _tiles(self, weight: Tensor, columns: int, depth: int) -> Tensor:
        return tiles(weight.to(self.dtype).contiguous().view(torch.int8), 8, (columns, 2 * depth))


def _cuda_forward(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights: _CudaWeights = packed(_PackCuda(x.dtype), expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b)
    x = cuda_support.aligned_copy(dense(x, channels_last=True))
    y = empty_in_format(x, out_size(x, reduce_w.shape[0], stride), channels_last=True)
    cuda_support.launch(
        cuda_support.native.inverted_residual, *cuda_support.place(x), FLOAT_CODES[x.dtype], x.shape, depthwise_w.shape[0],
        reduce_w.shape[0], stride, residual, x.data_ptr(), y.data_ptr(), weights.slices.data_ptr(), weights.bias.data_ptr(),
    )  # fmt: skip
    collected = moments_of(y, y.shape[0]) if collect else y.new_empty(0, 2, dtype=torch.float64)
    return y, collected


def _triton_refuse(x: Tensor, *_: object) -> str | None:
    return triton_support.refuse_rows(x, FLOAT_CODES)


@dataclass(frozen=True)
class _TritonWeights:
    """The recipe of `mvit_kernels.triton_kernels.inverted_residual.Weights` for x of that dtype."""

    dtype: torch.dtype

    def __call__(self, *parameters: Optional) -> Any:
        return _kernels.arrange(*parameters, self.dtype)


def _triton_forward(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    weights = packed(_TritonWeights(x.dtype), expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b)
    x = dense(x, channels_last=True)
    y = empty_in_format(x, out_size(x, reduce_w.shape[0], stride), channels_last=True)
    return y, _kernels.forward(x, weights, y, stride=stride, residual=residual, activation=activation, collect=collect)


def _reference_forward(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int, residual: bool, activation: str, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = widen(x, x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b)
    y = dense(
        reference.inverted_residual(*arguments, stride=stride, residual=residual, activation=activation).to(x.dtype), channels_last=True
    )
    collected = reference.moments_of(y, y.shape[0]) if collect else torch.empty(0, 2, dtype=torch.float64, device=x.device)
    return y, collected


def _reference_backward(
    dy: Tensor, x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, stride: int,
    residual: bool, activation: str, *, cast: Callable[..., list[Any]] = widen,
) -> tuple[Tensor, ...]:  # fmt: skip
    """cast: `widen` or `narrow`, of all tensors."""
    arguments = cast(x, dy, x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w)
    dx, *gradients = reference.inverted_residual_backward(*arguments, stride=stride, residual=residual, activation=activation)
    return dense(dx.to(x.dtype), is_channels_last(x)), *(wide(each).contiguous() for each in gradients)


choose = Choice(
    OP,
    order=_order,
    cuda=Implementation(_cuda_forward, functools.partial(_reference_backward, cast=narrow), _cuda_refuse),
    triton=Implementation(_triton_forward, functools.partial(_reference_backward, cast=narrow), _triton_refuse),
    cpu=Implementation(_cpu_forward, _reference_backward, refuse_off_floats),  # the gradient of a convolution is torch's
    reference=Implementation(_reference_forward, _reference_backward),
)


# --- registration ---


def _forward(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int = 1, residual: bool = False, activation: str = "silu", collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parameters = expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b
    _check(x, *parameters, stride, residual, activation)
    chosen = choose(backend, x, *parameters, stride, residual, activation)
    return chosen.forward(x, *parameters, stride, residual, activation, collect)


def _forward_fake(
    x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, reduce_b: Optional,
    stride: int = 1, residual: bool = False, activation: str = "silu", collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b, stride, residual, activation)
    y = empty_in_format(x, out_size(x, reduce_w.shape[0], stride), channels_last=True)
    return y, x.new_empty(x.shape[0] if collect else 0, 2, dtype=torch.float64)


def _backward(
    dy: Tensor, x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, stride: int,
    residual: bool, activation: str, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    checks.like(f"{OP}_backward", "dy", dy, x, out_size(x, reduce_w.shape[0], stride))
    backward = choose(backend, x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, None, stride, residual, activation).backward
    assert backward is not None
    return backward(dy, x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, stride, residual, activation)


def _backward_fake(
    dy: Tensor, x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor, stride: int,
    residual: bool, activation: str, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    sizes = [(0,) if each is None else each.shape for each in (expand_w, expand_b, depthwise_w, depthwise_b, reduce_w)]
    gradients = [x.new_empty(size, dtype=wide_dtype(x)) for size in (*sizes, reduce_w.shape[:1])]
    return empty_in_format(x, tuple(x.shape), is_channels_last(x)), *gradients


_forward_op = register(
    OP,
    "(Tensor x, Tensor? expand_w, Tensor? expand_b, Tensor depthwise_w, Tensor depthwise_b, Tensor reduce_w, Tensor? reduce_b,"
    " int stride=1, bool residual=False, str activation='silu', bool collect=False, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_backward_op = register(
    f"{OP}_backward",
    "(Tensor dy, Tensor x, Tensor? expand_w, Tensor? expand_b, Tensor depthwise_w, Tensor depthwise_b, Tensor reduce_w, int stride,"
    " bool residual, str activation, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup(
    ctx: Any, x: Tensor, expand_w: Optional, expand_b: Optional, depthwise_w: Tensor, depthwise_b: Tensor, reduce_w: Tensor,
    reduce_b: Optional, stride: int = 1, residual: bool = False, activation: str = "silu", collect: bool = False, *,
    backend: str | None = None,
) -> None:  # fmt: skip
    ctx.save_for_backward(x, expand_w, expand_b, depthwise_w, depthwise_b, reduce_w)
    ctx.settings = stride, residual, activation
    parameters = expand_w, expand_b, depthwise_w, depthwise_b, reduce_w, reduce_b
    ctx.dtypes = [x.dtype, *(None if each is None else each.dtype for each in parameters)]
    # The backward may run on another thread, outside the use_backend block of the forward.
    ctx.backend = choose.backend(backend, x, *parameters, stride, residual, activation)


def _gradient(ctx: Any, dy: Tensor, _: object) -> tuple[Optional, ...]:
    if torch.is_grad_enabled():  # create_graph=True: plain torch can be differentiated again
        gradients = _reference_backward(dy, *ctx.saved_tensors, *ctx.settings)
    else:
        gradients = _backward_op(dy, *ctx.saved_tensors, *ctx.settings, ctx.backend)
    own = (None if dtype is None else each.to(dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True))
    return *own, None, None, None, None


_call = register_autograd(_forward_op, _forward, _setup, _gradient, tensors=7)
