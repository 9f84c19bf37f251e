"""MobileViTv2 of any size: Gaussian processes over resolution, width and depths, and models for a budget. README.md has more."""

import importlib.util

if _missing := [name for name in ("sklearn", "pymoo", "matplotlib") if importlib.util.find_spec(name) is None]:
    raise ImportError(f"mvit_kernels.scaling needs {' and '.join(_missing)}: in a clone, pip install '.[scaling]'")

from .cost import Cost, Latency, Macs, Params
from .counts import macs, parameters, polynomial, width_for
from .downsize import DEPTHS, RESOLUTIONS, Derived, Downsizer
from .factors import Box, Factors
from .fit import accuracy_surface, latency_surface, timed
from .formula import Formula
from .latency import PRECISIONS, measure
from .pareto import Front, front
from .sample import Recipe, sample
from .surface import INPUTS, LeaveOneOut, Prediction, Surface
from .table import SHIPPED, Sample, SampleSet, read

__all__ = [
    "DEPTHS",
    "INPUTS",
    "PRECISIONS",
    "RESOLUTIONS",
    "SHIPPED",
    "Box",
    "Cost",
    "Derived",
    "Downsizer",
    "Factors",
    "Formula",
    "Front",
    "Latency",
    "LeaveOneOut",
    "Macs",
    "Params",
    "Prediction",
    "Recipe",
    "Sample",
    "SampleSet",
    "Surface",
    "accuracy_surface",
    "front",
    "latency_surface",
    "macs",
    "measure",
    "parameters",
    "polynomial",
    "read",
    "sample",
    "timed",
    "width_for",
]
