"""The extension mvit_kernels._cuda: whether it can be used, what the calls of its kernels share, and what any GPU backend makes once.

Kernels run on the stream that is current for the device of their tensors; nothing waits for it. What is made once (weights in the order of
tensor cores, copies of prepared tensors on a device) is made by the first call, and cannot be part of a CUDA graph: call once before its
capture. The graph holds what was made before, the weights as they were at its capture: capture again after they change (`packing`).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Tensor = torch.Tensor
T = TypeVar("T")

native: Any  # the extension, or None
try:
    native = importlib.import_module("mvit_kernels._cuda")
    REASON = ""
except ImportError as error:
    native = None
    REASON = f"the CUDA kernels are not built ({error}); install mvit_kernels again where nvcc is found"

CAPABILITY = (8, 0)
_ALIGNMENT = 16  # bytes, of arrays that kernels read four values at a time


def describe() -> tuple[str, str]:
    """(detail, reason): which devices the kernels run on, or why on none."""
    if native is None:
        return "", REASON
    if torch.version.cuda is None:
        return "", "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "", "no GPU is available"
    devices = range(torch.cuda.device_count())
    reasons = [too_old(index) for index in devices]
    names = [f"{torch.cuda.get_device_name(index)}" for index, reason in zip(devices, reasons, strict=True) if reason is None]
    return (", ".join(names), "") if names else ("", str(reasons[0]))


@functools.cache
def too_old(index: int) -> str | None:
    """Why the device of that number cannot run the kernels, or None."""
    capability = torch.cuda.get_device_capability(index)
    if capability >= CAPABILITY:
        return None
    return f"{torch.cuda.get_device_name(index)} has compute capability {_dotted(capability)}, the kernels need {_dotted(CAPABILITY)}"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def refuse(x: Tensor, *_: object) -> str | None:
    """Why the kernels cannot take a call whose dtypes and shapes they all take."""
    if native is None:
        return REASON
    if not x.is_cuda:
        return f"the tensor is on {x.device}"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    return too_old(x.device.index)


@functools.cache
def _shared_of_block(index: int) -> int:
    return native.shared_of_block(index)


def refuse_shared(x: Tensor, needed: int) -> str | None:
    """Why a kernel whose blocks need so many bytes of shared memory cannot run on the device of x."""
    there = _shared_of_block(x.device.index)
    return f"a block needs {needed} bytes of shared memory, and has {there} at most on this device" if needed > there else None


def refuse_deep_int6(depth: int, bits: int) -> str | None:
    """Why a product with 6-bit weights is too deep: kernels multiply four times the weight (csrc/cuda/primitives/int6.cuh)."""
    most = (2**31 - 1) // (4 * 31 * 255)
    return f"6-bit weights are taken up to a depth of {most}, this one has {depth}" if bits == 6 and depth > most else None


def place(x: Tensor) -> tuple[int, int]:
    """(number of the device, its current stream)."""
    return x.get_device(), torch.cuda.current_stream(x.device).cuda_stream


def there(device: int) -> contextlib.AbstractContextManager[object]:
    """Where entry points of the extension are called that set the device. They would do it by themselves; but the way back takes a context,
    and its memory, on the device where a thread began, unless torch goes it."""
    return torch.cuda.device(device) if device >= 0 and device != torch.cuda.current_device() else _HERE


_HERE = contextlib.nullcontext()
# Who wants to know what is launched (`launches.py`).
listener: contextvars.ContextVar[Callable[[Callable[..., object], list[Any], list[int]], None] | None] = contextvars.ContextVar(
    "listener", default=None
)


def launch(kernel: Callable[..., object], *arguments: Any) -> None:
    """kernel(*arguments), which begin with a `place`; addresses are arguments of their own: what else is a number is smaller."""
    with there(arguments[0]):
        kernel(*arguments)
    hear = listener.get()
    if hear is not None:
        hear(kernel, list(arguments), [i for i, each in enumerate(arguments) if i > 1 and type(each) is int and each >= 2**32])


def once(what: str, device: torch.device) -> None:
    """Before something is made on a device for all calls to come: in a graph that is captured, nothing runs before a replay."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{what}: expected to be on {device} before a CUDA graph is captured, got a first call inside of the capture: call the op once"
            " before, and capture again after a change of weights, which the graph holds as they were"
        )


def made_to_stay(make: Callable[[], T], device: torch.device) -> T:
    """make(), whose result outlives the call, in memory that is nobody's pool.

    Before torch.compile captures a CUDA graph (mode="reduce-overhead", "max-autotune"), it runs the code once on a stream of its own. All
    that its thread allocates there comes from the graph's pool, in which nothing but results may stay ("in the cudagraph pool but not
    accounted for as an output"), so on a stream that is not the default one another thread makes it. On the default stream, where training
    packs weights at every step, there is no such pool, and no thread to pay for.
    """
    if device.type != "cuda" or _current_stream(torch.cuda.current_device() if device.index is None else device.index) == 0:
        return make()
    stream, context = torch.cuda.current_stream(device), contextvars.copy_context()

    def on_the_stream() -> T:
        # For good: to go back, as `torch.cuda.stream` does, would take a context, and its memory, on device 0, where the thread began.
        torch.cuda.set_stream(stream)
        return make()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(context.run, on_the_stream).result()


def unprepared(op: str, x: Tensor) -> None:
    """Before a call that prepares for itself, which the next one would do again."""
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{op}: expected a call of what prepare_{op} makes, which was called once before, inside of the capture of a CUDA graph, got"
            f" one of {op} itself, which prepares anew at every call"
        )


class Made:
    """That something was just made on a GPU, by the current stream there, for calls on any: a stream that takes it first waits for the one
    that made it, which the host does not, and its memory is nobody else's before that stream is done with it.

    What is being captured can wait for nothing from before: `torch.cuda.graph` waits for the GPU when it begins.
    """

    def __init__(self, device: torch.device, tensors: Sequence[Tensor]) -> None:
        self._device, self._tensors, self._event = device, tensors, torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(device))
        self._streams = {_current_stream(device.index)}

    def take(self) -> None:
        """Before a call on the current stream reads it."""
        number = _current_stream(self._device.index)
        if number in self._streams or torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._event)
        for x in self._tensors:
            x.record_stream(stream)
        self._streams.add(number)


def _current_stream(index: int) -> int:
    """A fifth of the time of `torch.cuda.current_stream`."""
    number: int = torch._C._cuda_getCurrentRawStream(index)
    return number


def aligned_copy(x: Tensor) -> Tensor:
    """x, or a copy of it in the same memory format where it begins between two multiples of 16 bytes."""
    return x.clone() if x.data_ptr() % _ALIGNMENT else x


def aligned(op: str, name: str, x: Tensor) -> None:
    if x.data_ptr() % _ALIGNMENT:
        raise ValueError(f"{op}: {name}: expected memory at a multiple of {_ALIGNMENT} bytes, got {x.data_ptr():#x}")
