"""A network as a program: captured from a model, rewritten by passes, run by an interpreter."""

from .capture import capture, check_model
from .exporting import OneBatchError
from .interpreter import evaluate, run
from .passes import optimize
from .program import Node, Program

__all__ = ["Node", "OneBatchError", "Program", "capture", "check_model", "evaluate", "optimize", "run"]
