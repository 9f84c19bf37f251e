"""Checkpoint files of timm, transformers, ml-cvnets and authors' releases, read into and written from our models (or timm's own)."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import nn

from mvit_kernels.files import new_file, old_file, replace_file

from .families import KINDS
from .names import CLASSIFIERS, HEADS, STEMS, Family, Format, family_of, names_in, own_format

# Where training programs keep the weights in what they save; averaged ones (EMA) first, which are those they evaluate.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model")
_COUNTER = ".num_batches_tracked"
TORCH_FILES = (b"PK", b"\x80")  # how they begin: a zip archive, or a bare pickle as torch wrote before 1.6


class LoadReport(NamedTuple):
    """What `load_checkpoint(..., strict=False)` didn't find in the file, and didn't use of it, in the file's names."""

    missing: list[str]
    unexpected: list[str]


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True) -> LoadReport:
    """Load a checkpoint file into `model`, in place; nothing is written unless everything fits.

    The file is safetensors or written by `torch.save` (read with `weights_only`), and has the tensor names of timm; a MobileViT
    may have those of transformers or ml-cvnets instead, and a Mobile-Former has those of its authors' release. The content tells
    which. Its weights may be of any floating dtype, and those of a network inside of other modules, as DistributedDataParallel,
    torch.compile and AveragedModel put it, or of timm's `features_only`; BatchNorms may lack their counters, as torch has it. A
    model without classifier ignores the head of a classifier, detector or segmenter in the file. The first convolution of
    MobileViT v1 takes BGR in transformers and ml-cvnets, RGB in timm and here, so its input channels are swapped. What is no
    weight does not come along: the last stages of a segmenter filter larger maps with dilations; transformers treats odd maps
    of v2 in its own way, which `create_model(..., odd_maps="drop")` repeats.

    strict: False tolerates, and returns, what only the model or only the file has, and a classifier for other classes.
    Raises FileNotFoundError; ValueError if the file is damaged, holds no model that is known here or doesn't fit the model.
    """
    path = old_file("load_checkpoint: path", path)
    state = _state_of("load_checkpoint", model)
    family = family_of(state)
    file = _read(path)
    if file.format not in STEMS[family]:
        raise ValueError(
            f"load_checkpoint: {path} ({_variant(file.tensors, file.format)}, in the names of {file.format}) does not fit the model"
            f" ({_variant(state, own_format(family))}), whose files are in the names of {' or '.join(STEMS[family])}"
        )
    names = names_in(file.format, state)
    expected = _renamed(state, file.format)

    missing = [name for name in expected if name not in file.tensors and not name.endswith(_COUNTER)]
    unexpected = [name for name in file.tensors if name not in expected]
    classifiers = [f"{layer}.{kind}" for layer in CLASSIFIERS[family] for kind in ("weight", "bias")]
    if state.keys().isdisjoint(classifiers):
        heads = HEADS[family][file.format]
        unexpected = [name for name in unexpected if name in file.inside and not name.startswith(heads)]
    misfits = [name for name in expected if name in file.tensors and not _fits(file.tensors[name], expected[name])]

    classifier = [part for key in classifiers for part in names.get(key, ())]
    if misfits and misfits == classifier:
        if not strict:
            missing, misfits = missing + misfits, []
        elif not missing and not unexpected:
            raise ValueError(
                f"load_checkpoint: {path} has {(found := len(file.tensors[misfits[0]]))} classes, the model {len(expected[misfits[0]])};"
                f" make it with num_classes={found}, or load with strict=False to leave the model's classifier as it is"
            )
    if misfits or (strict and (missing or unexpected)):
        raise ValueError(
            f"load_checkpoint: {path} ({_variant(file.tensors, file.format)}, in the names of {file.format}) does not fit"
            f" the model ({_variant(state, own_format(family))}): "
            + _list(
                missing=missing,
                unexpected=unexpected,
                misshaped=[f"{n}: expected {_describe(expected[n])}, got {_describe(file.tensors[n])}" for n in misfits],
            )
        )

    values = {}
    for key, parts in names.items():
        if set(parts).isdisjoint(missing) and parts[0] in file.tensors:
            tensors = [file.tensors[part] for part in parts]
            value = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            values[key] = _turn_colours(key, value, family, file.format)
    model.load_state_dict(values, strict=False)
    return LoadReport(missing, unexpected)


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], format: Format | None = None) -> None:
    """Write the weights of `model`, in their dtype, with the tensor names of `format`.

    format: "timm" for all but Mobile-Former, whose authors' is "release"; for MobileViT also "transformers" or "ml-cvnets".
    None: the first of these, whose names are the model's own. Raises ValueError for one that the model's family doesn't have.

    The suffix of `path` says what kind of file: .safetensors, or .pt, .pth or .bin for `torch.save`. An older file is
    replaced at once or not at all. The first convolution of MobileViT v1 becomes that of the format (see `load_checkpoint`).
    """
    path = new_file("save_checkpoint: path", path)
    state = _state_of("save_checkpoint", model)
    family = family_of(state)
    format = own_format(family) if format is None else format
    if format not in STEMS[family]:
        raise ValueError(f"save_checkpoint: expected format in {tuple(STEMS[family])} for this model, got {format!r}")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise ValueError(f"save_checkpoint: expected path to end in .safetensors, .pt, .pth or .bin, got {path}")
    # transformers keeps its classifier beside the network and all else inside.
    prefix = f"{family}." if format == "transformers" else ""
    tensors = {
        (name if name.startswith("classifier.") else prefix + name): tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in _renamed(state, format).items()
    }

    if path.suffix == ".safetensors":
        metadata = {"format": "pt", "names": format, "model": _variant(state, own_format(family))}
        replace_file(path, lambda draft: draft.write_bytes(safetensors.torch.save(tensors, metadata)))
    else:
        replace_file(path, lambda draft: torch.save(tensors, draft))


def _state_of(function: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Raises TypeError, ValueError if it is no module, one without values, or has a network only inside of itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model: expected a torch.nn.Module, got {type(model).__name__}")
    state = model.state_dict()
    empty = next((name for name, value in state.items() if value.is_meta), None)
    if empty is not None:
        raise ValueError(f"{function}: model: expected weights in memory, got {empty} on the meta device")
    family = family_of(state, function)
    if STEMS[family][own_format(family)] not in state:
        raise ValueError(
            f"{function}: model: expected a network of mk.create_model or timm, got a {type(model).__name__} that has one inside,"
            f" with names such as {next(iter(state))}; give the network itself"
        )
    return state


def _renamed(state: Mapping[str, torch.Tensor], format: Format) -> dict[str, torch.Tensor]:
    """Our state_dict as `format` has it, without prefix."""
    family = family_of(state)
    renamed: dict[str, torch.Tensor] = {}
    for key, parts in names_in(format, state).items():
        value = _turn_colours(key, state[key], family, format)
        renamed |= zip(parts, value.chunk(len(parts)) if len(parts) > 1 else [value], strict=True)
    return renamed


def _turn_colours(key: str, value: torch.Tensor, family: Family, format: Format) -> torch.Tensor:
    """Between the colour order of `format` and ours, either way: v1 was trained on BGR images, and timm turned its weights round."""
    is_bgr = key == "stem.conv.weight" and family == "mobilevit" and format != "timm" and value.shape[1] == 3
    return value.flip(1) if is_bgr else value


def _fits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether torch will copy one to the other: it raises in the midst of a model where it doesn't."""
    has_values = found.layout == torch.strided and not found.is_meta
    return has_values and found.shape == expected.shape and found.is_floating_point() == expected.is_floating_point()


def _describe(tensor: torch.Tensor) -> str:
    without = " without values" if tensor.is_meta else "" if tensor.layout == torch.strided else f" in {tensor.layout}"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}{without}"


def _first(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def _list(**problems: list[str]) -> str:
    return "; ".join(f"{len(items)} {how} ({_first(items)})" for how, items in problems.items() if items)


def _variant(tensors: Mapping[str, torch.Tensor], format: Format) -> str:
    """The name of the model whose stages these tensors are; they are named as `format` does."""
    for family, stems in STEMS.items():
        if stems.get(format) not in tensors:
            continue
        for variant, state in _stages(family).items():
            expected = _renamed(state, format)
            if all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in expected.items()):
                return variant
    return "no known variant"


@functools.cache
def _stages(family: Family) -> dict[str, dict[str, torch.Tensor]]:
    """Variant -> its state_dict without data and without what follows the stages."""
    kind, heads = KINDS[family], HEADS[family][own_format(family)]
    with torch.device("meta"):
        models = {variant: kind.network(config) for variant, config in kind.variants.items()}
    return {
        variant: {key: value for key, value in model.state_dict().items() if not key.startswith(heads) and not key.endswith(_COUNTER)}
        for variant, model in models.items()
    }


class _File(NamedTuple):
    """A checkpoint without its wrappings."""

    format: Format
    tensors: dict[str, torch.Tensor]  # without the prefix of the network
    inside: set[str]  # those that had it


def _read(path: Path) -> _File:
    tensors = _unwrap(path, _open(path))
    known = {(format, stem) for formats in STEMS.values() for format, stem in formats.items()}
    stems = [(format, name.removesuffix(stem)) for format, stem in known for name in tensors if name == stem or name.endswith(f".{stem}")]
    if len(stems) != 1:
        what = f"holds {len(stems)} networks" if stems else "holds no network that mk.list_models() names"
        raise ValueError(f"load_checkpoint: {path} {what}; its tensors are {_first(list(tensors))}")
    ((format, prefix),) = stems
    inside = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    if format == "transformers":  # its classifier stands beside the network: what is before both are other modules
        outer = re.sub(r"(^|\.)mobilevit(v2)?\.$", r"\1", prefix)
        tensors = _without(outer, tensors)
        prefix = prefix.removeprefix(outer)
    return _File(format, _without(prefix, tensors), inside)


def _without(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By their names without a prefix. Where that is another's name, those that had the prefix have it."""
    having = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)} | having


def _open(path: Path) -> object:
    """What a file holds, its kind told by its first bytes."""
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        try:
            if start[8:] == b"{":
                return safetensors.torch.load_file(path)
            if start.startswith(TORCH_FILES):
                # timm's training keeps its options, a Namespace, beside the weights.
                with torch.serialization.safe_globals([argparse.Namespace]):
                    return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            what = "is damaged, or holds other objects than tensors"
            if other := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
                what = f"holds other objects than tensors, {other[1]}; if you trust it, torch.serialization.add_safe_globals lets them in"
            raise ValueError(f"load_checkpoint: {path} {what}") from error
        except Exception as error:  # a damaged pickle raises nearly anything
            if "TorchScript" in str(error):
                raise ValueError(f"load_checkpoint: expected a state_dict in {path}, got a model of TorchScript") from error
            reason = str(error).partition("\n")[0]
            raise ValueError(f"load_checkpoint: {path} is damaged ({type(error).__name__}: {reason})") from error
    raise ValueError(f"load_checkpoint: {path} is neither a safetensors nor a torch file")


def _unwrap(path: Path, content: object) -> dict[str, torch.Tensor]:
    """The state_dict inside what a training program saved, in the names that timm's pyramids have before they are flattened."""
    if not isinstance(content, Mapping):
        raise ValueError(f"load_checkpoint: expected a state_dict in {path}, got a {type(content).__name__}")
    state = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {
        re.sub(r"(^|\.)(stem|stages)_(?=\w+\.)", r"\1\2.", str(name)): tensor
        for name, tensor in state.items()
        # AveragedModel counts, as BatchNorm does; a program that converts all tensors to floats makes nothing of a counter.
        if isinstance(tensor, torch.Tensor) and name != "n_averaged" and not (str(name).endswith(_COUNTER) and tensor.is_floating_point())
    }
    if not tensors:
        keys = _first([str(key) for key in state]) or "nothing"
        raise ValueError(f"load_checkpoint: expected a state_dict in {path}, or one as its {', '.join(_WRAPPERS)}; got {keys}")
    return tensors
