"""`compile`: a model as one native plan for each image size, and `CompiledModel`, which runs them."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mvit_kernels.graph import Program, capture, check_model, optimize
from mvit_kernels.ops.backend import NATIVE_REASON, native
from mvit_kernels.quant import QuantizedModel, carried, carries_quantizers

from .lower_integers import lower
from .plan import Plan, assemble
from .report import PlanReport, Profile, profile_of, report_of

Tensor = torch.Tensor
Size = tuple[int, int, int]
PLAN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PLANS = 16  # image sizes at hand


class Source(Protocol):
    """Where plans come from."""

    def plan(self, size: Size) -> Plan: ...


class FloatSource:
    """A float model, captured anew at each size."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        # Of its own: the model may change later, and what a plan was made of must not.
        self.model, self.dtype = copy.deepcopy(model).cpu().float(), dtype

    def program(self, size: Size) -> Program:
        program = optimize(capture(self.model, size))
        if not carries_quantizers(program):
            return program
        if self.dtype != torch.float32:
            raise ValueError(f"compile: dtype: expected None for a model with quantizers of its own, got {self.dtype}")
        return carried(program)

    def plan(self, size: Size) -> Plan:
        return assemble(lower(self.program(size), self.dtype))


class QuantizedSource:
    """A quantized model: the program that it runs is the one that is compiled."""

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model

    def plan(self, size: Size) -> Plan:
        return assemble(lower(self.model.program(size)))


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, backend: str = "auto", dtype: torch.dtype | None = None,
    num_threads: int | None = None,
) -> CompiledModel:  # fmt: skip
    """The whole network as one native plan, with no Python between its layers.

    Args:
        model: in evaluation; quantized by `mk.quantize`, or any of this package, of timm, transformers or ml-cvnets, accelerated or not, or
            another network of the same layers. What has no kernel runs through torch, and `CompiledModel.report` names it. Quantizers that
            it has (by PT2E, say) are kept, and what they allow runs in integers (`quant/carried.py`). The model is left as it is, and later
            changes of it do not reach the plan.
        example_inputs: one batch of images (B, C, H, W), or a sequence of just that. Only its size matters. The plan of another size is
            made when the first image of that size comes; the batch is free.
        backend: "auto" or "cpu".
        dtype: how a float network stores what lies between its layers: float32 (None), bfloat16 or float16. Sums are float32.
        num_threads: None for torch.get_num_threads() at each call.

    Returns:
        A callable that takes images and returns what the model returns.

    Raises:
        TypeError, ValueError: wrong arguments, a model in training or that takes anything but one batch of images, no native kernels.
    """
    x = example_inputs
    if isinstance(x, (list, tuple)) and len(x) == 1:
        x = x[0]
    check_model("compile", model)
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(example_inputs).__name__
        raise ValueError(f"compile: example_inputs: expected one batch of images (B, C, H, W), got {got}")
    if backend not in ("auto", "cpu"):
        raise ValueError(f'compile: backend: expected "auto" or "cpu", got {backend!r}')
    if native is None:
        raise ValueError(f"compile: backend: cpu cannot be used ({NATIVE_REASON})")
    if dtype is not None and dtype not in PLAN_DTYPES:
        raise ValueError(f"compile: dtype: expected one of {', '.join(map(str, PLAN_DTYPES))}, got {dtype}")
    check_threads("compile", num_threads)
    if isinstance(model, QuantizedModel) and dtype not in (None, torch.float32):
        raise ValueError(f"compile: dtype: expected None for a quantized model, got {dtype}")
    source = QuantizedSource(model) if isinstance(model, QuantizedModel) else FloatSource(model, dtype or torch.float32)
    compiled = CompiledModel(source, {}, num_threads)
    compiled.plan(_size_of(x))
    return compiled


def check_threads(what: str, num_threads: int | None) -> None:
    if num_threads is not None and (not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1):
        raise ValueError(f"{what}: num_threads: expected a positive number or None, got {num_threads!r}")


class CompiledModel:
    """A network as plans. Call it with images; `compile` and `load` make it. Any number of threads may call it."""

    def __init__(self, source: Source | None, plans: Mapping[Size, Plan], num_threads: int | None) -> None:
        self._source, self.num_threads = source, num_threads
        self._plans = dict(plans)
        self._used: dict[Size, int] = {}  # when each was wanted last
        self._turn = itertools.count()
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Any:
        """x (B, C, H, W) float32, bfloat16 or float16 on the CPU, of any strides; results as of the model, floats in the dtype of x. They
        carry no gradient.

        Raises TypeError, ValueError: wrong arguments, or a size for which there is no plan and no model to make it of.
        """
        self._check(x)
        plan = self.plan(_size_of(x))
        results = plan.run(self._prepared(x, plan), self.threads())
        results = [each.to(x.dtype) if each.is_floating_point() else each for each in results]
        return results[0] if plan.structure is None else pytree.tree_unflatten(results, plan.structure)

    def plan(self, size: Size) -> Plan:
        """That of images (C, H, W), made if there is none yet."""
        plan = self._plans.get(size)
        self._used[size] = next(self._turn)
        if plan is not None:
            return plan
        with self._lock:
            if size not in self._plans:
                if self._source is None:
                    known = ", ".join(map(str, self._plans))
                    raise ValueError(f"CompiledModel: x: expected images of one of the saved sizes {known}, got {size}")
                plans = self._plans | {size: self._source.plan(size)}  # replaced as a whole: others may be looking for theirs
                if len(plans) > MOST_PLANS:  # the first one stays: reports are of it
                    _, *others = plans
                    del plans[min(others, key=lambda each: self._used.get(each, -1))]
                self._plans = plans
            return self._plans[size]

    def threads(self) -> int:
        """How many it runs on."""
        return self.num_threads or torch.get_num_threads()

    def report(self, size: Size | None = None) -> PlanReport:
        """The steps of a plan (of the first one, if no size is given), with what torch runs and why, and the memory it takes."""
        return report_of(self._plan_of(size, "report"), self.threads())

    def profile(self, x: Tensor, *, repeats: int = 20) -> Profile:
        """`report` with the time of each step on images x, the median of `repeats` runs, against what the processor could do."""
        self._check(x)
        if repeats < 1:
            raise ValueError(f"CompiledModel: repeats: expected at least 1, got {repeats}")
        plan = self.plan(_size_of(x))
        return profile_of(plan, self._prepared(x, plan), self.threads(), repeats)

    def save(self, path: str | Path, sizes: Sequence[tuple[int, int]] | None = None) -> None:
        """Write the plans to a file that `load` reads: those at hand, or those of images of `sizes` (height, width)."""
        from .files import save_plans

        if sizes is not None and (not sizes or any(len(size) != 2 for size in sizes)):
            raise ValueError(f"CompiledModel: save: sizes: expected one (height, width) or more, got {sizes!r}")
        channels = next(iter(self._plans))[0]
        wanted = list(self._plans) if sizes is None else [(channels, *size) for size in sizes]
        save_plans(Path(path), {size: self.plan(size) for size in wanted}, self.num_threads)

    def _plan_of(self, size: Size | None, what: str) -> Plan:
        if size is not None and (len(size) != 3 or any(not isinstance(each, int) or each < 1 for each in size)):
            raise ValueError(f"CompiledModel: {what}: expected a size (channels, height, width), got {size!r}")
        return next(iter(self._plans.values())) if size is None else self.plan(size)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"CompiledModel: x: expected a torch.Tensor, got {type(x).__name__}")
        channels = next(iter(self._plans))[0]
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(f"CompiledModel: x: expected shape (B, {channels}, H, W), got {tuple(x.shape)}")
        if x.dtype not in PLAN_DTYPES:
            raise TypeError(f"CompiledModel: x: expected one of {', '.join(map(str, PLAN_DTYPES))}, got {x.dtype}")
        if not x.is_cpu:
            raise ValueError(f"CompiledModel: x: expected a tensor on the CPU, got one on {x.device}")

    def _prepared(self, x: Tensor, plan: Plan) -> Tensor:
        return x.detach().to(plan.input.dtype).contiguous()

    def __repr__(self) -> str:
        return f"CompiledModel(sizes={list(self._plans)}, threads={self.threads()})"


def _size_of(x: Tensor) -> Size:
    return (x.shape[1], x.shape[2], x.shape[3])
