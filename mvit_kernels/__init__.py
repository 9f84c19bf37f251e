"""Fused kernels that make MobileViT and its relatives fast in PyTorch. See README.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import ops
from .ops import BackendInfo, backends, use_backend

if TYPE_CHECKING:
    from .engine import CompiledModel, compile, load
    from .models import create_model, list_models, load_checkpoint, save_checkpoint
    from .quant import QuantConfig, QuantizedModel, QuantReport, convert, export_onnx, load_quantized, quantize, save_quantized
    from .swap import Report, accelerate, report, restore

__version__ = "0.1.0"

# Imported at first use: `import mvit_kernels` should cost little more than `import torch`.
_LAZY = {
    "CompiledModel": "engine",
    "compile": "engine",
    "load": "engine",
    "create_model": "models",
    "list_models": "models",
    "load_checkpoint": "models",
    "save_checkpoint": "models",
    "QuantConfig": "quant",
    "QuantReport": "quant",
    "QuantizedModel": "quant",
    "convert": "quant",
    "export_onnx": "quant",
    "load_quantized": "quant",
    "quantize": "quant",
    "save_quantized": "quant",
    "Report": "swap",
    "accelerate": "swap",
    "report": "swap",
    "restore": "swap",
}

__all__ = [
    "BackendInfo",
    "CompiledModel",
    "QuantConfig",
    "QuantReport",
    "QuantizedModel",
    "Report",
    "accelerate",
    "backends",
    "compile",
    "convert",
    "create_model",
    "export_onnx",
    "list_models",
    "load",
    "load_checkpoint",
    "load_quantized",
    "ops",
    "quantize",
    "report",
    "restore",
    "save_checkpoint",
    "save_quantized",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "scaling":
        return importlib.import_module(".scaling", __name__)
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
