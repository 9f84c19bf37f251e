"""A quantized network: an integer program for each image size, run by the interpreter."""

from __future__ import annotations

import copy
import difflib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mvit_kernels.graph import Program, capture, check_model, optimize, run
from mvit_kernels.messages import shown

from .alignment import aligned, rewritten_otherwise
from .calibrate import fingerprint, record
from .carried import carries_quantizers
from .config import QuantConfig
from .decision import Decision
from .equalization import migrated, shared_factors
from .layout import Layout
from .methods import METHODS, Task
from .methods.base import decisions
from .program import integer_program, simulation_only
from .report import QuantReport, report_of
from .representation import Representation
from .rounding import Layer, is_rounded, rounded
from .share import ALONE, share_of_group
from .state import State, run_of

if TYPE_CHECKING:
    from .sensitivity import Sensitivity

Tensor = torch.Tensor
MOST_SIZES = 16  # of images, beside that of the calibration, whose programs are at hand


class QuantizedModel(nn.Module):
    """What `mk.quantize`, `mk.convert` and `mk.load_quantized` give: called like the float model, with float images (B, C, H, W).

    Results are float32, in the structure in which the float model returns them. It runs on the CPU, and has no gradients. Bytes know no
    NaN: of images that are not finite, results are finite and mean nothing. What all is integers has the same bits here, converted and
    compiled; floats between (`report` shows them) are added in another order there, and an integer behind them may be another.

    Quantizers that no kernel has (`simulation_only`) run in floats, and with them it can only be called: to convert or compile it is
    refused. Images of another size than those of the calibration are taken too: the network is captured anew and takes the scales of
    results by their names; results that exist at that size only and share no scale with others stay floats (`report(size)` shows them).

    Attributes:
        config: the `QuantConfig`.
        size: (C, H, W) of the calibration images.
        representations: name of a result -> `Byte`, `Channels`, `Stream`, `Scores` or `Projection`, or what is simulated. Programs are made
            of these and of `layers` once for each size.
        layers: name of a node -> its weights: integers, scales and biases of convolutions and linear maps, floats of what is skipped.
        decisions: what the method decided about each of these, and why.
        calibration: how many images there were, and a fingerprint of them.
        migration: factors of channels that were moved between layers before, by the name of the seam (`quant/equalization.py`).
        backend: which runs integer nodes: "reference", or None, the fastest.
    """

    def __init__(
        self, model: nn.Module, program: Program, config: QuantConfig, representations: Mapping[str, Representation],
        layers: Mapping[str, Layer], *, backend: str | None = "reference", decisions: tuple[Decision, ...] = (),
        migration: Mapping[str, Tensor] | None = None, calibration: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """model: the float model, which nothing else may change; program: what it is at the size of the calibration, rewritten."""
        super().__init__()
        self._source = (model,)  # not a submodule: its parameters are none of this model's
        _, height, width = program["input"].size
        self.config, self.size, self.backend = config, (program["input"].size[0], height, width), backend
        self._calibrated: Program | None = program
        self.representations, self.layers = dict(representations), {name: dict(layer) for name, layer in layers.items()}
        self.decisions, self.migration, self.calibration = decisions, dict(migration or {}), dict(calibration or {})
        self._programs: dict[tuple[int, int, int], Program] = {}
        self._lock = threading.RLock()
        self.eval()

    def forward(self, x: Tensor) -> Any:
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or x.shape[1] != self.size[0] or 0 in x.shape[2:]:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"QuantizedModel: x: expected float images (B, {self.size[0]}, H, W), got {got}")
        if not x.is_cpu:
            raise ValueError(f"QuantizedModel: x: expected images on the CPU, got {x.device}")
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return run(self.program((x.shape[1], x.shape[2], x.shape[3])), x.detach().float(), backend=self.backend)

    def program(self, size: tuple[int, int, int] | None = None) -> Program:
        """The integer program for images (C, H, W), by default of the calibration's size; made once for each size."""
        size = self.size if size is None else size
        found = self._programs.get(size)
        if found is None:
            with self._lock:
                found = self._programs.get(size)
                if found is None:
                    found = self._make(size)
                    others = [each for each in self._programs if each != self.size]
                    if size != self.size and len(others) >= MOST_SIZES:
                        del self._programs[others[0]]
                    self._programs[size] = found
        return found

    def report(self, size: tuple[int, int, int] | None = None) -> QuantReport:
        """What each node of `program(size)` is, and what was decided at calibration. Raises ValueError for another size than (C, H, W)."""
        if size is not None and not _is_size(size, self.size[0]):
            expected = f"({self.size[0]}, height, width)"
            raise ValueError(f"QuantizedModel: report: expected a size (channels, height, width), as {expected}, got {shown(size)}")
        return report_of(self.program(size), self.decisions)

    def simulation_only(self, size: tuple[int, int, int] | None = None) -> dict[str, str]:
        """Why, by the names of the nodes of `program(size)` that no kernel runs."""
        return simulation_only(self.program(size))

    def require_kernels(self, op: str, size: tuple[int, int, int] | None = None) -> None:
        """Raises ValueError, in the name of `op`, if there are any."""
        simulated = self.simulation_only(size)
        if simulated:
            name, reason = next(iter(simulated.items()))
            raise ValueError(
                f"{op}: model: expected quantizers that kernels run, got {len(simulated)} nodes by {self.config.method!r} that can only be"
                f" simulated, as {name}: {reason}"
            )

    def sensitivity(self, images: Iterable[Any], *, target: float | None = None, progress: bool = True) -> Sensitivity:
        """What each layer by itself costs, and which ones to keep in floats: see `quant/sensitivity.py`."""
        from .sensitivity import sensitivity

        return sensitivity(self, images, target=target, progress=progress)

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Raises TypeError: of parameters there are none, and a file without them would have lost all."""
        raise TypeError("QuantizedModel: state_dict: expected mk.save_quantized(model, path), which writes all of it")

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """Raises TypeError, as `state_dict`."""
        raise TypeError("QuantizedModel: load_state_dict: expected mk.load_quantized(model, path)")

    def extra_repr(self) -> str:
        return f"{self.config}, size={self.size}, backend={self.backend!r}"

    def train(self, mode: bool = True) -> QuantizedModel:
        """Stays in evaluation: there is nothing to train."""
        return super().train(False)

    def _float_program(self, size: tuple[int, int, int]) -> Program:
        if size != self.size:
            return optimize(capture(self._source[0], size, "quantize"))
        if self._calibrated is None:  # after unpickling
            self._calibrated = optimize(capture(self._source[0], size, "quantize"))
        return self._calibrated

    def _make(self, size: tuple[int, int, int]) -> Program:
        program = self._float_program(size)
        changed: set[str] = set()
        if size != self.size:
            calibrated = self._float_program(self.size)
            program = aligned(program, calibrated)
            factors, apart = shared_factors(program, calibrated, self.migration)
            program = migrated(program, factors)
            changed = rewritten_otherwise(program, migrated(calibrated, self.migration)) | apart
        else:
            program = migrated(program, self.migration)
        layers = {name: layer for name, layer in self.layers.items() if name not in changed}
        program = with_float_weights(program, layers, self.config)
        known = {key: value for key, value in self.representations.items() if key.removesuffix(".bytes") not in changed}
        return integer_program(program, known, self.config, layers, changed)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"} | {"_programs": {}, "_calibrated": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()


def _is_size(size: Any, channels: int) -> bool:
    whole = isinstance(size, tuple) and len(size) == 3 and all(type(each) is int and each > 0 for each in size)
    return whole and bool(size[0] == channels)


def with_float_weights(program: Program, layers: Mapping[str, Layer], config: QuantConfig) -> Program:
    """With the weights of `layers` at nodes whose weights are not rounded."""
    kept = {node.name: node for node in program if node.weights and node.name in layers and not is_rounded(node, config)}
    return program.rewritten({name: replace(node, weights=layers[name]) for name, node in kept.items()})


def quantize(
    model: nn.Module, calibration: Any, config: QuantConfig | None = None, *, loss: Any = None, progress: bool = True,
    distributed: bool = False, state: str | os.PathLike[str] | None = None,
) -> QuantizedModel:  # fmt: skip
    """A quantized network, after training: integers from the first convolution to the last linear map, as far as kernels go.

    Args:
        model: in evaluation; one of ours, timm's, transformers' or any network that `torch.export` takes. It is left as it is.
        calibration: an iterable of batches (B, C, H, W) of float images or of (batch, target), all of one image size, or a function that
            calls the model it is given: what it is called with is recorded.
        config: a `QuantConfig`; by default int8, by "qhyvit".
        loss: for methods that weigh errors by their effect ("qhyvit", "best", "ptq4vit"): a function of (results with quantizers, exact
            results) to one number, a sum over images, of which the gradient is taken. By default the divergence of class probabilities;
            half the squared error of results that are no logits.
        progress: a progress bar, on a terminal.
        distributed: every process of the default group of `torch.distributed` calls this with the same images, looks at a share of them,
            and gets the network that one process alone would get.
        state: a folder, made if there is none, for what is found on the way. An interrupted quantization that is called with it again goes
            on there, to the network that one without interruption gives (on the same machine, with as many threads).

    Returns:
        A module that is called like the model. It runs plain torch, exact to the bit; `mk.convert` gives one on the integer kernels.

    Raises:
        TypeError, ValueError: bad arguments, no images, values that are not finite, a model that cannot be captured; a state of another
            model, of other images, of another configuration or version.
        OSError: the state cannot be read or written.
    """
    config = QuantConfig() if config is None else config
    _check(model, config, loss)
    batches = record(model, calibration)
    own = copy.deepcopy(model)
    size = (batches[0].shape[1], batches[0].shape[2], batches[0].shape[3])
    program = optimize(capture(own, size, "quantize"))
    if carries_quantizers(program):
        raise ValueError("quantize: model: expected a model without quantizers of its own, got one that mk.compile takes as it is")
    _check_program(program, config)
    layout = Layout(program, config)
    seen: dict[str, Any] = {"images": sum(batch.shape[0] for batch in batches), "fingerprint": fingerprint(batches)}
    share = share_of_group(seen["fingerprint"]) if distributed else ALONE
    kept = State(state, run_of(program, batches, seen["fingerprint"], config, loss) if state is not None else None, share)
    task = Task(layout, batches, config, loss, progress, share, kept)
    found = METHODS[config.method](task)
    task = found.task or task
    layout = task.layout
    layers: dict[str, Layer] = {node.name: node.weights for node in layout.program if node.weights}
    layers |= found.layers or rounded(layout, found.representations, config, found.stretch)
    made = decisions(task, found, layers)
    return QuantizedModel(own, program, config, found.representations, layers, decisions=made, migration=found.migration, calibration=seen)


def convert(model: QuantizedModel) -> QuantizedModel:
    """The quantized network on the integer kernels, or on plain torch where there are none: the same results, bit for bit, of all that is
    integers. It shares its weights with `model`.

    Raises TypeError if model is not what `mk.quantize` or `mk.load_quantized` gives, ValueError if it has quantizers that no kernel has.
    """
    if not isinstance(model, QuantizedModel):
        raise TypeError(f"convert: model: expected a quantized model, of mk.quantize or mk.load_quantized, got {type(model).__name__}")
    model.require_kernels("convert")
    program = model._float_program(model.size)
    fast = QuantizedModel(
        model._source[0], program, model.config, model.representations, model.layers, backend=None, decisions=model.decisions,
        migration=model.migration, calibration=model.calibration,
    )  # fmt: skip
    fast._programs = dict(model._programs)
    return fast


def _check_program(program: Program, config: QuantConfig) -> None:
    names = [node.name for node in program]
    for which, patterns in (("skip", config.skip), ("overrides", config.overrides)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, 3, 0.0)
                raise ValueError(
                    f"quantize: config: {which}: expected patterns of node names, as {', '.join(near)}, got {shown(pattern)},"
                    " which none has"
                )
    for node in program:
        if not all(bool(value.isfinite().all()) for value in node.weights.values() if value.is_floating_point()):
            raise ValueError(f"quantize: model: expected finite weights, got others at {node.name}")


def _check(model: Any, config: Any, loss: Any) -> None:
    if not isinstance(config, QuantConfig):
        raise TypeError(f"quantize: config: expected a QuantConfig, got {type(config).__name__}")
    if isinstance(model, QuantizedModel):
        raise TypeError("quantize: model: expected a float model, got one that is quantized already")
    if loss is not None and not callable(loss):
        raise TypeError(f"quantize: loss: expected a function of two results or None, got {shown(loss)}")
    check_model("quantize", model)
