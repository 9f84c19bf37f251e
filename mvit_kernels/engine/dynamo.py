"""`torch.compile(model, backend="mvit_kernels")`: the plan of `mk.compile`, for people who have that line already.

Dynamo hands over a graph of torch ops, in which the blocks of a model are gone. So the model itself is looked up and compiled; its first
results are compared with those of the graph. A graph that is not all of the model, whose results are others, is compiled as it is.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mvit_kernels.quant import QuantizedModel

from .compiled import CompiledModel
from .compiling import compile

Tensor = torch.Tensor
MOST_MODELS = 8  # of one class, whose plans are at hand
_CLOSE, _ROUNDINGS = 1e-3, 16  # of the largest value: at least, and of its dtype


def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Sequence[Tensor]]:
    """What Dynamo calls. Results carry no gradient.

    Raises:
        RuntimeError: gradients are on and something wants one.
        ValueError: the graph takes anything but one batch of images and weights, or is of a model in training or a quantized one.
    """
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        raise RuntimeError(
            "torch.compile: backend mvit_kernels: expected inference, under torch.no_grad() or torch.inference_mode(), got a call with"
            " gradients on; to train, use mk.accelerate"
        )
    model = _calling_module()
    if isinstance(model, QuantizedModel):
        raise ValueError("torch.compile: backend mvit_kernels: expected a float model, got a quantized one; mk.compile takes it")
    if model is not None and model.training:
        raise ValueError("torch.compile: backend mvit_kernels: expected a model in evaluation (call model.eval()), got one in training")
    weights = [] if model is None else [*model.parameters(), *model.buffers()]
    known = {id(x) for x in weights}
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and id(x) not in known]
    images = [i for i in places if inputs[i].ndim == 4]
    if len(images) != 1:
        raise ValueError(f"torch.compile: backend mvit_kernels: expected one batch of images (B, C, H, W), got {len(images)}")
    return _Runner(graph, images[0])


@dataclass(frozen=True)
class _Made:
    """A plan of one model's weights."""

    weights: list[weakref.ref[Tensor]]
    versions: list[int]
    compiled: CompiledModel
    beside: list[Tensor]  # what the graph gives beside results

    def is_of(self, weights: list[Tensor], versions: list[int]) -> bool:
        return self.versions == versions and all(held() is x for held, x in zip(self.weights, weights, strict=True))


class _Runner:
    """Compiles at its first call: Dynamo is still at work when it asks for it, and does not want to be called once more. And again when a
    weight was written to, or for weights of another model of the same class, whose calls Dynamo sends here, too."""

    def __init__(self, graph: fx.GraphModule, place: int) -> None:
        self.graph, self.place = graph, place
        self.made: OrderedDict[tuple[int, ...], _Made] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, *inputs: Any) -> Sequence[Tensor]:
        if not inputs[self.place].shape[0]:  # of no images: Dynamo made a graph for these alone, whose sizes say 0
            return list(self.graph(*inputs))
        weights = [x for i, x in enumerate(inputs) if i != self.place and isinstance(x, Tensor)]
        versions = [x._version for x in weights if not x.is_inference()]
        key = tuple(map(id, weights))
        made = self.made.get(key)
        if made is None or not made.is_of(weights, versions):
            with self.lock, torch.no_grad():
                made = self.made.get(key)
                if made is None or not made.is_of(weights, versions):
                    made = self.made[key] = _Made([*map(weakref.ref, weights)], versions, *self.make(inputs))
                    while len(self.made) > MOST_MODELS:
                        self.made.popitem(last=False)
        return [*_tensors(made.compiled(inputs[self.place])), *made.beside]

    def make(self, inputs: Sequence[Any]) -> tuple[CompiledModel, list[Tensor]]:
        x = inputs[self.place].detach()
        with _exact_convolutions(x.device):
            expected = list(self.graph(*inputs))
        # Numbers that would show if the model were not what the graph is of.
        telling = all(y.is_floating_point() and bool(y.isfinite().any()) for y in expected)
        model = _module_of(inputs)
        refused = "its results are not those of the graph" if model is not None else "none is found that has these weights"
        if model is not None and telling:
            try:
                compiled = compile(model, x)
            except (TypeError, ValueError, RuntimeError) as error:  # as of one that does not take x, if the graph is a part of it
                refused = str(error).partition("\n")[0]
            else:
                count = len(_tensors(compiled(x)))
                if _agree(compiled, x, expected[:count]) and self._are_constant(expected[count:], count, inputs):
                    return compiled, expected[count:]
        try:
            compiled = compile(_Graph(self.graph, inputs, self.place).eval(), x)
        except RuntimeError as error:
            if any(isinstance(each, int) for each in inputs):  # the number of images: the graph is of any
                raise
            raise RuntimeError(
                f"torch.compile: backend mvit_kernels: expected a graph of any number of images, got one that Dynamo made for {x.shape[0]}"
                f" alone; and the model is not compiled: {refused}"
            ) from error
        if not _agree(compiled, x, expected):
            raise RuntimeError("torch.compile: backend mvit_kernels: the plan's results differ from those of the graph")
        return compiled, []

    def _are_constant(self, values: list[Tensor], place: int, inputs: Sequence[Any]) -> bool:
        """Whether what the graph gives from that place on is the same of other images: what a model keeps of its weights, as a bias of
        attention that it gathers once."""
        if not values:
            return True
        others = [x.flip(-1) + 1 if i == self.place else x for i, x in enumerate(inputs)]
        return all(map(torch.equal, values, self.graph(*others)[place:]))


class _Graph(nn.Module):
    """A graph as a model of its images alone."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any], place: int) -> None:
        super().__init__()
        self.graph, self.place, self.count = graph, place, len(inputs)
        self.numbers = {i: x for i, x in enumerate(inputs) if not isinstance(x, Tensor)}
        for i, x in enumerate(inputs):
            if i != place and isinstance(x, Tensor):
                self.register_buffer(f"weight{i}", x.detach())

    def forward(self, x: Tensor) -> Any:
        def argument(i: int) -> Any:
            if i == self.place:
                return x
            return x.shape[0] if i in self.numbers else getattr(self, f"weight{i}")

        return self.graph(*map(argument, range(self.count)))


def _calling_module() -> nn.Module | None:
    """The module whose forward is being compiled."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        frame = InstructionTranslator.current_tx().output.root_tx
        module = frame.f_locals[frame.f_code.co_varnames[0]]
    except (AttributeError, IndexError, KeyError):
        return None
    return module if isinstance(module, nn.Module) else None


def _module_of(inputs: Sequence[Any]) -> nn.Module | None:
    """The module whose forward calls the graph: the innermost one on the stack that has all parameters among the inputs."""
    weights = {id(x) for x in inputs if isinstance(x, nn.Parameter)}
    frame = inspect.currentframe()
    while frame is not None:
        names = frame.f_code.co_varnames
        module = frame.f_locals.get(names[0]) if names else None
        if isinstance(module, nn.Module) and weights <= {id(x) for x in module.parameters()}:
            return module
        frame = frame.f_back
    return None


def _exact_convolutions(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Torch's convolutions of float32 on a GPU drop 13 bits of their factors (TF32), which would show as another model's results."""
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        return contextlib.nullcontext()
    return cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)


def _agree(compiled: CompiledModel, x: Tensor, expected: Sequence[Tensor]) -> bool:
    results = _tensors(compiled(x))
    return len(results) == len(expected) and all(map(_is_close, results, expected))


def _is_close(y: Tensor, right: Tensor) -> bool:
    if y.shape != right.shape or y.dtype != right.dtype:
        return False
    if not y.is_floating_point() or y.numel() == 0:
        return True  # an index may differ where two values are nearly the same
    largest = right.abs().nan_to_num(0.0, 0.0, 0.0).max()
    close = (y - right).abs() <= max(_CLOSE, _ROUNDINGS * torch.finfo(y.dtype).eps) * largest
    return bool((close | (y == right) | (y.isnan() & right.isnan())).all())


def _tensors(result: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(result) if isinstance(each, Tensor)]
