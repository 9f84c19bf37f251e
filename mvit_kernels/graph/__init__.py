"""A network as a program: captured from a model, rewritten by passes, run by an interpreter."""

from .capture import capture
from .interpreter import evaluate, run
from .passes import optimize
from .program import Node, Program

__all__ = ["Node", "Program", "capture", "evaluate", "optimize", "run"]
