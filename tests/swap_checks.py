"""What every library's swap must hold, as functions of a model; the test_swap_* files bring the models."""

from __future__ import annotations

import copy
import io
import pickle
import statistics
import types
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mvit_kernels as mk
from mvit_kernels.swap.blocks import Replacement

BACKENDS = [name for name in ("reference", "cpu") if mk.backends()[name].usable]  # of tensors of the CPU
OPTIONS: list[dict[str, object]] = [{}, {"patches": False}, {"attention": False}, {"norm": False}, {"conv": False}]
SETTINGS = [{**options, "backend": backend} for options in OPTIONS for backend in BACKENDS if options == {} or backend == BACKENDS[-1]]
V1_SETTINGS = [settings for settings in SETTINGS if "patches" not in settings]  # for models whose v1 attention is torch's own


@torch.no_grad()
def lively(model: nn.Module) -> nn.Module:
    """Random weights that keep activations near 1 and make softmax choose, so that a wrong token or phase shows."""
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.normal_(std=0.1)
        else:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
    return model.eval()


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Logits, or all feature maps."""
    y = model(x)
    if isinstance(y, torch.Tensor):
        return [y]
    return list(y) if isinstance(y, list | tuple) else [y.logits]


def replaced(model: nn.Module) -> list[str]:
    """What computes; their containers do not."""
    return [name for name, module in model.named_modules() if isinstance(module, Replacement) and not isinstance(module, nn.Sequential)]


def reason(model: nn.Module, module: str) -> str | None:
    return next(row.reason for row in mk.report(model).rows if row.module == module)


@torch.no_grad()
def check_outputs(model: nn.Module, x: torch.Tensor, **options: object) -> None:
    """Values by the float rule, and in float32 within 1e-5 of the range; shapes as before, and memory formats, too, unless convolutions are
    replaced: then maps are in channels_last.

    The float rule for a whole network: the norm of the error against float64, since the largest of ten logits' errors is a matter of luck.
    """
    exact = outputs(copy.deepcopy(model).double(), x.double())
    before = outputs(model, x)
    accelerated = mk.accelerate(copy.deepcopy(model), **options)
    assert replaced(accelerated)
    after = outputs(accelerated, x)
    for _ in range(2):  # the last of three calls runs again what the second one ran
        assert all(map(torch.equal, outputs(accelerated, x), after))
    assert len(before) == len(after)
    for plain, ours, truth in zip(before, after, exact, strict=True):
        assert ours.shape == plain.shape
        assert ours.dtype == plain.dtype
        assert _error(ours, truth) <= 2 * _error(plain, truth) + 4 * torch.finfo(ours.dtype).eps
        if ours.dtype == torch.float32:
            assert (ours - plain).abs().max() <= 1e-5 * (plain.max() - plain.min())
        if plain.ndim == 4 and plain.is_contiguous(memory_format=torch.channels_last):
            assert ours.is_contiguous(memory_format=torch.channels_last)
        if plain.is_contiguous():
            assert ours.is_contiguous() or (options.get("conv", True) and ours.is_contiguous(memory_format=torch.channels_last))


def _error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return ((actual.double() - exact).norm() / (exact.norm() + 1e-12)).item()


def gradients(model: nn.Module, x: torch.Tensor, buffers: bool = True) -> list[torch.Tensor]:
    """Of a random linear function of the outputs with respect to x and every parameter; BatchNorm's new statistics with them."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    ys = outputs(model, x)
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in ys)
    loss.backward()
    assert x.grad is not None
    parameters = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None for grad in parameters)
    return [x.grad, *parameters, *(b for b in model.buffers() if buffers and b.is_floating_point())]


def check_gradients(model: nn.Module, x: torch.Tensor, rounding: float = 1e-9) -> None:
    """In float64 equal to the original's up to rounding; in float32 by the float rule, as a mean over all tensors."""
    double = copy.deepcopy(model).double()
    exact = gradients(copy.deepcopy(double), x.double())
    for ours, theirs in zip(gradients(mk.accelerate(double), x.double()), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding * max(1, theirs.abs().max().item()))
    plain = gradients(copy.deepcopy(model), x)
    ours = gradients(mk.accelerate(copy.deepcopy(model)), x)

    # Some true gradients are zero (a bias before a BatchNorm, the bias of keys): their errors count beside the largest gradient.
    floor = 1e-3 * max(truth.norm().item() for truth in exact)

    def mean_error(grads: list[torch.Tensor]) -> float:
        pairs = zip(grads, exact, strict=True)
        return statistics.mean((grad.double() - truth).norm().item() / max(truth.norm().item(), floor) for grad, truth in pairs)

    assert mean_error(ours) <= 2 * mean_error(plain) + 1e-6


@torch.no_grad()
def check_contract(model: nn.Module, x: torch.Tensor) -> None:
    """What a user may do with a model, he may do with an accelerated one."""
    before = outputs(model, x)
    keys, attributes, classes = list(model.state_dict()), _attributes(model), [type(m) for m in model.modules()]
    parameters = [(id(p), p.requires_grad) for p in model.parameters()]

    assert mk.accelerate(model) is model
    names = replaced(model)
    assert names
    after = outputs(model, x)
    for module, kind in zip(model.modules(), classes, strict=True):
        assert isinstance(module, kind)
        assert type(module).__name__ == kind.__name__
    assert list(model.state_dict()) == keys
    assert [(id(p), p.requires_grad) for p in model.parameters()] == parameters

    def same(other: nn.Module) -> None:
        assert replaced(other) == names
        for y, expected in zip(outputs(other, x), after, strict=True):
            torch.testing.assert_close(y, expected, rtol=0, atol=0)

    same(mk.accelerate(model))
    same(copy.deepcopy(model))
    same(pickle.loads(pickle.dumps(model)))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    same(torch.load(file, weights_only=False))

    other = copy.deepcopy(model)
    for p in other.parameters():
        p.zero_()
    other.load_state_dict(model.state_dict())
    same(other)
    low = copy.deepcopy(model).to(torch.bfloat16)
    assert replaced(low) == names
    assert all(y.dtype == torch.bfloat16 for y in outputs(low, x.bfloat16()))

    assert mk.restore(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert _attributes(model) == attributes
    for y, expected in zip(outputs(model, x), before, strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


def _attributes(model: nn.Module) -> list[list[str]]:
    return [sorted(vars(module)) for module in model.modules()]


def check_inner_hook(model: nn.Module, x: torch.Tensor, inner: str, block: str) -> None:
    """A hook inside a block sees what it would see in the original, and the report says that the original forward runs."""
    seen: dict[str, list[tuple[int, ...]]] = {"plain": [], "ours": []}
    plain, ours = copy.deepcopy(model), mk.accelerate(copy.deepcopy(model))
    assert reason(ours, block) is None
    for which, each in (("plain", plain), ("ours", ours)):
        each.get_submodule(inner).register_forward_hook(lambda _m, args, y, which=which: seen[which].append((args[0].shape, y.shape)))
    with torch.no_grad():
        before, after = outputs(plain, x), outputs(ours, x)
    assert seen["ours"] == seen["plain"] != []
    for y, expected in zip(after, before, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert "has hooks" in (reason(ours, block) or "")


def put(name: str, make: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    """An obstruction: another module at `name`."""
    return lambda block: block.set_submodule(name, lively(make()))


def own(name: str, method: str) -> Callable[[nn.Module], None]:
    """An obstruction: the module `name` gets a method of its own, which adds 1 to the result of the original class's."""

    def obstruct(block: nn.Module) -> None:
        module = block.get_submodule(name)
        original = next(kind for kind in type(module).__mro__ if not issubclass(kind, Replacement))

        def patched(self: nn.Module, *args: object) -> object:
            y = getattr(original, method)(self, *args)
            return (y[0] + 1, *y[1:]) if isinstance(y, tuple) else y + 1

        setattr(module, method, types.MethodType(patched, module))

    return obstruct


@torch.no_grad()
def check_obstacle(block: nn.Module, x: torch.Tensor, obstruct: Callable[[nn.Module], None], expected: str, late: bool) -> None:
    """With something else inside than its library puts there, a block computes what the original computes, and the report says why."""
    if late:
        mk.accelerate(block)
    obstruct(block)
    if not late:
        mk.accelerate(block)
    why = reason(block, "") or ""
    assert why.startswith("original forward: ")
    assert expected in why
    kind = mk.report(block).rows[0].kind
    ours, original = block(x), mk.restore(block)(x)
    assert (ours - original).abs().max() <= 1e-5 * (original.max() - original.min())  # attention inside may still be replaced
    assert mk.report(block).rows[0].kind == kind == f"{type(block).__module__.partition('.')[0]}.{type(block).__qualname__}"


class Calls(TorchDispatchMode):
    """Records our ops with the shape of the first argument and the patch size, where it is given as (2, 2): unfold's default arrives as
    none. And what copies."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[tuple[object, ...]] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = str(op).removesuffix(".default")
        if name.startswith("mvit_kernels."):
            patch_size = next((tuple(arg) for arg in args[1:] if isinstance(arg, list | tuple) and tuple(arg) == (2, 2)), None)
            self.ours.append((name.removeprefix("mvit_kernels."), tuple(args[0].shape), patch_size))
        elif any(word in name for word in ("clone", "copy", "im2col", "col2im", "permute")):
            self.copies.append(name)
        return op(*args, **(kwargs or {}))


def recorded(block: nn.Module, x: torch.Tensor, options: dict[str, object]) -> Calls:
    with torch.no_grad(), Calls() as calls:
        mk.accelerate(block, **options)(x)
    return calls


V1_OPS = {"conv2d", "gemm", "patch_attention", "feed_forward"}
V2_OPS = {"inverted_residual", "separable_attention_block", "feed_forward", "gemm"}


def check_v2_ops(block: nn.Module, x: torch.Tensor, **options: object) -> None:
    """The ops of a block of two layers of width 16 on a map 8 x 8."""
    calls = recorded(block, x, options)
    layers = [("separable_attention_block", (1, 16, 8, 8), (2, 2)), ("feed_forward", (1, 16, 8, 8), None)] * 2
    if options == {}:
        assert calls.ours == [("inverted_residual", tuple(x.shape), None), *layers, ("gemm", (64, 16), None)]
        assert set(calls.copies) == {"aten.permute"}  # views of channels-last memory
    elif options == {"conv": False}:
        assert calls.ours == layers
    elif options == {"norm": False}:
        assert calls.ours == [("separable_attention", (1, 33, 8, 8), (2, 2))] * 2
        assert calls.copies == []
    elif options == {"patches": False}:
        assert [call for call in calls.ours if "conv2d" not in str(call[0])] == [("separable_attention", (1, 33, 4, 16), None)] * 2
        assert calls.ours[0] == ("depthwise_conv2d", tuple(x.shape), None)
    else:
        assert calls.ours == [("unfold_patches", (1, 16, 8, 8), None), ("fold_patches", (1, 16, 4, 16), (2, 2))]


def check_v1_ops(block: nn.Module, x: torch.Tensor, layers: int = 1) -> None:
    """The ops of a block of width 16."""
    height, width = x.shape[2:]
    rows = ("gemm", (height * width, 16), None)
    attention, feed_forward = ("patch_attention", (1, 48, height, width), (2, 2)), ("feed_forward", (1, 16, height, width), None)
    transformer = [rows, attention, rows, feed_forward] * layers
    conv2d = ("conv2d", tuple(x.shape), None)
    assert recorded(block, x, {}).ours == [conv2d, conv2d, *transformer, rows, conv2d]
    assert recorded(block, x, {"conv": False}).ours == transformer
    expected = [("unfold_patches", (1, 16, height, width), None), ("fold_patches", (1, 16, 4, height * width // 4), (2, 2))]
    assert recorded(block, x, {"attention": False}).ours == recorded(block, x, {"norm": False}).ours == expected
    assert {name for name, *_ in recorded(block, x, {"patches": False}).ours} == {"conv2d"}


def check_export(model: nn.Module, x: torch.Tensor, ops: set[str]) -> None:
    """torch.export with a dynamic batch keeps our ops and the values."""
    mk.accelerate(model)
    program = torch.export.export(model, (torch.cat([x, x]),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert _our_ops(program.graph) == ops
    for batch in (1, 3):
        y = torch.cat([x] * batch)
        with torch.no_grad():
            for actual, expected in zip(outputs(program.module(), y), outputs(model, y), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def check_compile(model: nn.Module, x: torch.Tensor, ops: set[str], backend: str = "aot_eager") -> None:
    """torch.compile takes an accelerated model as one graph that holds our ops, forward and backward."""
    mk.accelerate(model)
    found: set[str] = set()

    def record(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> object:
        found.update(_our_ops(graph.graph))
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=record)
    for actual, expected in zip(gradients(compiled, x), gradients(model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert found == ops


def _our_ops(graph: torch.fx.Graph) -> set[str]:
    names = [str(node.target) for node in graph.nodes]
    return {name.removeprefix("mvit_kernels.").removesuffix(".default") for name in names if name.startswith("mvit_kernels.")}
