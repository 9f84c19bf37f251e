"""Which implementation of an op runs.

Every op has a `reference` implementation and may have others (`cpu`, `triton`, `cuda`). With no request the first one that can
take the call runs, fastest first. A request (`backend=`, `use_backend`, or the environment variable MVIT_KERNELS_BACKEND) is never replaced
by something else: where it cannot be met the call raises and says why.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from mvit_kernels.messages import shown

from . import cuda_support, triton_support

native: Any  # the extension mvit_kernels._cpu, or None
try:
    native = importlib.import_module("mvit_kernels._cpu")  # after torch, so that both share torch's OpenMP runtime
    NATIVE_REASON = ""
except ImportError as error:
    native = None
    NATIVE_REASON = f"the native kernels are not built ({error}); install a C++20 compiler and reinstall mvit_kernels"

BACKENDS = ("cuda", "triton", "cpu", "reference")  # fastest first


@dataclass(frozen=True)
class BackendInfo:
    """What `backends()` tells of one backend: `detail` where it is usable, `reason` where it is not."""

    usable: bool
    detail: str = ""
    reason: str = ""


def backends() -> dict[str, BackendInfo]:
    """Which backends are usable in this process, with their instruction sets, and why the others are not.

    Raises ValueError where MVIT_KERNELS_BACKEND or MVIT_KERNELS_ISA holds no known value.
    """
    _check_environment()
    if native is None:
        cpu = BackendInfo(False, reason=NATIVE_REASON)
    else:
        missing = [isa for isa in native.isas_built() if isa not in native.isas_supported()]
        also = f"; built but not supported by this processor: {', '.join(missing)}" if missing else ""
        cpu = BackendInfo(True, detail=f"{native.isa()} (of {', '.join(native.isas_supported())}{also})")
    detail, reason = triton_support.describe()
    cuda_detail, cuda_reason = cuda_support.describe()
    return {
        "reference": BackendInfo(True, detail=f"torch {torch.__version__}"),
        "cpu": cpu,
        "triton": BackendInfo(not reason, detail, reason),
        "cuda": BackendInfo(not cuda_reason, cuda_detail, cuda_reason),
    }


def _known(backend: str, what: str = "backend") -> str:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"{what}: expected one of auto, {', '.join(sorted(BACKENDS))}, got {shown(backend)}")
    return backend


def _cap_isa(cap: str) -> None:
    """The cpu backend uses no more than this instruction set."""
    built = native.isas_built()  # from the least to the most
    if cap not in built:
        raise ValueError(f"MVIT_KERNELS_ISA: expected one of {', '.join(built)}, got {cap!r}")
    native.set_isa([isa for isa in native.isas_supported() if built.index(isa) <= built.index(cap)][-1])


# Wrong values are told at first use, where a program can report them, not by a failing import. Until then the request is one that no
# backend meets, so that calls which may use any backend need no check of their own.
_environment_error = ""
try:
    _from_environment = _known(os.environ.get("MVIT_KERNELS_BACKEND", "auto"), "MVIT_KERNELS_BACKEND")
    if native is not None and "MVIT_KERNELS_ISA" in os.environ:
        _cap_isa(os.environ["MVIT_KERNELS_ISA"])
except ValueError as error:
    _from_environment, _environment_error = "none", str(error)
requested_here: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default=_from_environment)


def _check_environment() -> None:
    if _environment_error:
        raise ValueError(_environment_error)


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run every op that this thread calls inside the block on `backend` ("reference", "cpu", ..., or "auto"), as if each call had asked.

    A compiled function chooses its forwards when it runs; the backend of its backwards was chosen when it was traced. The block cannot be
    part of what is compiled.
    """
    _check_environment()
    token = requested_here.set(_known(backend))
    try:
        yield
    finally:
        requested_here.reset(token)


def requested() -> str:
    """What calls without a wish of their own are asked to run on now: a backend, or "auto"."""
    return requested_here.get()


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op. `refuse` takes the forward's arguments and gives the reason why it cannot take them, or None."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    refuse: Callable[..., str | None] = lambda *_: None


def refuse_off_cpu(x: torch.Tensor, *_: object) -> str | None:
    """Why the kernels cannot take a call whose dtypes and shapes they all take: the `refuse` of the integer ops."""
    if native is None:
        return NATIVE_REASON
    return None if x.is_cpu else f"the tensor is on {x.device}"


class Chosen(NamedTuple):
    """What a call of an op runs on."""

    op: str
    backend: str
    reason: str | None  # why plain torch runs it, if it does


_hearing: contextvars.ContextVar[Callable[[Chosen], None] | None] = contextvars.ContextVar("hearing", default=None)


@contextlib.contextmanager
def hearing(hear: Callable[[Chosen], None]) -> Iterator[None]:
    """Inside of it `hear` gets what every op that this thread calls chooses. What the CPU runs again (`replay.py`) chooses nothing."""
    token = _hearing.set(hear)
    try:
        yield
    finally:
        _hearing.reset(token)


def undisturbed() -> bool:
    """Whether nobody hears what calls of this thread choose."""
    return _hearing.get() is None


class Choice:
    """The implementations of one op by backend, and the choice among them.

    order: names the backends for a call on a GPU, fastest first, where that is not the order of BACKENDS.
    """

    every: ClassVar[list[Choice]] = []

    def __init__(self, op: str, *, order: Callable[..., Iterable[str]] | None = None, **implementations: Implementation) -> None:
        self.op, self._order = op, order
        self.every.append(self)
        self.implementations = {name: implementations[name] for name in BACKENDS if name in implementations}
        self._in_order = tuple(self.implementations.values())
        # Triton's interpreter takes tensors of the CPU too, and runs where it is asked for alone.
        self._on_cpu = tuple(each for name, each in self.implementations.items() if name in ("cpu", "reference"))

    def __call__(self, wanted: str | None, *args: Any) -> Implementation:
        """The implementation for a forward with `args`, of which the first is a tensor: the wanted backend's or, without a wish, the first
        that takes the call."""
        if wanted is None:
            wanted = requested_here.get()
        if wanted != "auto":
            return self._wanted(wanted, args)
        for implementation in self._on_cpu if args[0].is_cpu else self._on_device(args):
            if implementation.refuse(*args) is None:
                return implementation if _hearing.get() is None else self._told(implementation, wanted, args)
        reasons = "; ".join(f"{name}: {each.refuse(*args)}" for name, each in self.implementations.items())
        raise ValueError(f"{self.op}: no backend takes this call ({reasons})")

    def _on_device(self, args: tuple[Any, ...]) -> Iterable[Implementation]:
        if self._order is None or not args[0].is_cuda:
            return self._in_order
        return (self.implementations[name] for name in self._order(*args))

    def _wanted(self, wanted: str, args: tuple[object, ...]) -> Implementation:
        _check_environment()
        implementation = self.implementations.get(_known(wanted))
        reason = "it has no kernel for this op" if implementation is None else implementation.refuse(*args)
        if implementation is None or reason is not None:
            raise ValueError(f"{self.op}: backend {wanted!r} was requested and cannot take this call: {reason}")
        return self._told(implementation, wanted, args)

    def backend(self, wanted: str | None, *args: object) -> str:
        """The name of the backend whose implementation a forward with `args` takes."""
        return self._name(self(wanted, *args))

    def _name(self, implementation: Implementation) -> str:
        return next(name for name, each in self.implementations.items() if each is implementation)

    def _told(self, implementation: Implementation, wanted: str, args: tuple[Any, ...]) -> Implementation:
        """The implementation, of which whoever is `hearing` gets to know."""
        hear = _hearing.get()
        if hear is not None:
            name = self._name(implementation)
            reason = None if name != "reference" else "requested" if wanted != "auto" else self._refusals(args)
            hear(Chosen(self.op, name, reason))
        return implementation

    def _refusals(self, args: tuple[Any, ...]) -> str:
        """Why no kernels of the device of a call take it."""
        on_cpu = args[0].is_cpu
        kernels = {name: each for name, each in self.implementations.items() if name != "reference" and (name == "cpu") == on_cpu}
        reasons = [f"{name}: {each.refuse(*args)}" for name, each in kernels.items()]
        return "; ".join(reasons) or f"no kernel for {'the CPU' if on_cpu else 'GPUs'}"


def warn_of_missing_kernels() -> None:
    """Once, at import: without native kernels the same results come slower, which nobody should have to find out."""
    ops = ", ".join(choice.op for choice in Choice.every if "cpu" in choice.implementations)
    warnings.warn(f"mvit_kernels: {ops} run on plain PyTorch: {NATIVE_REASON}", stacklevel=3)
