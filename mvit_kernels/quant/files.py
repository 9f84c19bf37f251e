"""Quantized networks in files: safetensors, with everything that is no tensor as JSON in its header."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mvit_kernels import __version__
from mvit_kernels.files import new_file, old_file
from mvit_kernels.graph import Program, capture, optimize
from mvit_kernels.reference.int6 import pack_int6, unpack_int6

from .config import QuantConfig
from .decision import Decision
from .model import QuantizedModel
from .representation import from_json, to_json
from .rounding import Layer, is_rounded
from .stored import read_stored, write_stored

Tensor = torch.Tensor
_FORM = "mvit_kernels.quantized", "1"
_PACKED = "weight_int6"  # in place of weight: four values in three bytes


def save_quantized(model: QuantizedModel, path: str | os.PathLike[str], *, about: Mapping[str, str] | None = None) -> None:
    """Write a quantized network: integer weights, scales, zero-points, the configuration, how many images calibrated it and which (a
    fingerprint), and versions. The file is written whole or not at all.

    Args:
        about: anything else that the file shall say, as text; the command line keeps the name of the model there.

    Raises:
        TypeError, ValueError: model is not what `mk.quantize`, `mk.convert` or `mk.load_quantized` gives, or path no path of a file.
        OSError: the file cannot be written.
    """
    if not isinstance(model, QuantizedModel):
        raise TypeError(f"save_quantized: model: expected a quantized model, of mk.quantize, got {type(model).__name__}")
    path = new_file("save_quantized: path", path)
    tensors = {}
    for name, layer in model.layers.items():
        for key, value in layer.items():
            if key == "weight" and value.dtype == torch.int8 and model.config.weight_bits_of(name) == 6:
                key, value = _PACKED, pack_int6(value.flatten(1))
            tensors[f"{name}|{key}"] = value
    content = {
        "size": list(model.size),
        "config": model.config.to_dict(),
        "representations": {key: to_json(value) for key, value in model.representations.items()},
        "decisions": [each.to_dict() for each in model.decisions],
        "calibration": model.calibration,
        "versions": {"mvit_kernels": __version__, "torch": torch.__version__},
        "about": dict(about or {}),
        "migration": {name: factors.tolist() for name, factors in model.migration.items()},
    }
    write_stored(path, _FORM, tensors, content)


def load_quantized(model: nn.Module, path: str | os.PathLike[str]) -> QuantizedModel:
    """A quantized network from a file of `save_quantized`: the same results, bit for bit.

    Args:
        model: the float network that was quantized, in evaluation; it is left as it is. Of it comes the structure. Weights come from the
            file, except at image sizes where the network is rewritten in another way than at that of the calibration.
        path: the file.

    Raises:
        TypeError, ValueError: no such file format or version, a damaged file, or a model with other layers.
        OSError: the file cannot be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load_quantized: model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("load_quantized: model: expected a model in evaluation (call model.eval()), got one in training")
    path = old_file("load_quantized: path", path)
    tensors, content = read_stored(path, _FORM, "load_quantized: path", "save_quantized")
    config, size = QuantConfig(**content["config"]), tuple(content["size"])
    own = copy.deepcopy(model)
    program = optimize(capture(own, size, "load_quantized"))
    layers = _layers(tensors, program, config, path)
    found = {key: from_json(value) for key, value in content["representations"].items()}
    decisions = tuple(Decision.from_dict(each) for each in content.get("decisions", ()))
    migration = {name: torch.tensor(factors, dtype=torch.float64) for name, factors in content.get("migration", {}).items()}
    return QuantizedModel(
        own, program, config, found, layers, decisions=decisions, migration=migration, calibration=content.get("calibration")
    )


def about(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """What `save_quantized` was told that a file shall say; None of a file that it did not write. Weights are not looked at."""
    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        return None
    return dict(json.loads(metadata["content"]).get("about", {})) if metadata.get("format") == _FORM[0] else None


def _layers(tensors: Mapping[str, Tensor], program: Program, config: QuantConfig, path: Any) -> dict[str, Layer]:
    """The tensors by node, with the shapes that the model's program has."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, which = key.rpartition("|")
        layers.setdefault(name, {})[which] = value
    own = {node.name: node for node in program if node.weights}
    if own.keys() != layers.keys():
        missing, more = sorted(layers.keys() - own.keys()), sorted(own.keys() - layers.keys())
        got = f"none of {', '.join(missing[:3])}" if missing else f"{', '.join(more[:3])} too"
        raise ValueError(f"load_quantized: model: expected the {len(layers)} layers of {path}, got a model with {got}")
    for name, layer in layers.items():
        node = own[name]
        if _PACKED in layer:
            shape = node.weights["weight"].shape
            layer["weight"] = _unpacked(layer.pop(_PACKED), shape, name)
        expected = {key: tuple(value.shape) for key, value in node.weights.items()}
        if is_rounded(node, config):
            rows = (expected["weight"][0],)
            expected = {"weight": expected["weight"], "weight_scale": rows, "bias": rows}
        actual = {key: tuple(value.shape) for key, value in layer.items()}
        if actual != expected:
            raise ValueError(f"load_quantized: model: expected {name} of {actual}, as {path} has it, got {expected}")
    return dict(layers)


def _unpacked(packed: Tensor, shape: torch.Size, name: str) -> Tensor:
    depth = shape[1:].numel()
    if packed.shape != (shape[0], 3 * (-(-depth // 4))):
        raise ValueError(f"load_quantized: model: expected {name} of {tuple(packed.shape)} packed bytes, got a weight {tuple(shape)}")
    return unpack_int6(packed, depth).reshape(shape)
