"""What a quantization has found so far, in a folder, so that an interrupted one goes on there.

Each stage is a file, written whole as soon as it is done: the ranges of results, every round of a search and its confirmation, every layer
that is rounded together with others. What is read has the bits that were written, and all that is between stages follows from them and the
images: the network is that of a run which nothing interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mvit_kernels import __version__
from mvit_kernels.files import write_text
from mvit_kernels.graph import Program

from .config import QuantConfig
from .share import ALONE, Share
from .stored import read_stored, write_stored

Tensor = torch.Tensor
_FORM = "mvit_kernels.quantization_stage", "1"
_RUN = "run.json"


class Stage(NamedTuple):
    """tensors by name; notes: what JSON has."""

    tensors: dict[str, Tensor]
    notes: Any = None


class State:
    """Stages of one run. Without a folder nothing is kept."""

    def __init__(self, folder: str | os.PathLike[str] | None = None, run: Mapping[str, str] | None = None, share: Share = ALONE) -> None:
        """run: what a run depends on, by name; a folder of another one is refused. Processes that share the work use what the first one
        finds in its folder, and only this writes.

        Raises ValueError, OSError.
        """
        self.folder, self.share, self.count = None if folder is None else Path(folder), share, 0
        if self.folder is not None:
            share.of_first(partial(_open, self.folder, dict(run or {})))

    def once(self, name: str, make: Callable[[], Stage]) -> Stage:
        """The stage, from the folder or made now. Stages come in the same order in every run."""
        if self.folder is None:
            return make()
        self.count += 1
        path = self.folder / f"{self.count:03d}-{re.sub(r'[^a-zA-Z0-9.]+', '-', name)}.safetensors"
        found = self.share.of_first(partial(_read, path, name))
        if found is None:
            found = make()
            if self.share.rank == 0:
                write_stored(path, _FORM, found.tensors, {"stage": name, "notes": found.notes})
        return found


def run_of(program: Program, batches: list[Tensor], fingerprint: str, config: QuantConfig, loss: Any) -> dict[str, str]:
    """What the result of a quantization depends on, by name. Of a loss only the name is known."""
    images = f"{fingerprint} in batches of {', '.join(str(len(batch)) for batch in batches)}"
    own = None if loss is None else f"{getattr(loss, '__module__', None)}.{getattr(loss, '__qualname__', type(loss).__qualname__)}"
    return {
        "model": _fingerprint(program), "images": images, **{key: json.dumps(value) for key, value in config.to_dict().items()},
        "loss": str(own), "versions": f"mvit_kernels {__version__}, torch {torch.__version__}",
    }  # fmt: skip


def _open(folder: Path, run: dict[str, str]) -> None:
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"quantize: state: expected a folder in one that exists, got {str(folder)!r}")
    folder.mkdir(exist_ok=True)
    there = [each.name for each in folder.iterdir() if not each.name.startswith(".")]  # what a killed run was writing has a dot
    if not there:
        write_text(folder / _RUN, json.dumps(run, indent=1) + "\n")
        return
    try:
        found = json.loads((folder / _RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"quantize: state: expected an empty folder or that of an interrupted run, got {folder}, which holds {min(there)}")
    for name in dict.fromkeys((*run, *found)):
        if found.get(name) != run.get(name):
            raise ValueError(
                f"quantize: state: expected a run with {name} {run.get(name)}, got {folder} of one with {found.get(name)}; remove it or"
                " name another folder"
            )


def _read(path: Path, name: str) -> Stage | None:
    if not path.is_file():
        return None
    tensors, content = read_stored(path, _FORM, "quantize: state", "an interrupted run")
    if content["stage"] != name:
        raise ValueError(f"quantize: state: expected {name} in {path}, got {content['stage']}")
    return Stage(tensors, content["notes"])


def _fingerprint(program: Program) -> str:
    digest = hashlib.sha256()
    for node in program:
        digest.update(f"{node.name} {node.kind} {node.inputs} {node.size} {sorted(node.settings.items())}".encode())
        for key, value in sorted(node.weights.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


NOWHERE = State()
