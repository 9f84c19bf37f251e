"""`CompiledModel`: plans of a network by image size, called like the network."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch.utils import _pytree as pytree

from mvit_kernels.files import new_file
from mvit_kernels.messages import shown

from .plan import Plan
from .report import PlanReport, Profile, profile_of, report_of

if TYPE_CHECKING:
    from .device_plan import DevicePlan  # with it comes all that captures networks

Tensor = torch.Tensor
Size = tuple[int, int, int]
PLAN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_PLANS = 16  # image sizes at hand
CPU = torch.device("cpu")


class Source(Protocol):
    """Where plans come from."""

    def plan(self, size: Size) -> Plan | DevicePlan: ...


def check_threads(what: str, num_threads: int | None) -> None:
    if num_threads is not None and (not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1):
        raise ValueError(f"{what}: num_threads: expected a positive number or None, got {shown(num_threads)}")


class CompiledModel:
    """A network as plans. Call it with images; `compile` and `load` make it. Any number of threads may call it."""

    def __init__(
        self, source: Source | None, plans: Mapping[Size, Plan | DevicePlan], num_threads: int | None, device: torch.device = CPU
    ) -> None:  # fmt: skip
        self._source, self.num_threads, self.device = source, num_threads, device
        self._plans: dict[Size, Plan | DevicePlan] = dict(plans)
        self._used: dict[Size, int] = {}  # when each was wanted last
        self._turn = itertools.count()
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Any:
        """x (B, C, H, W) float32, bfloat16 or float16 on the device of the plan, of any strides; results as of the model, floats in the
        dtype of x. They carry no gradient.

        Raises TypeError, ValueError: wrong arguments, or a size for which there is no plan and no model to make it of.
        """
        self._check(x)
        plan = self.plan(size_of(x))
        results = plan.run(self._prepared(x, plan), self.threads())
        results = [each.to(x.dtype) if each.is_floating_point() else each for each in results]
        return results[0] if plan.structure is None else pytree.tree_unflatten(results, plan.structure)

    def plan(self, size: Size) -> Plan | DevicePlan:
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
                    given_up = plans.pop(min(others, key=lambda each: self._used.get(each, -1)))
                    if not isinstance(given_up, Plan):
                        given_up.close()
                self._plans = plans
            return self._plans[size]

    @property
    def sizes(self) -> list[Size]:
        """(C, H, W) of the images for which there are plans."""
        return list(self._plans)

    def threads(self) -> int:
        """How many it runs on."""
        return self.num_threads or torch.get_num_threads()

    def report(self, size: Size | None = None) -> PlanReport:
        """The steps of a plan (of the first one, if no size is given), with what torch runs and why, and the memory it takes. On a GPU
        one image runs for it: which kernels take a step is for its ops to say, for another number of images by `profile`."""
        plan = self._plan_of(size, "report")
        return report_of(plan, self.threads()) if isinstance(plan, Plan) else plan.report()

    def profile(self, x: Tensor, *, repeats: int = 20) -> Profile:
        """`report` with the time of each step on images x, the median of `repeats` runs, against what the processor could do."""
        self._check(x)
        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"CompiledModel: repeats: expected at least 1, got {shown(repeats)}")
        if not x.shape[0]:
            raise ValueError("CompiledModel: x: expected at least one image to time, got none")
        plan = self.plan(size_of(x))
        if isinstance(plan, Plan):
            return profile_of(plan, self._prepared(x, plan), self.threads(), repeats)
        return plan.profile(x, repeats)

    def save(self, path: str | Path, sizes: Iterable[tuple[int, int]] | None = None) -> None:
        """Write the plans to a file that `load` reads: those at hand, or those of images of `sizes` (height, width). Of plans of a GPU it
        has the rewritten network, made once more of a float model, whose graphs are captured where it runs."""
        from .files import save_plans

        path = new_file("CompiledModel: save: path", path)
        if sizes is not None:
            given, sizes = sizes, list(sizes) if isinstance(sizes, Iterable) else []
            if not sizes or not all(_is_size(each, 2) for each in sizes):
                raise ValueError(f"CompiledModel: save: sizes: expected one (height, width) or more, got {shown(sizes or given)}")
        channels = next(iter(self._plans))[0]
        wanted = list(self._plans) if sizes is None else [(channels, *size) for size in sizes]
        save_plans(path, {size: self.plan(size) for size in wanted}, self.num_threads, self.device)

    def _plan_of(self, size: Size | None, what: str) -> Plan | DevicePlan:
        if size is not None and not _is_size(size, 3):
            raise ValueError(f"CompiledModel: {what}: expected a size (channels, height, width), got {shown(size)}")
        return next(iter(self._plans.values())) if size is None else self.plan(size)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"CompiledModel: x: expected a torch.Tensor, got {type(x).__name__}")
        channels = next(iter(self._plans))[0]
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(f"CompiledModel: x: expected shape (B, {channels}, H, W), got {tuple(x.shape)}")
        if x.dtype not in PLAN_DTYPES:
            raise TypeError(f"CompiledModel: x: expected one of {', '.join(map(str, PLAN_DTYPES))}, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"CompiledModel: x: expected a tensor on {self.device}, got one on {x.device}")
        if x.layout != torch.strided:
            raise ValueError(f"CompiledModel: x: expected a dense tensor, got layout {x.layout}")

    def _prepared(self, x: Tensor, plan: Plan | DevicePlan) -> Tensor:
        if not isinstance(plan, Plan):
            return x.detach()  # its graph reads a copy
        return x.detach().to(plan.input.dtype).contiguous()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """What pickle and copy ask."""
        raise TypeError(
            "CompiledModel: expected save(path) and mk.load(path), got pickle or copy: plans hold memory of this process. Threads may share"
            " one"
        )

    def __repr__(self) -> str:
        where = f"threads={self.threads()}" if self.device == CPU else f"device={self.device}"
        return f"CompiledModel(sizes={list(self._plans)}, {where})"


def _is_size(size: Any, length: int) -> bool:
    return isinstance(size, (tuple, list)) and len(size) == length and all(isinstance(each, int) and each > 0 for each in size)


def size_of(x: Tensor) -> Size:
    return (x.shape[1], x.shape[2], x.shape[3])
