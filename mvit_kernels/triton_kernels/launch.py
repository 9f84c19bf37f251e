"""What everything that launches a kernel shares.

**Dependent launches** (from sm_90 on). A kernel is launched when the programs of the one before it end, and waits in its first line,
`wait_turn`, until all of that is done and visible: what it takes to start it goes on meanwhile. As every kernel waits before it touches
memory, one that is done has waited for all before it, and what two of them share is used in the order of the stream. They do not let the
next one begin before their end, whose programs would hold the places of their own: slower on an H100 than launches one after another
(benchmarks/results/gpu/launches-h100.json).
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import _disable_current_modes
from triton.language.extra.cuda import gdc_wait

from .products import INTERPRETED

Tensor = torch.Tensor


@triton.jit
def wait_turn():
    """The first line of every kernel."""
    if not INTERPRETED:  # noqa: SIM102 - the interpreter knows no targets
        if tl.target_info.cuda_capability_geq(9, 0):
            gdc_wait()


@triton.jit
def anew(x):
    """The int32 x, of which the compiler does not know that it is x: what is computed of it is not kept over a loop before."""
    return x if INTERPRETED else tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


def launch(kernel: Any, programs: int, *arguments: Any, **settings: Any) -> None:
    """Run `programs` instances of the kernel on the device of its first argument, a tensor, and the current stream there.

    Floats are added and multiplied in the order of the source: no fused multiply-adds, so that what is pinned has the same bits everywhere.
    Kernels whose floats are not pinned say enable_fp_fusion=True.
    """
    if programs == 0:
        return
    settings.setdefault("enable_fp_fusion", False)
    if capability(arguments[0]) >= 90:
        settings["launch_pdl"] = True
    hear = listener.get()
    if hear is None:
        _launch(kernel, programs, arguments, settings)
    else:
        with _disable_current_modes():  # who hears of launches need not hear what the interpreter does of them
            compiled = _launch(kernel, programs, arguments, settings)
        hear(*_again(kernel, compiled, programs, arguments, settings))


def _launch(kernel: Any, programs: int, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return kernel[(programs,)](*arguments, **settings)
    return kernel[(programs,)](*arguments, **settings)


# Who wants to know what is launched: what launches it again, the arguments of that, and which of these are addresses.
listener: contextvars.ContextVar[Callable[[Callable[..., object], list[Any], list[int]], None] | None] = contextvars.ContextVar(
    "listener", default=None
)


def _again(
    kernel: Any, compiled: Any, programs: int, arguments: tuple[Any, ...], settings: dict[str, Any]
) -> tuple[Callable[..., object], list[Any], list[int]]:
    """Past Triton's look-up of what it has compiled, which takes several times as long as a launch: on the same stream."""
    stream = torch.cuda.current_stream(arguments[0].device).cuda_stream
    run = functools.partial(compiled.run, programs, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None)
    given = [*arguments, *(settings[name] for name in kernel.arg_names[len(arguments) :])]
    addresses = [i for i, each in enumerate(given) if isinstance(each, Tensor)]
    return run, [each.data_ptr() if isinstance(each, Tensor) else each for each in given], addresses


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def power_of_two(size: int, least: int = 1, most: int = 2**30) -> int:
    """The smallest power of two that covers `size`, from `least` to `most`."""
    return min(max(triton.next_power_of_2(max(size, 1)), least), most)


def vector_of(*sizes: int) -> int:
    """What kernels get sizes and strides divided by, up to 8, so that the compiler sees how wide loads may be: of numbers that it is given
    it looks for multiples of 16 only."""
    return next(vector for vector in (8, 4, 2, 1) if all(size % vector == 0 for size in sizes))


def processors(x: Tensor) -> int:
    """Multiprocessors of the device of x: how many programs it takes to keep it busy. Off a GPU as on an H100."""
    return _processors(x.device.index) if x.is_cuda else 132


def capability(x: Tensor) -> int:
    """Of the device of x, as 80; off a GPU of the one that kernels are compiled for."""
    if x.is_cuda:
        return _capability(x.device.index)
    return 80 if triton.knobs.runtime.interpret else triton.runtime.driver.active.get_current_target().arch


def by_warpgroups(x: Tensor) -> bool:
    """Whether tensor cores take 64 rows of four warps at once, as on sm_90. Tiles for them are those of sm_100, too, which has as much
    shared memory."""
    return 90 <= capability(x) < 120


def registers_of(warps: int, resident: int) -> dict[str, int]:
    """The setting of a launch that leaves so many blocks of so many warps room on a multiprocessor; 0: registers are not limited."""
    return {"maxnreg": 65536 // (32 * warps * resident) // 8 * 8} if resident else {}


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def far(*tensors: Tensor | None) -> bool:
    """Whether offsets inside an image (all but the first axis) of any of them need 64 bits. Offsets of images always have them."""
    return any(
        x is not None and sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)) >= 2**31
        for x in tensors
    )
