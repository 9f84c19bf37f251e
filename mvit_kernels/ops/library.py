"""Registration of ops in the torch namespace `mvit_kernels`, and what their implementations share.

`Library.define` and one `impl` a dispatch key cost about half of what `torch.library.custom_op` adds to each call.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from .backend import refuse_off_cpu
from .launches import Launches
from .packing import differentiated, passing_weights

# Whether a call that the dispatcher has came through the public functions. What compiled code calls comes without.
_ours: contextvars.ContextVar[bool] = contextvars.ContextVar("ours", default=False)

LIBRARY = torch.library.Library("mvit_kernels", "DEF")

# A parameter is a tensor like any other; a subclass of someone else wants to see what is called with it.
PLAIN = (torch.Tensor, torch.nn.Parameter)

# Who may want to see a call: asked at every one, and found once.
is_compiling = torch.compiler.is_dynamo_compiling
_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_jit_tracing, _profiling = torch._C._get_tracing_state, torch._C._autograd._profiler_enabled
_transforming, _grad_enabled = torch._C._are_functorch_transforms_active, torch.is_grad_enabled
WATCHERS = [_dispatch_modes, _function_modes, _jit_tracing, _profiling, _transforming]  # each gives something where it watches

# DType of csrc/cpu/core/types.h.
FLOAT_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Status of csrc/cpu/core/types.h.
_OUT_OF_MEMORY, _BAD_WEIGHT, OVERFLOWED = 4, 5, 6
_STATUS = {1: "unsupported dtype", 2: "impossible shape", 3: "unsupported layout", 6: "int32 would overflow"}

# QType of csrc/cpu/core/qepilogue_types.h.
QTYPE_CODES = {torch.int32: 0, torch.uint8: 1, torch.int16: 2, torch.float32: 3, torch.bfloat16: 4, torch.float16: 5}


def register(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any], check: Callable[..., None] | None = None) -> Any:
    """Define op `name`, with one Python function for every device and its fake; returns the callable overload. `check`: of what was
    prepared, which only callers of the op itself can get wrong. `direct` spares it, a third of a small call."""
    if check is not None:
        run, fake = _after(check, run), _after(check, fake)
    LIBRARY.define(f"{name}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mvit_kernels::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mvit_kernels, name).default


def _after(check: Callable[..., None], run: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return run(*args, **kwargs)

    return checked


def watched() -> bool:
    """Whether something between a caller and a kernel may want to see the call."""
    return bool(
        is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _jit_tracing() is not None
        or _profiling()
        or _transforming()
        or forward_ad._current_level >= 0
    )


def is_plain(x: torch.Tensor) -> bool:
    """Whether x is what its memory holds, on the CPU, and nobody else's subclass."""
    return type(x) in PLAIN and x.is_cpu and not (x.is_neg() or x._is_zerotensor())


def direct(op: Any, run: Callable[..., Any], tensors: int = 1) -> Callable[..., Any]:
    """How to call an op without gradients: `run` at once where nobody watches (see `register_autograd`), else `op`. The first `tensors`
    positional arguments are its tensors, or None."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if watched():
            return op(*args, **kwargs)
        for x in args[:tensors]:
            if x is not None and not is_plain(x):
                return op(*args, **kwargs)
        return run(*args, **kwargs)

    return call


def register_autograd(
    op: Any, run: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any], tensors: int = 1,
    inputs: Sequence[int] = (0,),
) -> Callable[..., Any]:  # fmt: skip
    """Give `op` a gradient: `setup(ctx, *args, **kwargs)` after the forward, `backward(ctx, grad)` a gradient for each positional argument.
    The first `tensors` positional arguments are its tensors, or None; inputs: which of these are no weights. Returns how to call `op` with
    arguments of the types of its schema.

    What `torch.library.register_autograd` does, and 4 us a call faster where nothing needs a gradient: `run` is then called at once,
    unless something between here and the kernel wants to see the call: a dispatch mode, a subclass, a lazy conjugate, ... The function
    returned spares the dispatcher too, another 4 us, and looks out for those who watch that: tracers, profilers, function modes.
    """
    name, launches = op._schema.name.removeprefix("mvit_kernels::"), Launches(run, tensors, inputs)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, kwargs: dict[str, Any], *args: Any) -> Any:
            token = differentiated.set(True)
            try:
                with torch._C._AutoDispatchBelowAutograd():
                    result = op(*args, **kwargs)
            finally:
                differentiated.reset(token)
            if isinstance(result, tuple):  # the moments of the result are for the next op, whose gradient contains theirs
                ctx.mark_non_differentiable(*result[1:])
                ctx.set_materialize_grads(False)  # nor are zeros made for them
            setup(ctx, *args, **kwargs)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (None,) * len(ctx.needs_input_grad) if grads[0] is None else (None, *backward(ctx, *grads))

    def autograd(*args: Any, **kwargs: Any) -> Any:
        if _ours.get():
            return dispatched(*args, **kwargs)
        with passing_weights():
            return dispatched(*args, **kwargs)

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        if forward_ad._current_level >= 0 or _transforming():
            return composite(*args, **kwargs)
        grad, plain = _grad_enabled(), _dispatch_modes() == 0
        for x in args[:tensors]:
            if x is None:
                continue
            if grad and x.requires_grad:
                return Gradient.apply(kwargs, *args)
            if type(x) not in PLAIN or x.is_neg() or x.is_conj() or x._is_zerotensor():
                plain = False
        if plain:
            return run(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    def composite(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        """Forward-mode differentiation and torch.func transform plain torch operations, not kernels."""
        if backend not in (None, "auto", "reference"):
            reason = "forward-mode differentiation and torch.func need plain torch"
            raise ValueError(f"{name}: backend {backend!r} was requested and cannot take this call: {reason}")
        return run(*args, backend="reference", **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        if watched():
            return op(*args, **kwargs) if is_compiling() else by_dispatcher(*args, **kwargs)
        grad, on_cpu = _grad_enabled(), True
        for x in args[:tensors]:
            if x is None:
                continue
            if type(x) not in PLAIN or (grad and x.requires_grad) or x.is_neg() or x.is_conj() or x._is_zerotensor():
                return by_dispatcher(*args, **kwargs)
            on_cpu = on_cpu and x.is_cpu
        if on_cpu:
            return run(*args, **kwargs)
        result = launches.again(args, kwargs) if args[0].is_cuda else None
        return by_dispatcher(*args, **kwargs) if result is None else result

    def by_dispatcher(*args: Any, **kwargs: Any) -> Any:
        token = _ours.set(True)
        try:
            return op(*args, **kwargs)
        finally:
            _ours.reset(token)

    LIBRARY.impl(name, autograd, "Autograd")
    return call


def is_channels_last(x: torch.Tensor) -> bool:
    """True of 4-D memory in the order (B, H, W, C), where it can be told from (B, C, H, W)."""
    stride = x.stride()
    return stride[1] == 1 and stride[3] != 1


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself where its memory is dense in the wanted format, else a copy. Under torch.func, whose vmap knows one format, x itself."""
    if torch._C._are_functorch_transforms_active():
        return x
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def walkable(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], bool]:
    """(x or a dense copy, its strides, channels_last): a tensor in whose own memory format the innermost axis has stride 1."""
    stride = x.stride()
    channels_last = stride[1] == 1 and stride[3] != 1
    if stride[3] != 1 and not channels_last:
        x = x.contiguous()
        stride = x.stride()
    return x, stride, channels_last


def in_format(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself where the innermost axis of the wanted format has stride 1, else a dense copy."""
    return x if x.stride(1 if channels_last else 3) == 1 else dense(x, channels_last)


# What ops have made for their kernels to fill, where a call is written down (`replay.py`).
made: contextvars.ContextVar[list[torch.Tensor] | None] = contextvars.ContextVar("made", default=None)


def fresh(x: torch.Tensor) -> torch.Tensor:
    """x, which a kernel is about to fill."""
    tensors = made.get()
    if tensors is not None:
        tensors.append(x)
    return x


def out_size(x: torch.Tensor, columns: int, stride: int) -> tuple[int, int, int, int]:
    """Of a convolution of images x to `columns` channels that loses no border."""
    return x.shape[0], columns, (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1


def empty_in_format(like: torch.Tensor, size: tuple[int, ...], channels_last: bool, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialized 4-D tensor with the dtype (unless another is given) and device of `like`."""
    _, channels, height, width = size
    image = channels * height * width  # strides given, torch takes half the time that it needs to find them
    stride = (image, 1, width * channels, channels) if channels_last else (image, height * width, width, 1)
    return fresh(like.new_empty_strided(size, stride, dtype=dtype))


def in_channels_last(x: torch.Tensor, fill: Callable[[torch.Tensor, torch.Tensor], None]) -> torch.Tensor:
    """A map like x, in its memory format, that fill(x, y) makes of channels_last memory: other formats are copied to it and back."""
    channels_last, x = is_channels_last(x), dense(x, True)
    y = empty_in_format(x, tuple(x.shape), True)
    fill(x, y)
    return y if channels_last else dense(y, False)


def dense_in_own_format(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """(x, or a dense copy in its memory format; whether that is channels_last) of any rank: 4-D tensors may be, others are contiguous."""
    channels_last = x.ndim == 4 and is_channels_last(x)
    return dense(x, channels_last), channels_last


def empty_in_own_format(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor of that dtype in what memory `dense_in_own_format` gives x."""
    channels_last = x.ndim == 4 and is_channels_last(x)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def in_format_of(x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """What plain torch made of x, in the memory that kernels give it."""
    return dense(result, x.ndim == 4 and is_channels_last(x))


def empty_moments(groups: int, of: torch.Tensor) -> torch.Tensor:
    """(groups, 2) float64 for a kernel to fill; where `of` holds nothing, whose moments are NaN, no kernel will."""
    if of.numel():
        return fresh(torch.empty(groups, 2, dtype=torch.float64))
    return torch.full((groups, 2), float("nan"), dtype=torch.float64)


def wide_dtype(like: torch.Tensor) -> torch.dtype:
    """What plain torch computes `like` in: 16-bit floats in float32, as the kernels do."""
    return torch.float32 if like.dtype in (torch.bfloat16, torch.float16) else like.dtype


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(wide_dtype(x))


def widen(like: torch.Tensor, *tensors: torch.Tensor | None) -> list[Any]:
    """All in the dtype that plain torch computes `like` in."""
    dtype = wide_dtype(like)
    return [None if each is None else each.to(dtype) for each in tensors]


def narrow(like: torch.Tensor, *tensors: torch.Tensor | None) -> list[Any]:
    """All in the dtype of `like`, in which a GPU multiplies 16-bit floats on tensor cores, with sums in float32, as torch's own gradients
    do: products of float32 have a fifteenth of their speed. For gradients whose steps between products compute in float32 themselves."""
    return [None if each is None else each.to(like.dtype) for each in tensors]


def single(x: torch.Tensor) -> torch.Tensor:
    """x itself where it is contiguous float32, else a copy that is."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def refuse_off_floats(x: torch.Tensor, *_: object) -> str | None:
    """Why the kernels cannot take a call that they take in every shape of float32, bfloat16 and float16: the `refuse` of the float ops."""
    return refuse_off_cpu(x) or (None if x.dtype in FLOAT_CODES else f"it has no kernel for {x.dtype}")


def raise_status(op: str, status: int) -> NoReturn:
    """Raise what a kernel's return value says. The ops check their arguments first, except for what is in a packed weight: anything but
    this and out of memory is a bug."""
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{op}: out of memory")
    if status == _BAD_WEIGHT:
        raise ValueError(f"{op}: weight: expected the bytes of a PackedWeight of these columns, depth and bits, got others")
    raise RuntimeError(f"{op}: the kernel refused the call: {_STATUS.get(status, status)}")
