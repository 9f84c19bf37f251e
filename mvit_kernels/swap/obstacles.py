"""When a replacement must stand back: something inside it that only the original forward treats as its owner expects.

Checked at every call, since hooks, dropout and other modules may come after `accelerate`: about 0.25 us for each module inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


class Obstacle(NamedTuple):
    module: nn.Module
    reason: str


# What a module must fulfil beyond being of the class: a function that gives the reason why it does not, or None.
Rule = Callable[[Any], str | None] | None
Rules = Mapping[type[nn.Module], Rule]


def pointwise(conv: nn.Conv2d) -> str | None:
    return None if conv.kernel_size == (1, 1) else "is no 1x1 convolution"


def inactive(dropout: nn.Dropout) -> str | None:
    return "is active" if dropout.training and dropout.p else None


def foreign(module: nn.Module) -> str:
    return f"is a {type(module).__name__}"


def not_replaced(_: nn.Module) -> str:
    return "is not replaced"


def only(*classes: type[nn.Module]) -> Callable[[nn.Module], str | None]:
    """The rule for a container of modules of exactly these classes."""

    def rule(container: nn.Module) -> str | None:
        for module in container._modules.values():
            if type(module) not in classes:
                return f"holds a {type(module).__name__}"
        return None

    return rule


# Modules whose result does not depend on the order of pixels. GroupNorm's statistics are over all of them.
ORDER_FREE: Rules = {
    nn.Conv2d: pointwise,
    nn.GroupNorm: None,
    nn.Dropout: inactive,
    nn.Identity: None,
    nn.SiLU: None,
    nn.ReLU: None,
    nn.GELU: None,
    nn.Hardswish: None,
}


def inside(module: nn.Module, names: tuple[str, ...], rules: Rules) -> Obstacle | None:
    """What keeps the named children, with all that they hold, from being bypassed or called with other shapes: the first found, or None."""
    if _has_any_global_hook():
        return Obstacle(module, "runs while hooks on all modules are registered")
    children = module.__dict__["_modules"]  # not module._modules, where torch.export puts proxies of other classes
    stack = [children[name] for name in names]
    while stack:
        child = stack.pop()
        if child is None:
            continue
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
            return Obstacle(child, "has hooks")
        if "forward" in child.__dict__:
            return Obstacle(child, "has a forward of its own")
        rule = rules.get(type(child), foreign)
        if rule is not None:
            reason = rule(child)
            if reason is not None:
                return Obstacle(child, reason)
        if child._modules:
            stack += child._modules.values()
    return None
