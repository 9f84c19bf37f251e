"""`torch.export` of a model, and in one sentence what it cannot export: torch says that in the words of its own graph."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx import config

EXPORTING = threading.RLock()  # torch.export keeps what it is at in one place for all threads
_TORCH = os.path.dirname(torch.__file__) + os.sep
_ONE_BATCH = re.compile(r"Guard failed: \S+\.size\(\)\[0\] == (\d+)|Constraints violated \(batch\).*\n  batch = (\d+)", re.DOTALL)
_UNKNOWN = re.compile(r"Found <class '(.+?)'> in output, which is not a known type")


class OneBatchError(ValueError):
    """Of a model that takes one number of images alone."""


def exported(model: nn.Module, own: nn.Module, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The graph of `own` for images of `size`, any batch.

    model: what `own` is an accelerated copy of, for errors.
    The caller holds EXPORTING, without gradients and autocast.
    Raises OneBatchError; ValueError for control flow or shapes that depend on the values of images, results of an unknown type and images
    of other channels than the model takes; else what torch raises.
    """
    batch = torch.export.Dim("batch", min=1)
    x = torch.zeros(2, *size, dtype=torch.float32)
    try:
        with _without_graphs():
            return torch.export.export(own, (x,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:
        fixed = _ONE_BATCH.search(str(error))
        if fixed:
            way = ' (export it with dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))' if isinstance(model, fx.GraphModule) else ""
            got = f"got one of {fixed[1] or fixed[2]} at a time{way}"
            raise OneBatchError(f"capture: model: expected one that takes any number of images, {got}") from error
        reason = _reason(error, model, x)
        if reason is None:
            raise
        raise ValueError(f"capture: {reason}") from error


def _reason(error: Exception, model: nn.Module, x: torch.Tensor) -> str | None:
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # with it comes sympy

    if isinstance(error, GuardOnDataDependentSymNode):
        return f"model: expected the same operations and shapes for all images, got what depends on their values{_place(error)}"
    unknown = _UNKNOWN.search(str(error))
    if unknown:
        return (
            "model: expected results in tensors, tuples, lists, dicts or dataclasses that torch.export.register_dataclass knows,"
            f" got {unknown[1].rpartition('.')[2]}"
        )
    return _refusal(error, model, x)


def _place(error: Exception) -> str:
    """The last line of a forward that is not torch's, of those that led to it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.name == "forward" and not frame.filename.startswith(_TORCH):
            return f" at {frame.filename}:{frame.lineno}"
    return ""


class _Reached(Exception):
    """A convolution is called."""


def _refusal(error: Exception, model: nn.Module, x: torch.Tensor) -> str | None:
    """Why a model does not take images as x: its first convolution takes other channels, or it says so itself, here of sizes in numbers."""
    model = copy.deepcopy(model).cpu().float()
    names = {each: name for name, each in model.named_modules() if isinstance(each, nn.Conv2d)}

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(module, *args, *kwargs.values())

    for each in names:
        each.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.compiler.set_stance("force_eager"):  # parts of it may be compiled, by what waits for this
            model(x)
    except _Reached as reached:
        module, *given = reached.args
        name, channels = names[module] or "the model", int(module.in_channels)
        if given and isinstance(given[0], torch.Tensor) and given[0].ndim == 4 and given[0].shape[1] == x.shape[1] != channels:
            return f"images: expected {channels} channels, which the first convolution ({name}) takes, got {x.shape[1]}"
    except Exception as own:  # which torch.export raised too
        if isinstance(own, ValueError) and isinstance(error, ValueError):
            return f"images: {own}"
    return None


class _Stderr:
    """stderr, but for the code of graphs."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._left_out = stream, False

    def write(self, text: str) -> int:
        self._left_out = ("def forward(" in text and "torch.ops." in text) or (self._left_out and text == "\n")
        if not self._left_out:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _without_graphs() -> Iterator[None]:
    """torch.export prints the graph that it was at, whatever its caller makes of the error. Where in the model each op was called, which a
    third of its time goes to, nobody asks."""
    before = getattr(config, "do_not_emit_stack_traces", False)  # some versions have none
    config.do_not_emit_stack_traces = True
    try:
        with contextlib.redirect_stderr(_Stderr(sys.stderr)) if sys.stderr is not None else contextlib.nullcontext():
            yield
    finally:
        config.do_not_emit_stack_traces = before
