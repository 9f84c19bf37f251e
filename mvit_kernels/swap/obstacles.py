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
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mvit_kernels.ops.backend import native
from mvit_kernels.ops.library import PLAIN


class Obstacle(NamedTuple):
    module: nn.Module
    reason: str


@dataclass(frozen=True)
class Kind:
    """Modules of exactly one class."""

    type: type[nn.Module]
    check: Callable[[Any], str | None] | None = None  # gives the reason why a module of the class will not do, or None
    children: Mapping[str, Place] = field(default_factory=dict)
    others: Place | None = field(default_factory=dict)  # for the children not named; None: anything may stand there, without hooks
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


# Others may be what tracers put there, and what quantizers and sharding do, which only the operations that they know compute with.
_PLAIN = (*PLAIN, type(None))


def inside(module: nn.Module, places: Mapping[str, Place | None]) -> Obstacle | None:
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
        if "forward" in attributes:
            return Obstacle(child, "has a forward of its own")
        if place is None:
            todo += [(grandchild, None) for grandchild in attributes["_modules"].values()]
            continue
        kind = place.get(type(child))
        if kind is None:
            return Obstacle(child, f"is a {type(child).__name__}")
        if kind.helpers:
            for name in kind.helpers:
                if name in attributes:
                    return Obstacle(child, f"has a {name} of its own")
        for parameter in attributes["_parameters"].values():
            if type(parameter) not in _PLAIN and is_traceable_wrapper_subclass(parameter):
                return Obstacle(child, f"has a {type(parameter).__name__} for a parameter")
        if kind.check is not None:
            reason = kind.check(child)
            if reason is not None:
                return Obstacle(child, reason)
        if attributes["_modules"]:
            children, others = kind.children, kind.others
            for name, grandchild in child._modules.items():
                todo.append((grandchild, children.get(name, others)))
    return None


_NUMBERS = ("eps", "p", "drop_prob", "rate")  # of norms and dropouts


class Snapshot:
    """A module in which nothing was in the way, with all that is at `places`: `holds` tells in some ten microseconds whether it is as it
    was. `tensors` are its parameters and buffers, whose values may change.

    In evaluation only: what training does depends on more, which schedules change.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, Place | None]) -> None:
        children = [_seen(child, places[name]) if name in places and child is not None else None for name, child in module._modules.items()]
        assert native is not None
        self._native = native.Snapshot(module, plain_attributes(module), children, True)  # hooks of its own are called anyway
        self._dead: list[object] = []  # tensors whose address another one may have
        dead = self._dead.append  # bound: a reference that is called holds no more than the list
        self._alive = [weakref.ref(each, dead) for each in self.tensors(module)]

    def holds(self, module: nn.Module) -> bool:
        """module: the one that this was made of."""
        return self._native.holds(module) and not self._dead and not _has_any_global_hook()

    def tensors(self, module: nn.Module) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self._native.tensors(module)
        return found


def _seen(module: nn.Module, place: Place | None) -> Any:
    assert native is not None
    kind = None if place is None else place[type(module)]
    if kind is None:
        children = [None if child is None else _seen(child, None) for child in module._modules.values()]
        return native.Snapshot(module, plain_attributes(module), children, False)
    watched = [*kind.watched, *(name for name in _NUMBERS if name in module.__dict__)]
    inner = [None if child is None else _seen(child, kind.children.get(name, kind.others)) for name, child in module._modules.items()]
    return native.Snapshot(module, watched, inner, False)


def plain_attributes(module: nn.Module) -> tuple[str, ...]:
    """The names of numbers, names and tuples that it keeps."""
    return tuple(name for name, value in vars(module).items() if _is_plain(value))


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else isinstance(value, bool | int | float | str | None)
