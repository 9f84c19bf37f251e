"""What `report` says of a model: which of its modules our ops run, on which backend, and why the others are left alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mvit_kernels.ops.backend import Choice

from .blocks import ConvLayer, Replacement, Setting
from .chain import Sequential
from .core import replacements
from .devices import without_kernels
from .obstacles import Obstacle

_CHOICES: dict[str, Choice] = {choice.op: choice for choice in Choice.every}


@dataclass(frozen=True)
class ReportRow:
    """One module that `accelerate` replaces or might have replaced."""

    module: str  # its name in the model, "" for the model itself
    kind: str  # its class, with the library
    replacement: str | None  # the ops that run in its place; None: it is left alone
    backend: str | None  # which these choose for small maps, of the device and dtype of its parameters
    reason: str | None  # why it is left alone, or runs its original forward, or more of it, although replaced


@dataclass(frozen=True)
class Report:
    """A table when printed; `to_dict()` for programs."""

    rows: tuple[ReportRow, ...]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {
                "module": row.module,
                "class": row.kind,
                "replacement": row.replacement,
                "backend": row.backend,
                "reason": row.reason,
            }
            for row in self.rows
        ]
        return {"summary": self.summary, "rows": rows}

    def __str__(self) -> str:
        if not self.rows:
            return self.summary
        table = [("module", "class", "replacement", "backend", "reason")]
        table += [
            (row.module or "(the model)", row.kind, row.replacement or "-", row.backend or "-", row.reason or "") for row in self.rows
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join([*lines, self.summary])


def report(model: nn.Module) -> Report:
    """Which modules of a model are replaced by what, on which backend, and why the others are left alone.

    Works on any model, accelerated or not. A module counts as replaced if its next call would run our ops: in training, with hooks or
    with dropout the answer may differ.

    Raises TypeError if model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"report: model: expected a torch.nn.Module, got {type(model).__name__}")
    table = replacements(model)
    rows = []
    covered: set[str] = set()  # what stands inside of a module with a row: convolutions that are left alone there are not worth another
    for name, module in model.named_modules():
        if name and name.rpartition(".")[0] in covered:
            covered.add(name)
        if isinstance(module, Replacement) and not isinstance(module, Sequential):
            rows.append(_replaced(name, module))
            covered.add(name)
            continue
        known = next((kind for kind in type(module).__mro__ if kind in table), None)
        if known is None or (name in covered and issubclass(table[known], ConvLayer)):
            continue
        rows.append(_left_alone(name, module, known))
        covered.add(name)
    return Report(tuple(rows), _summary(rows))


def _replaced(name: str, module: Replacement) -> ReportRow:
    obstacle = module._obstacle()
    if obstacle is not None:
        return ReportRow(name, _class_name(type(module)), None, None, f"original forward: {_describe(module, obstacle)}")
    kind, like = _class_name(type(module)), _like(module)
    missing = without_kernels(like.device)
    ops = module._ops() if missing is None else module._ops_apart()
    if not ops:
        return ReportRow(name, kind, None, None, f"original forward: {missing}")
    try:
        backends = {_backend(op, module, like) for op in ops}
    except ValueError as error:
        return ReportRow(name, kind, ", ".join(ops), None, f"cannot run: {error}")
    return ReportRow(name, kind, ", ".join(ops), ", ".join(sorted(backends)), missing)


def _left_alone(name: str, module: nn.Module, known: type[nn.Module]) -> ReportRow:
    setting: Setting | None = vars(module).get("_mvit_kernels_setting")
    if type(module) is not known:
        reason = f"subclass of {_class_name(known)}, left alone"
    elif setting is None or setting.left_alone is None:
        reason = "not accelerated"
    else:
        reason = setting.left_alone
    return ReportRow(name, _class_name(type(module)), None, None, reason)


def _class_name(kind: type[nn.Module]) -> str:
    """With its library, and of the original where `kind` is a replacement: timm.MobileVitV2Block."""
    original = next(base for base in kind.__mro__ if not issubclass(base, Replacement))
    return f"{original.__module__.partition('.')[0]}.{original.__qualname__}"


def _describe(module: nn.Module, obstacle: Obstacle) -> str:
    where = next(name for name, inner in module.named_modules() if inner is obstacle.module)
    return f"{where or 'it'} {obstacle.reason}"


def _like(module: Replacement) -> torch.Tensor:
    """A tensor of the dtype and on the device of its parameters."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def _backend(op: str, module: Replacement, like: torch.Tensor) -> str:
    """What the op would choose for a small input of the module."""
    choice = _CHOICES.get(op)
    return "torch" if choice is None else choice.backend(module._mvit_kernels_setting.backend, *module._small_call(op, like))


def _summary(rows: list[ReportRow]) -> str:
    if not rows:
        known = "known are those of mvit_kernels.models, timm, transformers and ml-cvnets; mk.compile knows layers in others, too"
        return f"no MobileViT block found, nothing to replace ({known})"
    replaced = sum(row.replacement is not None for row in rows)
    return f"{replaced} of {len(rows)} MobileViT modules run on mvit_kernels"
