"""Which nodes of a program one kernel computes together, on any device: the attention and the feed-forward half of a transformer layer,
inverted residuals, and norms inside the products behind them."""

from __future__ import annotations

from collections.abc import Callable

from mvit_kernels.graph import Node, Program


class Blocks:
    """What a program divides into. A lowering has a method for each name of a block.

    Attributes:
        groups: last node of a block -> its name ("attention", "mlp", "inverted") and all its nodes in order.
        grouped: the nodes of all blocks.
        absorbed: norms that nobody but products that do it themselves takes.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.users = program.users()
        self.groups: dict[str, tuple[str, tuple[Node, ...]]] = {}
        self.grouped: set[str] = set()
        for node in program:
            for block, find in _FINDERS.items():
                nodes = None if node.name in self.grouped else find(self, node)
                if nodes is not None:
                    self.group(block, nodes)
        self.absorbed = {node.name for node in program if node.kind in ("group_norm", "layer_norm") and self._absorbs(node)}

    def group(self, block: str, nodes: tuple[Node, ...]) -> None:
        self.groups[nodes[-1].name] = block, nodes
        self.grouped.update(each.name for each in nodes)

    def only_user(self, name: str) -> Node | None:
        users = self.users[name]
        return self.program[users[0]] if len(users) == 1 and users[0] else None

    def _absorbs(self, norm: Node) -> bool:
        users = self.users[norm.name]
        return (
            norm.name not in self.grouped
            and not norm.weights
            and bool(users)
            and all(each and is_pointwise(self.program[each]) and each not in self.grouped for each in users)
            and all(self.program[each].inputs.count(norm.name) == 1 and self.program[each].inputs[0] == norm.name for each in users)
        )


def is_pointwise(node: Node) -> bool:
    """A 1x1 convolution of every pixel of one map."""
    return node.kind == "conv2d" and kernel_of(node) == 1 and node.settings["stride"] == 1 and "second" not in node.settings


def kernel_of(node: Node) -> int:
    return node.weights["weight"].shape[-1]


def activation_of(node: Node) -> str:
    return node.settings.get("activation", "none")


def rows_of(size: tuple[int, ...]) -> tuple[int, int]:
    """(channels, pixels); of a vector one pixel."""
    return size[0], size[1] * size[2] if len(size) == 3 else 1


# --- blocks, found by their first node ---


def _find_attention(low: Blocks, norm: Node) -> tuple[Node, ...] | None:
    nodes = None if norm.kind != "group_norm" or norm.weights else _attention_behind(low, norm, "separable", _is_plain_pointwise)
    return nodes if nodes is not None and adds(nodes[-1], nodes[-2], norm.inputs[0]) else None


def find_qattention(low: Blocks, norm: Node) -> tuple[Node, ...] | None:
    """The same of an integer stream, in bytes between."""
    if norm.kind != "qnorm" or norm.weights or norm.settings["norm"] != "group":
        return None
    nodes = _attention_behind(low, norm, "qseparable", _is_plain_qpointwise)
    if nodes is None:
        return None
    _, conv, context, key, gate, out = nodes
    forms = tuple(each.settings["out"] for each in (conv, context, key))
    if forms != ("uint8", "uint8", "float32") or not is_qpointwise(out) or out.settings["out"] != "int16":
        return None
    if _of(context, "x_scale", "x_zero_point", "patch") != _of(norm, "out_scale", "out_zero_point") + _of(gate, "patch"):
        return None
    of_values = conv.weights.get("out_zero_point")
    if of_values is None or bool((of_values[1:] != gate.settings["v_zero_point"]).any()):
        return None
    return nodes if out.inputs == (gate.name, norm.inputs[0]) else None


def _of(node: Node, *names: str) -> tuple[object, ...]:
    return tuple(node.settings[name] for name in names)


def _attention_behind(low: Blocks, norm: Node, kind: str, is_plain: Callable[[Node], bool]) -> tuple[Node, ...] | None:
    """Norm, projection, context, its projection and gate, and who takes the last alone. is_plain: of projections."""
    if len(low.users[norm.name]) != 2 or "" in low.users[norm.name]:
        return None
    conv, context = (low.program[name] for name in low.users[norm.name])
    if not is_plain(conv) or context.kind != f"{kind}_context" or context.inputs != (conv.name, norm.name):
        return None
    key = low.only_user(context.name)
    gate = None if key is None else low.only_user(key.name)
    out = None if gate is None else low.only_user(gate.name)
    if key is None or gate is None or out is None or not is_plain(key) or gate.kind != f"{kind}_gate":
        return None
    if gate.inputs != (conv.name, key.name) or sorted(low.users[conv.name]) != sorted((context.name, gate.name)):
        return None
    return norm, conv, context, key, gate, out


def _find_mlp(low: Blocks, norm: Node) -> tuple[Node, ...] | None:
    if norm.kind not in ("group_norm", "layer_norm") or norm.weights:
        return None
    first = low.only_user(norm.name)
    if first is None or not is_pointwise(first) or "residual" in first.settings or "dynamic" in first.settings:
        return None
    second = low.only_user(first.name)
    return (norm, first, second) if second is not None and adds(second, first, norm.inputs[0]) else None


def _find_inverted(low: Blocks, first: Node) -> tuple[Node, ...] | None:
    depthwise: Node | None = first
    nodes: tuple[Node, ...] = ()
    if is_pointwise(first) and _acts(first) and "residual" not in first.settings:
        source = low.program[first.inputs[0]]
        if source.kind in ("group_norm", "layer_norm") and not source.weights:
            return None  # the product takes the norm
        depthwise, nodes = low.only_user(first.name), (first,)
    if depthwise is None or depthwise.kind != "depthwise_conv2d" or activation_of(depthwise) != activation_of(first):
        return None
    if not nodes and low.program[depthwise.inputs[0]].kind == "repeat":
        return None
    reduce = low.only_user(depthwise.name)
    if reduce is None or not is_pointwise(reduce) or _acts(reduce) or reduce.inputs[0] != depthwise.name:
        return None
    if "residual" in reduce.settings and (not nodes or reduce.inputs[-1] != first.inputs[0] or depthwise.settings["stride"] != 1):
        return None
    return (*nodes, depthwise, reduce)


def find_qinverted(low: Blocks, first: Node) -> tuple[Node, ...] | None:
    """The same of bytes, with an expansion. A residual is any map."""
    if not is_qpointwise(first) or first.settings["out"] != "uint8" or first.settings.get("residual"):
        return None
    depthwise = low.only_user(first.name)
    if depthwise is None or depthwise.kind != "qdepthwise_conv2d" or depthwise.settings["out"] != "uint8":
        return None
    reduce = low.only_user(depthwise.name)
    if reduce is None or not is_qpointwise(reduce) or reduce.inputs[0] != depthwise.name:
        return None
    return first, depthwise, reduce


def find_qmlp(low: Blocks, norm: Node) -> tuple[Node, ...] | None:
    """The feed-forward half of a layer in integers: its norm has no weight and bias, and its activation is a curve."""
    if norm.kind != "qnorm" or norm.weights:
        return None
    first = low.only_user(norm.name)
    if first is None or not is_qpointwise(first) or first.settings["out"] != "uint8" or first.settings.get("form") != "curve":
        return None
    second = low.only_user(first.name)
    if second is None or not is_qpointwise(second) or second.settings["out"] != "int16":
        return None
    return (norm, first, second) if second.inputs == (first.name, norm.inputs[0]) else None


def find_qnormed(low: Blocks, norm: Node) -> tuple[Node, ...] | None:
    """A norm in integers, without weight and bias, and the 1x1 convolution to bytes that is all that takes it."""
    product = low.only_user(norm.name) if norm.kind == "qnorm" and not norm.weights else None
    if product is None or not is_qpointwise(product) or product.settings["out"] != "uint8" or product.settings.get("residual"):
        return None
    return norm, product


def find_qdynamic(low: Blocks, product: Node) -> tuple[Node, ...] | None:
    """A convolution of bytes to floats, the dynamic ReLU that is all that takes these, and bytes of them."""
    if not (is_qpointwise(product) or product.kind == "qdepthwise_conv2d") or product.settings.get("residual"):
        return None
    relu = low.only_user(product.name)
    if product.settings["out"] != "float32" or "activation" in product.settings or relu is None or relu.kind != "dynamic_relu":
        return None
    to_bytes = low.only_user(relu.name)
    if relu.inputs[0] != product.name or relu.inputs[1] == product.name or to_bytes is None or to_bytes.kind != "quantize":
        return None
    return (product, relu, to_bytes) if to_bytes.settings["out"] == "uint8" and "scale" in to_bytes.settings else None


def is_qpointwise(node: Node) -> bool:
    """A 1x1 convolution of every pixel of one map of bytes."""
    return node.kind == "qconv2d" and kernel_of(node) == 1 and node.settings["stride"] == 1 and not node.settings.get("second")


def _is_plain_qpointwise(node: Node) -> bool:
    return is_qpointwise(node) and not node.settings.get("residual") and "activation" not in node.settings and "table" not in node.weights


def adds(node: Node, product_of: Node, residual: str) -> bool:
    """A 1x1 convolution of one node's result to which that of another is added."""
    plain = is_pointwise(node) and not _acts(node)
    return plain and "residual" in node.settings and node.inputs == (product_of.name, residual)


def _is_plain_pointwise(node: Node) -> bool:
    return is_pointwise(node) and not _acts(node) and "residual" not in node.settings


def _acts(node: Node) -> bool:
    """Whether it has an activation, or one by slopes (which is there for processors only)."""
    return "activation" in node.settings or "dynamic" in node.settings


_FINDERS: dict[str, Callable[[Blocks, Node], tuple[Node, ...] | None]] = {
    "attention": _find_attention, "mlp": _find_mlp, "inverted": _find_inverted,
}  # fmt: skip
