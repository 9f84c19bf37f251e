"""`torch.compile(model, backend="mvit_kernels")`: the plan of `mk.compile`, for people who have that line already.

Dynamo hands over a graph of torch ops, in which the blocks of a model are gone. So the model whose forward it is of is looked up and
compiled, and its results compared with those of the graph, of the first images and of others. A graph that is only a part of a forward, or
of a function around a model, is compiled as it is.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mvit_kernels.graph import OneBatchError
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
    forward, model = _traced_forward()
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
    return _Runner(graph, images[0], forward)


@dataclass(frozen=True)
class _Made:
    """A plan of one model's weights."""

    weights: list[weakref.ref[Tensor]]
    versions: list[tuple[int, ...]]
    compiled: CompiledModel
    beside: list[Tensor]  # what the graph gives beside results

    def is_of(self, weights: list[Tensor], versions: list[tuple[int, ...]]) -> bool:
        return self.versions == versions and all(held() is x for held, x in zip(self.weights, weights, strict=True))


class _Runner:
    """Compiles at its first call: Dynamo is still at work when it asks for it, and does not want to be called once more. And again when a
    weight was written to (of tensors of inference mode nobody sees it), or for weights of another model of the same class, whose calls
    Dynamo sends here, too."""

    def __init__(self, graph: fx.GraphModule, place: int, forward: CodeType | None) -> None:
        """forward: of the module that the graph is of; None where it is of another function."""
        self.graph, self.place, self.forward = graph, place, forward
        self.made: dict[tuple[int, ...], _Made] = {}  # the oldest first
        self.lock = threading.RLock()

    def __call__(self, *inputs: Any) -> Sequence[Tensor]:
        if not inputs[self.place].shape[0]:  # of no images: Dynamo made a graph for these alone, whose sizes say 0
            return list(self.graph(*inputs))
        weights = [x for i, x in enumerate(inputs) if i != self.place and isinstance(x, Tensor)]
        versions: list[tuple[int, ...]] = [(x.data_ptr(),) if x.is_inference() else (x.data_ptr(), x._version) for x in weights]
        key = tuple(map(id, weights))
        made = self.made.get(key)
        if made is None or not made.is_of(weights, versions):
            with self.lock, torch.no_grad():
                made = self.made.get(key)
                if made is None or not made.is_of(weights, versions):
                    made = _Made([weakref.ref(x) for x in weights], versions, *self.make(inputs))
                    alive = [(k, each) for k, each in self.made.items() if k != key and all(held() is not None for held in each.weights)]
                    self.made = dict([*alive, (key, made)][-MOST_MODELS:])
        return [*_tensors(made.compiled(inputs[self.place])), *(y.clone() for y in made.beside)]

    def make(self, inputs: Sequence[Any]) -> tuple[CompiledModel, list[Tensor]]:
        x = inputs[self.place].detach()
        with _exact_convolutions(x.device):
            expected = list(self.graph(*inputs))
        # Numbers that would show if the model were not what the graph is of.
        telling = all(y.is_floating_point() and bool(y.isfinite().any()) for y in expected)
        model = _module_of(self.forward, inputs)
        refused = "none is found that has these weights" if model is None else "its results are not those of the graph"
        if model is not None and telling:
            try:
                compiled = compile(model, x)
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError) as error:  # as of one that does not take x, if the graph is a part of it
                refused = str(error).partition("\n")[0]
            else:
                beside = expected[len(_tensors(compiled(x))) :]
                if self._is_all_of(compiled, inputs, expected, beside):
                    return compiled, [y.detach().clone() for y in beside]
        try:
            compiled = compile(_Graph(self.graph, inputs, self.place).eval(), x)
        except (RuntimeError, OneBatchError) as error:
            if any(isinstance(each, int) for each in inputs):  # the number of images: the graph is of any
                raise
            raise RuntimeError(
                f"torch.compile: backend mvit_kernels: expected a graph of any number of images, got one that Dynamo made for {x.shape[0]}"
                f" alone; and the model is not compiled: {refused}"
            ) from error
        if not _agree(compiled, x, expected):
            raise RuntimeError("torch.compile: backend mvit_kernels: the plan's results differ from those of the graph")
        return compiled, []

    def _is_all_of(self, compiled: CompiledModel, inputs: Sequence[Any], expected: list[Tensor], beside: list[Tensor]) -> bool:
        """Whether the graph gives what the model does, and beside it what is the same of other images: what a model keeps of its weights,
        as a bias of attention that it gathers once; of this size, so that the graph must not be of any. Other images are larger, so that
        what the rest of a forward does to large numbers shows."""
        x = inputs[self.place].detach()
        if beside and any(isinstance(each, int) for each in inputs):
            return False
        other = (x.flip(-1) + 1) * (4 if x.dtype == torch.float16 else 100)
        with _exact_convolutions(x.device):
            of_other = list(self.graph(*(other if i == self.place else each for i, each in enumerate(inputs))))
        count = len(expected) - len(beside)
        agree = _agree(compiled, x, expected[:count]) and _agree(compiled, other, of_other[:count])
        return agree and all(map(torch.equal, beside, of_other[count:]))


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


def _traced_forward() -> tuple[CodeType | None, nn.Module | None]:
    """The code of the forward that is being compiled, and its module; None of other functions."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        frame = InstructionTranslator.current_tx().output.root_tx
        code, module = frame.f_code, frame.f_locals[frame.f_code.co_varnames[0]]
    except (AttributeError, IndexError, KeyError):
        return None, None
    return (code, module) if _is_forward_of(module, code) else (None, None)


def _is_forward_of(module: Any, code: CodeType | None) -> bool:
    return isinstance(module, nn.Module) and getattr(type(module).forward, "__code__", None) is code


def _module_of(forward: CodeType | None, inputs: Sequence[Any]) -> nn.Module | None:
    """The module whose forward calls the graph, with all parameters that are among the inputs: on the stack, in code that Dynamo made."""
    weights = {id(x) for x in inputs if isinstance(x, nn.Parameter)}
    frame = inspect.currentframe() if forward is not None else None
    while frame is not None:
        names = frame.f_code.co_varnames
        module = frame.f_locals.get(names[0]) if names else None
        if isinstance(module, nn.Module) and _is_forward_of(module, forward) and weights <= {id(x) for x in module.parameters()}:
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
