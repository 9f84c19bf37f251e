"""From a model to a program.

The model is accelerated first (a copy of it), so that modules of every library have become the same few ops on maps, without unfolds and
folds, and then exported. What does not depend on the image (folded BatchNorms, ...) is computed; every op becomes the nodes that it is made
of (`own_ops.py`, `torch_ops.py`, `view_ops.py`), several ops one where they are one (`attention.py`, `pooling.py`, `gates.py`); what no
rule knows becomes a node of kind "torch".
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from mvit_kernels.messages import shown
from mvit_kernels.swap import accelerate, folds

from . import attention, gates, own_ops, pooling, quantizers, torch_ops, view_ops
from .builder import Builder, Floats, Known, Moments, Opaque
from .exporting import EXPORTING, exported
from .functional import functional, results
from .passes.drop_unused import drop_unused
from .program import Program
from .views import IMAGES, Value

Tensor = torch.Tensor
_RULES = {**own_ops.RULES, **torch_ops.RULES, **view_ops.RULES}
_REPEATS = (torch.ops.aten.expand.default, torch.ops.aten.repeat.default)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)


def capture(model: nn.Module, size: tuple[int, int, int], what: str = "capture") -> Program:
    """The program of a model in evaluation, for images of `size` (channels, height, width); any batch.

    The model is left as it is. Weights are those of the model, on the CPU; where a norm was folded into them, new ones.
    what: the function that was called, for errors.

    Raises:
        TypeError, ValueError: model is no module, is in training, takes anything but one batch of images or images of other channels, gives
            results of an unknown type, or does what depends on the values of images.
    """
    check_model(what, model)
    if not isinstance(size, (tuple, list)) or len(size) != 3 or any(not isinstance(each, int) or each < 1 for each in size):
        raise ValueError(f"{what}: size: expected (channels, height, width), got {shown(size)}")
    own = accelerate(copy.deepcopy(model).cpu().float(), backend="reference")
    with _errors_of(what), EXPORTING, folds.as_ops(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _Translator(functional(exported(model, own, size)), size).program()


@contextmanager
def _errors_of(what: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        if said.startswith("capture: "):
            error.args = (what + said.removeprefix("capture"),)
        raise


def check_model(what: str, model: Any) -> None:
    """Raises TypeError, ValueError if it is no module, what torch.compile gives, one in training or one without values."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ValueError(f"{what}: model: expected one that torch.compile was given, got what it gave (whose _orig_mod it is)")
    training = _exported_in_training(model) if isinstance(model, fx.GraphModule) else None
    if model.training if training is None else training:
        raise ValueError(f"{what}: model: expected a model in evaluation (call model.eval()), got one in training")
    empty = next((name for name, each in (*model.named_parameters(), *model.named_buffers()) if each.is_meta), None)
    if empty is not None:
        raise ValueError(f"{what}: model: expected weights in memory, got {empty} on the meta device")


def _exported_in_training(model: fx.GraphModule) -> bool | None:
    """What `torch.export` made says that it is in training, always; its ops know. None of other graphs."""
    ops = [node for node in model.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    arguments = [dict(zip((each.name for each in op.target._schema.arguments), op.args, strict=False)) | op.kwargs for op in ops]
    return any(True in (given.get("train"), given.get("training")) for given in arguments) if ops else None


class _Translator:
    def __init__(self, exported: torch.export.ExportedProgram, size: tuple[int, int, int]) -> None:
        self.graph, self.results = exported.graph, results(exported)
        self.build = Builder()
        signature = exported.graph_signature
        names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {**exported.state_dict, **exported.constants}
        constant_names = {**names, **signature.inputs_to_lifted_tensor_constants}
        self.values: dict[fx.Node, Any] = {}
        self.known: dict[fx.Node, Known] = {}
        self.origin: dict[fx.Node, str] = {}  # of constants: the parameter that they are made of
        self.scales: dict[fx.Node, Tensor] = {}  # of constants that are integers times these
        user_inputs = [node for node in self.graph.nodes if node.op == "placeholder" and node.name in signature.user_inputs]
        if len(user_inputs) != 1:
            raise ValueError(f"capture: model: expected one batch of images as its input, got {len(user_inputs)} inputs")
        for node in self.graph.nodes:
            if node.op == "placeholder" and node not in user_inputs:
                self.values[node] = constants[constant_names[node.name]].detach()
                self.origin[node] = names.get(node.name, constant_names[node.name])
        self.values[user_inputs[0]] = self.build.map(self.build.add("input", (), size, "input"))
        self.batch = user_inputs[0].meta["val"].shape[0]
        self.spec = exported.call_spec.out_spec

    def program(self) -> Program:
        for node in self.graph.nodes:
            if node.op == "call_function":
                self.values[node] = self.call(node)
        for each in self.results:
            if not isinstance(each, fx.Node) or not self.moves(self.values[each]):
                raise ValueError(f"capture: model: expected results that depend on the image, got {each}")
        leaves = [self.build.plain(self.values[each]) for each in self.results]
        single = self.spec is None or (len(leaves) == 1 and self.spec.is_leaf())
        return drop_unused(Program(self.build.nodes, leaves, None if single else self.spec))

    def call(self, node: fx.Node) -> Any:
        inputs = node.all_input_nodes
        moving = [each for each in inputs if self.moves(self.values[each])]
        if not moving:  # the same for every image
            known = [self.origin[each] for each in inputs if each in self.origin]
            if known:
                self.origin[node] = known[0]
            if node.target in _REPEATS and isinstance(self.values[inputs[0]], Tensor) and len(inputs) > 1:
                repeated = _RULES[node.target](self.build, self.named(node), self.name_of(node))  # for every image of the batch
                if repeated is not None:
                    return repeated
            if any(isinstance(self.values[each], _Batch) for each in inputs) or node.target is torch.ops.aten.sym_size.int:
                return _Batch()
            scales = quantizers.scales_of(_name_of(node.target), self.named(node)) if _name_of(node.target) else None
            if scales is not None:
                self.scales[node] = scales
            self.refuse_random_numbers(node)
            args, kwargs = self.arguments(node, {})
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.target is torch.ops.aten.sym_size.int:
            return _Batch()
        several = self.known.get(inputs[0])
        if node.target is operator.getitem and isinstance(several, gates.Parts):
            self.known[node] = several.parts[node.args[1]]  # type: ignore[index]
        if node.target is operator.getitem and isinstance(self.values[inputs[0]], tuple):
            return self.values[inputs[0]][node.args[1]]
        for rules in (attention.RULES, pooling.RULES, gates.RULES):
            if node.target in rules:
                result = rules[node.target](self.build, self.named(node, self.known), self.name_of(node))
                if result is not None and not isinstance(result, Known):
                    return result
                if result is not None:
                    self.known[node] = result
        rule = _RULES.get(node.target) or quantizers.RULES.get(_name_of(node.target))
        if rule is not None and not any(isinstance(self.values[each], Opaque) for each in moving):
            result = rule(self.build, self.named(node), self.name_of(node))
            if result is not None:
                return result
        return self.as_torch(node)

    def moves(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return any(map(self.moves, value))
        return isinstance(value, (Value, Moments))

    def arguments(self, node: fx.Node, known: Mapping[fx.Node, Known]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return fx.node.map_arg((node.args, node.kwargs), lambda each: known.get(each, self.values[each]))

    def named(self, node: fx.Node, known: Mapping[fx.Node, Known] = MappingProxyType({})) -> Mapping[str, Any]:
        """Arguments, or what is known of them, by the names of the schema, defaults included; "_origin" has those of the weights among
        them, "_scales" the scales of those that are integers times these, "_users" the names of the ops that take the result, "_shape" what
        it has (`views.IMAGES`)."""
        args, kwargs = self.arguments(node, known)
        parameters = node.target._schema.arguments  # type: ignore[union-attr]
        named = {each.name: each.default_value for each in parameters if each.has_default_value()}
        named |= {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
        origin, scales = {}, {}
        for parameter, arg in zip(parameters, node.args, strict=False):
            if isinstance(arg, fx.Node) and arg in self.origin:
                origin[parameter.name] = self.origin[arg].rpartition(".")[0]
            if isinstance(arg, fx.Node) and arg in self.scales:
                scales[parameter.name] = self.scales[arg]
        users = {_name_of(user.target) for user in node.users}
        return named | {"_origin": origin, "_scales": scales, "_users": users, "_size": _size_of(node), "_shape": self.shape_of(node)}

    def name_of(self, node: fx.Node) -> str:
        """The path of the module that called the op."""
        stack = node.meta.get("nn_module_stack") or {}
        return [path for path, _ in stack.values()][-1] if stack else ""

    def as_torch(self, node: fx.Node) -> Any:
        """A node that torch runs."""
        self.refuse_random_numbers(node)
        inputs: list[str] = []
        weights: dict[str, Tensor] = {}

        def hold(each: fx.Node) -> Any:
            value = self.values[each]
            if self.moves(value):
                inputs.append(self.build.plain(value))
                return ("input", len(inputs) - 1)
            if isinstance(value, Tensor):
                weights[f"w{len(weights)}"] = value
                return ("weight", f"w{len(weights) - 1}")
            if isinstance(value, _Batch):
                raise ValueError(f"capture: {node.name}: expected no arithmetic on the size of the batch, got {node.target}")
            return value

        size = _size_of(node)
        target, args = node.target, node.args
        if target in _VIEWS and args[1] and -1 not in size:  # results of ours lie in an order of their own, which has no such view
            target, args = torch.ops.aten.reshape.default, (args[0], [self.first_of(args[1]), *size])
        if target is torch.ops.aten.expand.default:
            args = (args[0], self.expanded(node))
        arguments = fx.node.map_arg((args, node.kwargs), hold)
        settings = {"target": target, "arguments": arguments}
        name = self.build.add("torch", tuple(inputs), size, self.name_of(node) + "." + node.name, settings, weights)
        if not self.of_images(node.meta.get("val")):
            return Opaque(name)
        if len(size) == 2 and -1 not in size:
            return self.build.tokens_of(name)
        return self.build.vector(name) if len(size) == 1 else self.build.map(name) if len(size) == 3 else Floats(name)

    def refuse_random_numbers(self, node: fx.Node) -> None:
        """Of ops that give some: dropout does in training only."""
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            return
        named = self.named(node)
        if named.get("train", named.get("training")) is not False and named.get("dropout_p") != 0:
            raise ValueError(f"capture: {node.name}: expected the same results for the same images, got random numbers")

    def shape_of(self, node: fx.Node) -> tuple[int, ...] | None:
        """With IMAGES for how many there are; None of no tensor, or one whose shape is known in the end only."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        images = getattr(getattr(self.batch, "node", None), "expr", None)
        sizes = [each if isinstance(each, int) else each.node.expr.subs(images, IMAGES) for each in value.shape]
        return tuple(map(int, sizes)) if all(isinstance(each, int) or each.is_Integer for each in sizes) else None

    def first_of(self, shape: Any) -> int:
        first = shape[0]
        return -1 if isinstance(first, fx.Node) and isinstance(self.values[first], _Batch) else first

    def expanded(self, node: fx.Node) -> list[Any]:
        """The sizes that it expands to: -1 of what stays, as the number of images does."""
        source, sizes = node.args[0].meta["val"].shape, list(node.args[1])  # type: ignore[union-attr, arg-type]
        before = [None] * (len(sizes) - len(source)) + [str(each) for each in source]
        after = [str(each) for each in node.meta["val"].shape]
        return [-1 if one == other else size for size, one, other in zip(sizes, before, after, strict=True)]

    def of_images(self, result: Any) -> bool:
        """Floats of each image, one image after another."""
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.ndim == 0:
            return False
        return str(result.shape[0]) == str(self.batch) and all(isinstance(each, int) for each in result.shape[1:])


def _name_of(target: Any) -> str:
    """Of an op, whichever of its overloads it is."""
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


class _Batch:
    """The number of images, wherever it is asked for."""


def _size_of(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(first, torch.Tensor):
        return ()
    return tuple(each if isinstance(each, int) else -1 for each in first.shape[1:])
