"""Networks in integers: post-training quantization of a program, and quantized modules that stand in for those of torch."""

from .carried import carried, carries_quantizers
from .config import QuantConfig
from .conv2d import QConv2d
from .decision import Decision
from .export import export_onnx
from .files import about, load_quantized, save_quantized
from .linear import QLinear
from .model import QuantizedModel, convert, quantize
from .program import integer_program
from .report import QuantReport
from .representation import Byte, Channels, Projection, Scores, Stream

__all__ = [
    "Byte",
    "Channels",
    "Decision",
    "Projection",
    "QConv2d",
    "QLinear",
    "QuantConfig",
    "QuantReport",
    "QuantizedModel",
    "Scores",
    "Stream",
    "about",
    "carried",
    "carries_quantizers",
    "convert",
    "export_onnx",
    "integer_program",
    "load_quantized",
    "quantize",
    "save_quantized",
]
