"""Tensors with anything that is no tensor beside them, in one file: safetensors, with JSON and a checksum in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mvit_kernels.files import replace_file

Tensor = torch.Tensor


def write_stored(path: Path, form: tuple[str, str], tensors: Mapping[str, Tensor], content: Any) -> None:
    """Whole or not at all. form: name and version of what it is; content: what JSON has. Raises OSError."""
    own = {name: value.contiguous().clone() for name, value in tensors.items()}  # safetensors takes no two that share memory
    text = json.dumps(content, sort_keys=True)
    metadata = {"format": form[0], "version": form[1], "content": text, "checksum": _checksum(own, text)}
    replace_file(path, lambda temporary: temporary.write_bytes(save(own, metadata)))


def read_stored(path: Path, form: tuple[str, str], argument: str, maker: str) -> tuple[dict[str, Tensor], Any]:
    """(tensors, content). Errors are in the name of `argument`, "op: argument", which expects what `maker` writes.

    Raises ValueError for a file that is none, is damaged or of another format or version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{argument}: expected a file of {maker}, got {path}, which is damaged or none ({error})") from None
    if metadata.get("format") != form[0]:
        raise ValueError(f"{argument}: expected a file of {maker}, got {path} of format {metadata.get('format')!r}")
    if metadata.get("version") != form[1]:
        raise ValueError(f"{argument}: expected version {form[1]} of the format, got {metadata.get('version')!r} in {path}")
    text = metadata.get("content", "")
    if metadata.get("checksum") != _checksum(tensors, text):
        raise ValueError(f"{argument}: expected checksum {metadata.get('checksum')!r}, got another: {path} is damaged")
    return tensors, json.loads(text)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
