"""Whether the Triton kernels can take a call, and the way to them: Triton is optional, and imported when a kernel is first asked for."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Container
from typing import Any

import torch

from . import counts

OLDEST = (3, 6)  # the oldest version of Triton that the kernels are tested with
CAPABILITY = (8, 0)  # tensor cores for bytes and bfloat16


class Kernels:
    """A module of `mvit_kernels.triton_kernels`, imported at its first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(f"mvit_kernels.triton_kernels.{self._name}"), attribute)
        setattr(self, attribute, value)
        return value


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, in Python, on tensors of the CPU: TRITON_INTERPRET=1, set before Triton is imported."""
    return installed() is None and bool(importlib.import_module("triton").knobs.runtime.interpret)


@functools.cache
def installed() -> str | None:
    """Why there is no Triton that runs the kernels, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        triton = importlib.import_module("triton")
        version = tuple(map(int, triton.__version__.split("+")[0].split(".")[:2]))
    except (ImportError, AttributeError, ValueError) as error:
        return f"Triton cannot be used ({error})"
    return None if version >= OLDEST else f"expected Triton {'.'.join(map(str, OLDEST))} or newer, got {triton.__version__}"


@functools.cache
def too_old(device: int) -> str | None:
    """Why that GPU does not run the kernels, or None."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= CAPABILITY:
        return None
    return "expected a GPU of compute capability {}.{} or more, got {}.{}".format(*CAPABILITY, *capability)


def refuse_gpu(device: torch.device) -> str | None:
    """Why that GPU does not run the kernels in this process, or None."""
    reason = installed() or too_old(device.index)
    return "TRITON_INTERPRET=1 runs kernels on tensors of the CPU" if reason is None and interpreted() else reason


def refuse(x: torch.Tensor, dtypes: Container[torch.dtype]) -> str | None:
    """Why the kernels cannot take a call with x, or None; `dtypes` are those that they know."""
    if x.is_cuda:
        reason = refuse_gpu(x.device)
    elif not x.is_cpu:
        reason = f"the tensor is on {x.device}"
    elif interpreted():
        reason = None
    else:
        reason = "the tensor is on cpu, where kernels run in Triton's interpreter only (TRITON_INTERPRET=1)"
    if reason is None and x.dtype not in dtypes:
        reason = f"it has no kernel for {x.dtype}"
    return reason


def refuse_rows(x: torch.Tensor, dtypes: Container[torch.dtype], of_result: int = 0) -> str | None:
    """The same, of kernels that count pixels or rows in 32 bits: those of x, and so many of the result."""
    return counts.refuse(counts.rows(x), of_result) or refuse(x, dtypes)


def describe() -> tuple[str, str]:
    """(detail, reason) of the backend: one of them is empty."""
    reason = installed()
    if reason is not None:
        return "", reason
    version = f"triton {importlib.import_module('triton').__version__}"
    if interpreted():
        return f"{version}, interpreted on the CPU", ""
    if not torch.cuda.is_available():
        return "", f"{version} finds no GPU; TRITON_INTERPRET=1 interprets the kernels, for tests"
    usable = [i for i in range(torch.cuda.device_count()) if too_old(i) is None]
    if not usable:
        return "", str(too_old(0))
    return f"{version} on {', '.join(dict.fromkeys(torch.cuda.get_device_name(i) for i in usable))}", ""
