"""`compile`: from a float or a quantized model to a plan for each image size, of the CPU or of a GPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mvit_kernels.graph import Program, capture, check_model, optimize
from mvit_kernels.messages import shown
from mvit_kernels.ops.backend import NATIVE_REASON, native
from mvit_kernels.quant import QuantizedModel, carried, carries_quantizers

from .compiled import PLAN_DTYPES, CompiledModel, Size, check_threads, size_of
from .device_plan import DevicePlan
from .lower_integers import lower
from .plan import Plan, assemble

Tensor = torch.Tensor


class FloatSource:
    """A float model, captured anew at each size."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        # Of its own: the model may change later, and what a plan was made of must not.
        self.model, self.dtype, self.device = copy.deepcopy(model).cpu().float(), dtype, device

    def program(self, size: Size) -> Program:
        program = optimize(capture(self.model, size, "compile"), device=self.device.type != "cpu")
        if not carries_quantizers(program):
            return program
        if self.dtype != torch.float32:
            raise ValueError(f"compile: dtype: expected None for a model with quantizers of its own, got {self.dtype}")
        return carried(program)

    def plan(self, size: Size) -> Plan | DevicePlan:
        # Rewritten weights are copies of the model's, of each size anew: a plan of a GPU needs none of them on the host.
        return _plan(self.program(size), self.dtype, self.device, functools.partial(self.program, size))


class QuantizedSource:
    """A quantized model: the program that it runs is the one that is compiled."""

    def __init__(self, model: QuantizedModel, device: torch.device) -> None:
        self.model, self.device = model, device

    def plan(self, size: Size) -> Plan | DevicePlan:
        self.model.require_kernels("compile", size)
        return _plan(self.model.program(size), torch.float32, self.device)


def _plan(program: Program, dtype: torch.dtype, device: torch.device, again: Callable[[], Program] | None = None) -> Plan | DevicePlan:
    if device.type == "cpu":
        return assemble(lower(program, dtype))
    return DevicePlan(program, dtype, device, again)


def compile(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, backend: str = "auto", dtype: torch.dtype | None = None,
    num_threads: int | None = None,
) -> CompiledModel:  # fmt: skip
    """The whole network as one native plan, with no Python between its layers: on a GPU, one CUDA graph for each batch size.

    Args:
        model: in evaluation; quantized by `mk.quantize`, or any of this package, of timm, transformers or ml-cvnets, accelerated or not, or
            another network of the same layers. What has no kernel runs through torch, and `CompiledModel.report` names it. Quantizers that
            it has (by PT2E, say) are kept, and what they allow runs in integers (`quant/carried.py`). The model is left as it is, and later
            changes of it do not reach the plan. The images of a call are not written to, even where the model does.
        example_inputs: one batch of images (B, C, H, W), or a sequence of just that. Only its size matters. The plan of another size is
            made when the first image of that size comes; the batch is free.
        backend: "cpu", "cuda", or "auto": a GPU if the model or the example is on one. The plan of a GPU takes images there.
        dtype: how a float network stores what lies between its layers: float32, bfloat16 or float16. Sums are float32. Of bfloat16 the
            weights of products are rounded to it, too: with AMX they take a fraction of the time, with AVX512-BF16 (Zen 4) half of it, and
            without either memory is all that it saves. None is float32 on the CPU, and on a GPU what the model has.
        num_threads: of the CPU; None for torch.get_num_threads() at each call.

    Returns:
        A callable that takes images and returns what the model returns.

    Raises:
        TypeError, ValueError: wrong arguments, a model in training or that takes anything but one batch of images, no native kernels,
            a quantized model that can only be simulated.
    """
    x = example_inputs
    if isinstance(x, (list, tuple)) and len(x) == 1:
        x = x[0]
    check_model("compile", model)
    if not isinstance(model, QuantizedModel) and any(isinstance(each, QuantizedModel) for each in model.modules()):
        raise ValueError("compile: model: expected a float model, or a quantized one by itself, got one with a quantized one inside")
    if not isinstance(x, Tensor) or x.ndim != 4 or 0 in x.shape[1:]:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(example_inputs).__name__
        raise ValueError(f"compile: example_inputs: expected one batch of images (B, C, H, W), got {got}")
    device = _device(backend, model, x)
    if dtype is not None and dtype not in PLAN_DTYPES:
        raise ValueError(f"compile: dtype: expected one of {', '.join(map(str, PLAN_DTYPES))}, got {dtype}")
    check_threads("compile", num_threads)
    if num_threads is not None and device.type != "cpu":
        raise ValueError(f"compile: num_threads: expected None on {device}, got {num_threads}")
    if isinstance(model, QuantizedModel) and dtype not in (None, torch.float32):
        raise ValueError(f"compile: dtype: expected None for a quantized model, got {dtype}")
    source = (
        QuantizedSource(model, device) if isinstance(model, QuantizedModel) else FloatSource(model, dtype or _dtype(model, device), device)
    )
    compiled = CompiledModel(source, {}, num_threads, device)
    compiled.plan(size_of(x))
    return compiled


def _device(backend: str, model: nn.Module, x: Tensor) -> torch.device:
    """Where the plan runs."""
    if backend not in ("auto", "cpu", "cuda"):
        raise ValueError(f'compile: backend: expected "auto", "cpu" or "cuda", got {shown(backend)}')
    devices = [x.device, *{parameter.device for parameter in model.parameters()}]
    gpu = next((device for device in devices if device.type == "cuda"), None)
    if backend == "cpu" or (backend == "auto" and gpu is None):
        if native is None:
            raise ValueError(f"compile: backend: cpu cannot be used ({NATIVE_REASON})")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("compile: backend: cuda cannot be used (no GPU is available)")
    return gpu or torch.device("cuda", torch.cuda.current_device())


def _dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """That of the most weights, on a GPU."""
    counts = dict.fromkeys(PLAN_DTYPES, 0)
    for parameter in model.parameters():
        if device.type == "cuda" and parameter.dtype in counts:
            counts[parameter.dtype] += parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])
