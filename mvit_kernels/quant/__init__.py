"""Quantized modules that stand in for those of torch."""

from .conv2d import QConv2d
from .linear import QLinear

__all__ = ["QConv2d", "QLinear"]
