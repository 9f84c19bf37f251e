"""Registration of ops in the torch namespace `mvit_kernels`, and what the cpu backend's calls share.

`Library.define` and one `impl` a dispatch key cost about half of what `torch.library.custom_op` adds to each call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

LIBRARY = torch.library.Library("mvit_kernels", "DEF")

# DType of csrc/cpu/core/types.h.
FLOAT_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Status of csrc/cpu/core/types.h.
_STATUS = {1: "unsupported dtype", 2: "impossible shape", 3: "unsupported layout"}


def register(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define op `name`, with one Python function for CPU and CUDA tensors and its fake; returns the callable overload."""
    LIBRARY.define(f"{name}{signature}", tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"mvit_kernels::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mvit_kernels, name).default


def register_autograd(op: Any, run: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give `op` a gradient: `setup(ctx, *args, **kwargs)` at the forward, `backward(ctx, grad)` a gradient for each positional argument.

    What `torch.library.register_autograd` does, and 4 us a call faster where nothing needs a gradient: `run` is then called at once,
    unless a dispatch mode (fake tensors, tracing) wants to see the op.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, kwargs: dict[str, Any], *args: Any) -> Any:
            setup(ctx, *args, **kwargs)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args, **kwargs)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return (None, *backward(ctx, *grads))

    def autograd(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
            return Gradient.apply(kwargs, *args)
        if type(args[0]) is torch.Tensor and torch._C._len_torch_dispatch_stack() == 0:
            return run(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    LIBRARY.impl(op._schema.name.removeprefix("mvit_kernels::"), autograd, "Autograd")


def is_channels_last(x: torch.Tensor) -> bool:
    """True of 4-D memory in the order (B, H, W, C), where it can be told from (B, C, H, W)."""
    stride = x.stride()
    return stride[1] == 1 and stride[3] != 1


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself where its memory is dense in the wanted format, else a copy."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def in_format(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself where the innermost axis of the wanted format has stride 1, else a dense copy."""
    return x if x.stride(1 if channels_last else 3) == 1 else dense(x, channels_last)


def empty_in_format(like: torch.Tensor, size: tuple[int, ...], channels_last: bool) -> torch.Tensor:
    """An uninitialized 4-D tensor with the dtype and device of `like`."""
    if channels_last:
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(size)


def raise_status(op: str, status: int) -> NoReturn:
    """Raise what a kernel's return value says. The ops check their arguments first: anything but out of memory is a bug."""
    if status == 4:
        raise MemoryError(f"{op}: out of memory")
    raise RuntimeError(f"{op}: the kernel refused the call: {_STATUS.get(status, status)}")
