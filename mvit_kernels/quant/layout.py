"""Which nodes of a float program run in integers, and in which form each result is wanted and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mvit_kernels.graph import Node, Program
from mvit_kernels.ops.qattention import fits

from .config import QuantConfig

PRODUCTS = ("conv2d", "depthwise_conv2d", "linear")
NORMS = ("group_norm", "layer_norm")
_ATTENTION = ("separable_context", "separable_gate")
_SOFTMAX = ("patch_attention",)
_WRITE_STREAMS = ("conv2d", "depthwise_conv2d")
_WRITE_BYTES = ("pool_mixer", *NORMS)  # of which a stream is made where one begins with them
COPIES = ("cat", "resize", "pixel", "repeat")  # of bytes, or means of them: of one scale
_OTHERS = ("add", "avg_pool", "pool_mixer", "attention", "activation", *COPIES, *_ATTENTION, *_SOFTMAX)


class Layout:
    """What follows from a program and a configuration, before any scale is known.

    Forms of a result are "byte", "stream" (int16, with one scale for all that is added up) and "float".

    Attributes:
        integer: names of the nodes that run in integers.
        streams: name -> number of its stream, for every result that is kept in one.
        shared: name -> number of its group, for results whose bytes must have the same scale and zero-point as others.
        scores: names of maps whose first channel are scores and whose others are values.
        projections: names of maps whose channels are queries, keys and values, a third each.
    """

    def __init__(self, program: Program, config: QuantConfig, floating: Collection[str] = ()) -> None:
        """floating: names of nodes that run in float32 whatever the configuration says."""
        self.program, self.users = program, program.users()
        self.integer = {node.name for node in program if node.name not in floating and self._can(node, config)}
        while True:
            self.scores, self.projections = self._taken_by(_ATTENTION), self._taken_by(_SOFTMAX)
            self.streams = self._streams()
            wrong = self._broken_attention() | {
                name for name in self.integer & set(self.streams) if program[name].kind not in (*_WRITE_STREAMS, *_WRITE_BYTES)
            }
            if not wrong:
                break
            self.integer -= wrong
        self.shared = self._shared()

    @staticmethod
    def _can(node: Node, config: QuantConfig) -> bool:
        if config.skips(node.name) or config.activation_bits_of(node.name) is None:
            return False
        if node.kind in NORMS:
            return node.kind == "layer_norm" or not node.weights  # gamma and beta belong into what follows, where one thing does
        if node.kind in _SOFTMAX and not _softmax_fits(node):
            return False
        if node.kind == "attention" and not _attention_fits(node):
            return False
        return node.kind in PRODUCTS or node.kind in _OTHERS

    def _taken_by(self, kinds: Collection[str]) -> set[str]:
        return {node.inputs[0] for node in self.program if node.kind in kinds and node.name in self.integer}

    def _broken_attention(self) -> set[str]:
        """Attention takes bytes of which some channels have scales of their own: all that take them are such attention in integers (as
        context and gate, which take the same), or none is."""
        broken: set[str] = set()
        for names, kinds in ((self.scores, _ATTENTION), (self.projections, _SOFTMAX)):
            for name in names:
                users = self.users[name]
                written = name not in self.integer or self.program[name].kind == "conv2d"
                if not (written and all(self._takes_first(user, name, kinds) for user in users)):
                    broken |= {user for user in self.integer.intersection(users) if self.program[user].kind in kinds}
        return broken

    def _takes_first(self, user: str, name: str, kinds: Collection[str]) -> bool:
        node = self.program[user] if user in self.integer else None
        return node is not None and node.kind in kinds and node.inputs[0] == name and name not in node.inputs[1:]

    def _streams(self) -> dict[str, int]:
        """What integer norms take, and whatever is added to it or it is added to."""
        pairs, norms = [], []
        for node in self.program:
            if node.name in self.integer and node.settings.get("residual"):
                pairs.append((node.name, node.inputs[-1]))
            if node.name in self.integer and node.kind in NORMS:
                norms.append(node.inputs[0])
        groups = _groups([*pairs, *((name, name) for name in norms)])
        kept = {groups[name] for name in norms}
        return {name: group for name, group in groups.items() if group in kept}

    def _shared(self) -> dict[str, int]:
        pairs = []
        for node in self.program:
            if node.name not in self.integer:
                continue
            if node.settings.get("second"):
                pairs.append((node.inputs[0], node.inputs[1]))
            if node.kind in COPIES:
                pairs += [(node.name, name) for name in node.inputs]
        return _groups(pairs)

    # --- forms ---

    def wanted(self, node: Node) -> tuple[str, ...]:
        """The form in which a node takes each of its inputs."""
        if node.name not in self.integer:
            return ("float",) * len(node.inputs)
        if node.kind in NORMS:
            return ("stream",)
        if node.kind == "separable_gate":
            return ("byte", "float")
        if node.settings.get("residual"):
            return (*("byte",) * (len(node.inputs) - 1), "stream" if node.name in self.streams else "byte")
        return ("byte",) * len(node.inputs)

    def wanted_of(self, name: str) -> set[str]:
        """All the forms in which a result is taken; results of the program are floats."""
        forms = {"float"} if "" in self.users[name] else set()
        for user in {user for user in self.users[name] if user}:
            node = self.program[user]
            forms |= {form for each, form in zip(node.inputs, self.wanted(node), strict=True) if each == name}
        return forms

    def written(self, node: Node) -> str:
        """The form in which a node writes its result: floats where a kernel can and somebody outside, or nobody else, takes them."""
        if node.name not in self.integer:
            return "float"
        if node.settings.get("activation") == "relu6":
            return "byte"
        wanted = self.wanted_of(node.name)
        floats = node.kind in (*PRODUCTS, "avg_pool", "separable_context")
        if floats and ("" in self.users[node.name] or wanted <= {"float"}):
            return "float"
        if "stream" in wanted and node.kind not in _WRITE_BYTES:
            return "float" if "activation" in node.settings else "stream"
        return "byte"

    def by_channel(self, name: str) -> bool:
        """Whether the bytes of a result may have a scale and a zero-point for each channel: a product writes them, and products alone take
        them, as what they multiply. Resizes between keep channels apart."""
        group = self.shared.get(name)
        members = [name] if group is None else [each for each, other in self.shared.items() if other == group]
        writers = [each for each in members if self.program[each].kind != "resize"]
        if len(writers) != 1 or self.program[writers[0]].kind not in PRODUCTS:
            return False
        for each in members:
            if each not in self.integer or each in self.scores or each in self.streams or self.written(self.program[each]) != "byte":
                return False
            users = [user for user in self.users[each] if user not in members]
            if not all(user in self.integer and self._multiplies(self.program[user], each) for user in users):
                return False
        return any(self.users[each] for each in members)

    @staticmethod
    def _multiplies(user: Node, name: str) -> bool:
        return user.kind in PRODUCTS and user.inputs[0] == name and name not in user.inputs[1:]

    def key(self, name: str, form: str) -> str:
        """The name under which the quantization of a form of a result is kept."""
        return f"{name}.bytes" if form == "byte" and name in self.streams else name

    def needed(self) -> dict[str, tuple[str, str]]:
        """key -> (name, form) of every form that has a scale."""
        needed = {}
        for node in self.program:
            for form in sorted({*self.wanted_of(node.name), self.written(node)} - {"float"}):
                needed[self.key(node.name, form)] = (node.name, form)
        return needed


def _softmax_fits(node: Node) -> bool:
    """Whether the kernel takes it: sums over the pixels of a phase fit in int32, and the largest score weighs most."""
    (_, height, width), (patch_h, patch_w) = node.size, node.settings["patch"]
    return node.settings["scale"] > 0 and height * width // (patch_h * patch_w) * 255 * 255 < 2**31 - 1


def _attention_fits(node: Node) -> bool:
    """Whether the kernel takes it: sums of products of bytes are exact in float32."""
    settings = node.settings
    return settings["scale"] > 0 and fits(settings["depth"], settings["keys"])


def _groups(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Names that pairs connect have the same number."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    for a, b in pairs:
        parent[root(b)] = root(a)
    roots = {name: root(name) for name in parent}
    number = {name: i for i, name in enumerate(dict.fromkeys(roots.values()))}
    return {name: number[each] for name, each in roots.items()}
