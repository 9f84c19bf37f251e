"""`compile`: from a float or a quantized model to a plan for each image size."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from mvit_kernels.graph import Program, capture, check_model, optimize
from mvit_kernels.ops.backend import NATIVE_REASON, native
from mvit_kernels.quant import QuantizedModel, carried, carries_quantizers

from .compiled import PLAN_DTYPES, CompiledModel, Size, check_threads, size_of
from .lower_integers import lower
from .plan import Plan, assemble

Tensor = torch.Tensor


class FloatSource:
    """A float model, captured anew at each size."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        # Of its own: the model may change later, and what a plan was made of must not.
        self.model, self.dtype = copy.deepcopy(model).cpu().float(), dtype

    def program(self, size: Size) -> Program:
        program = optimize(capture(self.model, size))
        if not carries_quantizers(program):
            return program
        if self.dtype != torch.float32:
            raise ValueError(f"compile: dtype: expected None for a model with quantizers of its own, got {self.dtype}")
        return carried(program)

    def plan(self, size: Size) -> Plan:
        return assemble(lower(self.program(size), self.dtype))


class QuantizedSource:
    """A quantized model: the program that it runs is the one that is compiled."""

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model

    def plan(self, size: Size) -> Plan:
        return assemble(lower(self.model.program(size)))


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, backend: str = "auto", dtype: torch.dtype | None = None,
    num_threads: int | None = None,
) -> CompiledModel:  # fmt: skip
    """The whole network as one native plan, with no Python between its layers.

    Args:
        model: in evaluation; quantized by `mk.quantize`, or any of this package, of timm, transformers or ml-cvnets, accelerated or not, or
            another network of the same layers. What has no kernel runs through torch, and `CompiledModel.report` names it. Quantizers that
            it has (by PT2E, say) are kept, and what they allow runs in integers (`quant/carried.py`). The model is left as it is, and later
            changes of it do not reach the plan.
        example_inputs: one batch of images (B, C, H, W), or a sequence of just that. Only its size matters. The plan of another size is
            made when the first image of that size comes; the batch is free.
        backend: "auto" or "cpu".
        dtype: how a float network stores what lies between its layers: float32 (None), bfloat16 or float16. Sums are float32.
        num_threads: None for torch.get_num_threads() at each call.

    Returns:
        A callable that takes images and returns what the model returns.

    Raises:
        TypeError, ValueError: wrong arguments, a model in training or that takes anything but one batch of images, no native kernels.
    """
    x = example_inputs
    if isinstance(x, (list, tuple)) and len(x) == 1:
        x = x[0]
    check_model("compile", model)
    if not isinstance(x, Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(example_inputs).__name__
        raise ValueError(f"compile: example_inputs: expected one batch of images (B, C, H, W), got {got}")
    if backend not in ("auto", "cpu"):
        raise ValueError(f'compile: backend: expected "auto" or "cpu", got {backend!r}')
    if native is None:
        raise ValueError(f"compile: backend: cpu cannot be used ({NATIVE_REASON})")
    if dtype is not None and dtype not in PLAN_DTYPES:
        raise ValueError(f"compile: dtype: expected one of {', '.join(map(str, PLAN_DTYPES))}, got {dtype}")
    check_threads("compile", num_threads)
    if isinstance(model, QuantizedModel) and dtype not in (None, torch.float32):
        raise ValueError(f"compile: dtype: expected None for a quantized model, got {dtype}")
    source = QuantizedSource(model) if isinstance(model, QuantizedModel) else FloatSource(model, dtype or torch.float32)
    compiled = CompiledModel(source, {}, num_threads)
    compiled.plan(size_of(x))
    return compiled
