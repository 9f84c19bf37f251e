"""What each layer by itself costs: the network in floats, but for one layer that takes quantized values and has a rounded weight."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from tqdm import tqdm

from mvit_kernels.files import replace_file
from mvit_kernels.graph import Node, Program, run
from mvit_kernels.graph.interpreter import evaluate
from mvit_kernels.messages import shown

from .affine import fake_quantize
from .equalization import migrated
from .hessian import divergence
from .program import integer_program, settled
from .representation import Representation
from .rounding import is_rounded, with_rounded_weight
from .samples import PIXELS
from .simulated import SOFTMAX
from .softmaxes import key_of, with_softmax

if TYPE_CHECKING:
    from .model import QuantizedModel

Tensor = torch.Tensor
_SHOWN = 40
_FAR = 0.5  # of the square of weights: the rounding of six bits is below 0.01


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer quantized, all others in floats.

    Attributes:
        node: its name; kind: what it is.
        sqnr: of its result, in dB: 10 log10 of the sum of squares of exact values over that of errors.
        effect: the mean over images of the divergence of class probabilities (of other results half the squared error).
        drop: points of top-1 lost; against the float network's predictions where there are no labels; None where results are no logits.
    """

    node: str
    kind: str
    sqnr: float
    effect: float
    drop: float | None


@dataclass(frozen=True)
class Sensitivity:
    """Layers, those with the largest effect first. A table when printed.

    Attributes:
        images: how many were looked at.
        drop: points of top-1 that the whole quantized network loses on them, or None.
        target, keep_float: where it was asked for, the points that may be lost, and the fewest of the first layers that stay float for it.
    """

    rows: tuple[LayerSensitivity, ...]
    images: int
    drop: float | None
    target: float | None = None
    keep_float: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; infinite ratios are null."""
        rows = [asdict(row) | {"sqnr": row.sqnr if math.isfinite(row.sqnr) else None} for row in self.rows]
        return {
            "rows": rows, "images": self.images, "drop": self.drop, "target": self.target, "keep_float": list(self.keep_float),
        }  # fmt: skip

    def __str__(self) -> str:
        width = max((len(row.node) for row in self.rows), default=5)
        lines = [f"{'layer'.ljust(width)}  sqnr, dB    effect  drop"]
        for row in self.rows[:_SHOWN]:
            drop = "-" if row.drop is None else f"{row.drop:.1f}"
            lines.append(f"{row.node.ljust(width)}  {row.sqnr:8.1f}  {row.effect:8.2e}  {drop:>4}")
        if self.target is not None:
            lines.append(f"at most {self.target} points lost: keep in floats {', '.join(self.keep_float) or 'nothing'}")
        return "\n".join(lines)

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict`."""
        replace_file(Path(path), lambda temporary: temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8"))

    def save_picture(self, path: str | Path) -> None:
        """Draw the effect of each layer, in the order of the largest. Raises ImportError without matplotlib, ValueError for
        a suffix that it does not draw."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Sensitivity: save_picture: expected matplotlib (pip install 'mvit_kernels[demo]'), got none") from error
        shown = self.rows[:_SHOWN]
        figure = Figure(figsize=(9, 1 + 0.22 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.barh([row.node for row in shown], [max(row.effect, 1e-12) for row in shown], color="#4c72b0")
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("divergence of class probabilities when this layer alone is quantized")
        suffix, kinds = Path(path).suffix[1:] or "png", sorted(figure.canvas.get_supported_filetypes())
        if suffix.lower() not in kinds:
            raise ValueError(f"Sensitivity: save_picture: path: expected a suffix among .{', .'.join(kinds)}, got {str(path)!r}")
        replace_file(Path(path), lambda temporary: figure.savefig(temporary, format=suffix, dpi=120))


def sensitivity(model: QuantizedModel, images: Iterable[Any], *, target: float | None = None, progress: bool = True) -> Sensitivity:
    """How much each layer of a quantized network costs, on some images.

    Args:
        model: of `mk.quantize` or `mk.load_quantized`.
        images: batches (B, C, H, W) of the size of the calibration, or (batch, labels), whose labels are then what is right.
        target: points of top-1 that may be lost. The layers are then left in floats one after the other, those with the largest effect
            first, until the network loses no more; a bisection, and measured.

    Raises:
        TypeError, ValueError: another target, no images, or others than of the calibration's size.
    """
    if isinstance(images, Tensor) or not isinstance(images, Iterable):
        got = "a tensor" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"sensitivity: images: expected an iterable of batches, got {got}")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 <= target <= 100):
        raise ValueError(f"sensitivity: target: expected points of top-1 that may be lost, from 0 to 100, or None, got {shown(target)}")
    study = _Study(model)
    for batch in tqdm(images, desc="sensitivity", unit="batch", leave=False, disable=None if progress else True):
        x, labels = (*batch, None)[:2] if isinstance(batch, (tuple, list)) and batch else (batch, None)
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"sensitivity: images: expected batches of float images (B, C, H, W), got {got}")
        if not bool(x.isfinite().all()):
            raise ValueError("sensitivity: images: expected finite values, got NaN or infinity")
        if labels is not None and not _are_labels(labels, len(x)):
            got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else shown(labels)
            raise ValueError(f"sensitivity: labels: expected an integer for each of {len(x)} images, got {got}")
        study.look(x, labels)
    if not study.images:
        raise ValueError("sensitivity: images: expected at least one, got none")
    rows = tuple(sorted(study.rows(), key=lambda row: -row.effect))
    drop = study.drop_with(())
    keep: tuple[str, ...] = ()
    if target is not None:
        if drop is None:
            raise ValueError("sensitivity: target: expected a network that gives logits, got one with other results")
        keep = study.kept(tuple(row.node for row in rows), target)
    return Sensitivity(rows, study.images, drop, target, keep)


def _are_labels(labels: Any, count: int) -> bool:
    kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return isinstance(labels, Tensor) and labels.dtype in kinds and tuple(labels.shape) == (count,)


class _Study:
    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self.program: Program = migrated(model._float_program(model.size), model.migration)
        self.layout, self.found = settled(self.program, model.representations, model.config)
        self.nodes = {node.name: self._quantized(node) for node in self.program if self._is_layer(node)}
        self._check_weights()
        self.after = _after(self.program)
        self.images = 0
        self.signal, self.noise, self.effect, self.lost = ({name: 0.0 for name in self.nodes} for _ in range(4))
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def _check_weights(self) -> None:
        """A file of `save_quantized` goes into any network of the same structure; here its float weights are what integers are held to."""
        pairs = [
            (self.program[name].weights["weight"], node.weights["weight"]) for name, node in self.nodes.items() if "weight" in node.weights
        ]
        far = [float((own - rounded).square().sum()) > _FAR * float(own.square().sum()) for own, rounded in pairs]
        if far and sum(far) > len(far) / 2:
            raise ValueError(
                "sensitivity: model: expected the float weights that were quantized beside the integers, got those of another network: give"
                " load_quantized the one that was quantized"
            )

    def _is_layer(self, node: Node) -> bool:
        return node.name in self.layout.integer or is_rounded(node, self.model.config)

    def _quantized(self, node: Node) -> Node:
        softmax = self.found.get(key_of(node.name)) if node.name in self.layout.integer else None
        if isinstance(softmax, SOFTMAX):
            return with_softmax(node, softmax)
        if not is_rounded(node, self.model.config):
            return node
        source = self.found.get(self.layout.key(node.inputs[0], "byte")) if node.name in self.layout.integer else None
        return with_rounded_weight(node, self.model.layers[node.name], source)

    @torch.no_grad()
    def look(self, x: Tensor, labels: Tensor | None) -> None:
        size = tuple(x.shape[1:])
        if size != self.model.size:
            raise ValueError(f"sensitivity: images: expected a size of {self.model.size}, that of the calibration, got {size}")
        step = max(1, PIXELS // (size[1] * size[2]))
        for i in range(0, len(x), step):
            own = x[i : i + step].to("cpu", torch.float32, copy=True)  # `seen` keeps it, and a loader may fill the memory of x again
            self._look(own, None if labels is None else labels[i : i + step].to("cpu", copy=True))

    def _look(self, x: Tensor, labels: Tensor | None) -> None:
        values: dict[str, Tensor] = {}
        exact = run(self.program, x, lambda node, y: values.__setitem__(node.name, y))
        logits = _logits(exact)
        right = None if logits is None else logits.argmax(1) if labels is None else labels
        self.images += x.shape[0]
        self.seen.append((x, right))
        for name, node in self.nodes.items():
            forms = self.layout.wanted(self.program[name])
            inputs = [self._taken(each, form, values[each]) for each, form in zip(node.inputs, forms, strict=True)]
            y = evaluate(node, inputs)
            self.signal[name] += float(values[name].square().sum())
            self.noise[name] += float((y - values[name]).square().sum())
            got = self._finish(name, y, values)
            self.effect[name] += float(divergence(got, exact))
            if right is not None and logits is not None:
                self.lost[name] += float((logits.argmax(1) == right).sum() - (_logits(got).argmax(1) == right).sum())  # type: ignore[union-attr]

    def _taken(self, name: str, form: str, x: Tensor) -> Tensor:
        quantizer: Representation | None = None if form == "float" else self.found.get(self.layout.key(name, form))
        return x if quantizer is None else fake_quantize(quantizer, x)

    def _finish(self, name: str, y: Tensor, values: dict[str, Tensor]) -> Any:
        """The program's results if the result of a node is y."""
        changed = {name: y}
        for each in self.after[name]:
            node = self.program[each]
            changed[each] = evaluate(node, [changed.get(other, values[other]) for other in node.inputs])
        results = [changed.get(each, values[each]) for each in self.program.outputs]
        return results[0] if self.program.structure is None else pytree.tree_unflatten(results, self.program.structure)

    def rows(self) -> list[LayerSensitivity]:
        scored = self.seen[0][1] is not None
        return [
            LayerSensitivity(
                name, self.program[name].kind,
                10 * math.log10(self.signal[name] / self.noise[name]) if self.noise[name] and self.signal[name] else math.inf,
                self.effect[name] / self.images, 100 * self.lost[name] / self.images if scored else None,
            )
            for name in self.nodes
        ]  # fmt: skip

    @torch.no_grad()
    def drop_with(self, floating: tuple[str, ...]) -> float | None:
        """Points that the network loses with some layers in floats."""
        model = self.model
        config = replace(model.config, skip=(*model.config.skip, *map(glob.escape, floating)))
        layers = {name: layer for name, layer in model.layers.items() if name not in floating}
        program = integer_program(self.program, model.representations, config, layers)
        lost = 0.0
        for x, right in self.seen:
            exact, got = _logits(run(self.program, x)), _logits(run(program, x, backend=None))
            if exact is None or got is None or right is None:
                return None
            lost += float((exact.argmax(1) == right).sum() - (got.argmax(1) == right).sum())
        return 100 * lost / self.images

    def kept(self, order: tuple[str, ...], target: float) -> tuple[str, ...]:
        low, high = 0, len(order)  # with `high` in floats it is enough
        while low < high:
            middle = (low + high) // 2
            if (self.drop_with(order[:middle]) or 0.0) <= target:
                high = middle
            else:
                low = middle + 1
        return order[:high]


def _after(program: Program) -> dict[str, list[str]]:
    """The nodes that depend on each, in order."""
    users = program.users()
    order = {node.name: i for i, node in enumerate(program)}
    found: dict[str, set[str]] = {}
    for node in reversed(list(program)):
        found[node.name] = {name for user in users[node.name] if user for name in (user, *found[user])}
    return {name: sorted(each, key=order.__getitem__) for name, each in found.items()}


def _logits(y: Any) -> Tensor | None:
    leaves = [each for each in pytree.tree_leaves(y) if isinstance(each, Tensor)]
    return leaves[0] if len(leaves) == 1 and leaves[0].ndim == 2 and leaves[0].shape[1] > 1 else None
