"""MobileViTv2 of any size."""

from .counts import macs, parameters, polynomial, width_for

__all__ = ["macs", "parameters", "polynomial", "width_for"]
