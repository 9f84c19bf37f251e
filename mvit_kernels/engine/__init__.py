"""A whole network in native code: a program becomes steps (lower_*), steps a plan, and csrc/engine runs it."""

from .compiled import CompiledModel, compile
from .files import load
from .report import PlanReport, Profile

__all__ = ["CompiledModel", "PlanReport", "Profile", "compile", "load"]
