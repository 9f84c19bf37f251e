"""A whole network in native code: a program becomes steps (lower_*), steps a plan, and csrc/engine runs it."""

from typing import TYPE_CHECKING, Any

from .compiled import CompiledModel
from .files import is_plan, load
from .report import PlanReport, Profile

if TYPE_CHECKING:
    from .compiling import compile

__all__ = ["CompiledModel", "PlanReport", "Profile", "compile", "is_plan", "load"]


def __getattr__(name: str) -> Any:
    """What only `compile` needs (capture, quantizer) costs `load` a tenth of a second otherwise."""
    if name == "compile":
        from .compiling import compile

        return compile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
