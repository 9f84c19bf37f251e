"""When a replacement must stand back: something inside it that only the original forward treats as its owner expects.

A `Place` says which classes may stand at one position of the module tree, and each of them, a `Kind`, what may stand inside of it.
Checked at every call, since hooks, dropout and other modules may come after `accelerate`: about 0.3 us for each module inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from mvit_kernels.ops.backend import native


class Obstacle(NamedTuple):
    module: nn.Module
    reason: str


@dataclass(frozen=True)
class Kind:
    """Modules of exactly one class."""

    type: type[nn.Module]
    check: Callable[[Any], str | None] | None = None  # gives the reason why a module of the class will not do, or None
    children: Mapping[str, Place] = field(default_factory=dict)
    others: Place = field(default_factory=dict)  # for the children not named
    watched: tuple[str, ...] = ("training",)  # attributes that `check` and whoever runs the parts depend on, and which somebody may set
    helpers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "helpers", helpers(self.type))


Place = Mapping[type[nn.Module], Kind]


def one_of(*kinds: Kind) -> Place:
    return {kind.type: kind for kind in kinds}


def helpers(kind: type[nn.Module]) -> tuple[str, ...]:
    """The methods that the class has beyond any module's, which its forward may call: an instance may shadow them."""
    own = {name: None for base in kind.__mro__ for name, value in vars(base).items() if callable(value) and not hasattr(nn.Module, name)}
    return tuple(name for name in own if not name.startswith(("__", "reset_")))


def pointwise(conv: nn.Conv2d) -> str | None:
    if conv.kernel_size == (1, 1) == conv.stride and (conv.padding == (0, 0) or conv.padding in ("valid", "same")):
        return None
    return "is no plain 1x1 convolution"


def inactive(rate: str) -> Callable[[nn.Module], str | None]:
    """The check of a dropout that keeps its probability in the attribute `rate`."""

    def check(dropout: nn.Module) -> str | None:
        return "is active" if dropout.training and getattr(dropout, rate) else None

    return check


def fusable(conv: nn.Conv2d) -> str | None:
    """Whether conv2d or depthwise_conv2d computes it."""
    kernel, stride, groups = conv.kernel_size, conv.stride, conv.groups
    padding = "same" if conv.padding == "same" and stride == (1, 1) else (kernel[0] // 2, kernel[1] // 2)
    whole = kernel in ((1, 1), (3, 3)) and groups == 1
    depthwise = kernel == (3, 3) and groups == conv.in_channels == conv.out_channels
    if (whole or depthwise) and stride in ((1, 1), (2, 2)) and conv.padding == padding and conv.dilation == (1, 1):
        return None if conv.padding_mode == "zeros" else "pads with no zeros"
    return "is a convolution without a kernel"


def grouped(conv: nn.Conv2d) -> str | None:
    """Whether it is a 1x1 of every pixel, whose groups a matrix with zeros computes."""
    return pointwise(conv) or (None if conv.padding_mode == "zeros" else "pads with no zeros")


def multiplied(conv: nn.Conv2d) -> str | None:
    """Whether depthwise_conv2d computes it: one filter or several for each channel."""
    depthwise = conv.kernel_size == (3, 3) and conv.groups == conv.in_channels and conv.stride in ((1, 1), (2, 2))
    same = conv.padding == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return None if depthwise and same else "is no depthwise 3x3"


def evaluates(norm: nn.BatchNorm2d) -> str | None:
    """Whether a BatchNorm can be folded."""
    if norm.training:
        return "is training"
    return "has no statistics or weights of its own" if norm.running_mean is None or norm.weight is None else None


def one_group(norm: nn.GroupNorm) -> str | None:
    return None if norm.num_groups == 1 and norm.weight is not None else "is no GroupNorm of one group with weights"


def last_axis(norm: nn.LayerNorm) -> str | None:
    return None if len(norm.normalized_shape) == 1 and norm.bias is not None else "is no LayerNorm of one axis with weights"


def exact_gelu(gelu: nn.GELU) -> str | None:
    return None if gelu.approximate == "none" else "is an approximate GELU"


def has_bias(layer: nn.Conv2d | nn.Linear) -> str | None:
    return "has no bias" if layer.bias is None else None


def pointwise_with_bias(conv: nn.Conv2d) -> str | None:
    return pointwise(conv) or has_bias(conv)


def not_replaced(_: nn.Module) -> str:
    return "is not replaced"


DROPOUT = Kind(nn.Dropout, inactive("p"))

# Where our forward calls nothing.
SKIPPED = one_of(DROPOUT, Kind(nn.Identity))
CONV = one_of(Kind(nn.Conv2d, pointwise))
# Modules whose result does not depend on the order of pixels. GroupNorm's statistics are over all of them.
ORDER_FREE: Place = {**SKIPPED, **CONV, **one_of(*map(Kind, (nn.GroupNorm, nn.SiLU, nn.ReLU, nn.GELU, nn.Hardswish)))}

# Parts of the fused ops.
ACTIVATION = one_of(Kind(nn.SiLU), Kind(nn.ReLU), Kind(nn.GELU, exact_gelu, watched=("approximate",)), Kind(nn.Identity))
GELU = one_of(Kind(nn.GELU, exact_gelu, watched=("approximate",)))
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
CONVOLUTION = one_of(Kind(nn.Conv2d, fusable, watched=_GEOMETRY))
BATCH_NORM = one_of(Kind(nn.BatchNorm2d, evaluates))
GROUP_NORM = one_of(Kind(nn.GroupNorm, one_group, watched=("num_groups",)))
LAYER_NORM = one_of(Kind(nn.LayerNorm, last_axis, watched=("normalized_shape",)))
LINEAR = one_of(Kind(nn.Linear, has_bias))
POINTWISE = one_of(Kind(nn.Conv2d, pointwise_with_bias, watched=_GEOMETRY))

# The names of activations; a library may add classes of its own.
ACTIVATIONS: dict[type[nn.Module], str] = {nn.SiLU: "silu", nn.ReLU: "relu", nn.GELU: "gelu", nn.Identity: "none"}


def activation_name(module: nn.Module | None) -> str:
    """Of a module that may stand where ACTIVATION says, or is of a class derived from these; "none" for None."""
    return "none" if module is None else next((ACTIVATIONS[kind] for kind in type(module).__mro__ if kind in ACTIVATIONS), "")


def shadowed(module: nn.Module, names: tuple[str, ...]) -> Obstacle | None:
    """What keeps the module itself from being run by our forward: a forward of its own, or one of the methods `names`."""
    attributes = module.__dict__
    for name in ("forward", *names):
        if name in attributes:
            return Obstacle(module, f"has a {name} of its own")
    return None


def inside(module: nn.Module, places: Mapping[str, Place]) -> Obstacle | None:
    """What keeps the children at `places`, with all that they hold, from being skipped or called with other shapes; None if nothing."""
    if _has_any_global_hook():
        return Obstacle(module, "runs while hooks on all modules are registered")
    modules = module.__dict__["_modules"]  # not module._modules, where torch.export puts proxies of other classes
    todo = [(modules.get(name), place) for name, place in places.items()]
    for child, place in todo:  # which grows meanwhile
        if child is None:
            continue
        attributes = child.__dict__  # quicker than through the module
        if (
            attributes["_forward_hooks"]
            or attributes["_forward_pre_hooks"]
            or attributes["_backward_hooks"]
            or attributes["_backward_pre_hooks"]
        ):
            return Obstacle(child, "has hooks")
        kind = place.get(type(child))
        if kind is None:
            return Obstacle(child, f"is a {type(child).__name__}")
        if "forward" in attributes:
            return Obstacle(child, "has a forward of its own")
        if kind.helpers:
            for name in kind.helpers:
                if name in attributes:
                    return Obstacle(child, f"has a {name} of its own")
        if kind.check is not None:
            reason = kind.check(child)
            if reason is not None:
                return Obstacle(child, reason)
        if attributes["_modules"]:
            children, others = kind.children, kind.others
            for name, grandchild in child._modules.items():
                todo.append((grandchild, children.get(name, others)))
    return None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NUMBERS = ("eps", "p", "drop_prob", "rate")  # of norms and dropouts


class Snapshot:
    """A module in which nothing was in the way, with all that is at `places`: `holds` tells in a few microseconds whether it is as it was.
    `tensors` are its parameters and buffers, whose values may change.

    In evaluation only: what training does depends on more, which schedules change.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, Place]) -> None:
        # Nothing here holds the module itself or its __dict__, whose hooks may: or neither would ever be freed.
        assert native is not None
        self._same = native.Snapshot()
        outer = vars(module)
        for name, value in outer.items():
            if is_plain(value):
                self._same.item(None, name, value)
        tensors = self._watch_tables(outer, None)
        todo = [(outer["_modules"].get(name), place) for name, place in places.items()]
        for child, place in todo:  # which grows meanwhile
            if child is None:
                continue
            kind, state = place[type(child)], vars(child)
            self._same.type(child)
            for name in (*kind.watched, *(name for name in _NUMBERS if name in state)):
                self._same.item(state, name, state[name])
            tensors += self._watch_tables(state, state)
            for name in _HOOKS:  # the outer one's own are called anyway
                self._same.item(state, name, state[name])
                self._same.size(state[name], 0)
            todo += [(grandchild, kind.children.get(name, kind.others)) for name, grandchild in child._modules.items()]
        self._dead: list[object] = []  # tensors whose address another one may have
        dead = self._dead.append  # bound: a reference that is called holds no more than the list
        self._alive = [weakref.ref(each, dead) for each in tensors]

    def _watch_tables(self, state: dict[str, Any], place: dict[str, Any] | None) -> list[torch.Tensor]:
        """The dicts of a module, in whose places others may come, and what is in them. place: state, or None for that of the outer one."""
        self._same.size(place, len(state))  # an attribute more may be a method of its own
        for table in ("_parameters", "_buffers", "_modules"):
            self._same.item(place, table, state[table])
        for table in ("_parameters", "_buffers"):
            self._same.values(state[table])
        self._same.size(state["_modules"], len(state["_modules"]))
        for name, child in state["_modules"].items():
            self._same.item(state["_modules"], name, child)
        return [each for table in ("_parameters", "_buffers") for each in state[table].values() if each is not None]

    def holds(self, module: nn.Module) -> bool:
        """module: the one that this was made of."""
        held: bool = self._same.holds(vars(module))
        return held and not self._dead and not _has_any_global_hook()

    def tensors(self) -> list[torch.Tensor]:
        present: list[torch.Tensor] = self._same.present()
        return present


def is_plain(value: object) -> bool:
    return all(map(is_plain, value)) if type(value) is tuple else isinstance(value, bool | int | float | str | None)
