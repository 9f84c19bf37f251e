"""Quantizers that a model brings: pairs of quantize and dequantize, of PT2E (`torch.ops.quantized_decomposed`) or of `mk.ops`, and weights
by fake quantization.

Those of results become nodes of kind "fake_quantize". Weights are constants: they keep their values, and their scales are kept beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .builder import Builder, Named, Quantized
from .views import View

Tensor = torch.Tensor
_BITS = {63: 6, 255: 8}  # by the largest of the integers, counted from the smallest

_FAKE = ("aten::fake_quantize_per_channel_affine",)  # that with one scale does not export
_TO_INTEGERS = ("quantized_decomposed::quantize_per_tensor", "mvit_kernels::quantize")
_TO_FLOATS = ("quantized_decomposed::dequantize_per_tensor", "quantized_decomposed::dequantize_per_channel", "mvit_kernels::dequantize")


def _operand(named: Named) -> Any:
    return next(named[name] for name in ("self", "input", "x", "q") if name in named)


def _scales(named: Named) -> tuple[Tensor, Tensor, int | None]:
    """Scales and zero-points, one or several, and the axis that several belong to."""
    several = named.get("scales") is not None
    scale, zero = named["scales" if several else "scale"], named.get("zero_points")
    if zero is None:
        zero = named.get("zero_point", 0)
    scale, zero = torch.as_tensor(scale).flatten(), torch.as_tensor(zero).flatten()
    return scale, zero, None if scale.numel() == zero.numel() == 1 else named["axis"]


def _settings(named: Named, bits: int | None = None) -> dict[str, Any] | None:
    """Scale, zero-point and bits, where there is one of each and kernels have as many bits."""
    scale, zero, axis = _scales(named)
    low, high = (0, 2**bits - 1) if bits else (int(named["quant_min"]), int(named["quant_max"]))
    if axis is not None or high - low not in _BITS:
        return None
    return {"scale": float(scale.float()), "zero_point": int(zero) - low, "bits": _BITS[high - low]}


def _quantize(build: Builder, named: Named, path: str) -> Any:
    x, bits = _operand(named), named.get("bits")
    settings = _settings(named, bits)
    if settings is None or not isinstance(x, View) or not x.whole:
        return None
    if not named["_users"].issubset(_TO_FLOATS):  # integers for others are torch's
        return None
    floats = x.on(build.add("fake_quantize", (x.name,), x.size, f"{x.name}.fake_quantize", settings))
    return Quantized(floats.name, floats, bits)


def _dequantize(build: Builder, named: Named, path: str) -> Any:
    q = _operand(named)
    if not isinstance(q, Quantized) or named.get("out_dtype", named.get("dtype")) not in (None, torch.float32, torch.uint8, torch.int8):
        return None
    return q.floats if _settings(named, q.bits) == build.node(q.name).settings else None


RULES: dict[str, Callable[[Builder, Named, str], Any]] = {
    **dict.fromkeys(_TO_INTEGERS, _quantize),
    **dict.fromkeys(_TO_FLOATS, _dequantize),
}


def scales_of(target: str, named: Named) -> Tensor | None:
    """(N,) float32 of a constant that is integers times one scale for each of its rows, or for all; None of every other one."""
    if target not in (*_FAKE, *_TO_FLOATS) or _operand(named).ndim == 0:
        return None
    scale, zero, axis = _scales(named)
    if bool((zero != 0).any()) or axis not in (None, 0):
        return None
    return scale.detach().float().expand(_operand(named).shape[0]).contiguous()
