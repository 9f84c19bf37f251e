"""Plans in a file.

    | magic, 8 bytes | version | bytes of the text | fingerprint of the text | fingerprint of the weights | text: JSON | weights |

Numbers are 64 bits, little-endian; the weights of each plan begin at multiples of 4096 bytes and are mapped, not read. A file of another
version of this package is refused: the arguments of kernels may mean something else there.
"""

from __future__ import annotations

import json
import mmap
import operator
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from mvit_kernels import __version__
from mvit_kernels.files import replace_file
from mvit_kernels.ops.backend import NATIVE_REASON, native

from .plan import NativeStep, Plan, Segment
from .steps import TorchStep, Value

if TYPE_CHECKING:
    from .compiled import CompiledModel

Tensor = torch.Tensor
_MAGIC, _VERSION, _PAGE = b"MVITPLAN", 1, 4096
_HEADER = struct.Struct("<8sQQQQ")


def save_plans(path: Path, plans: Mapping[tuple[int, int, int], Plan], num_threads: int | None) -> None:
    blobs: list[Tensor] = []

    def hold(x: Tensor) -> dict[str, Any]:
        """A tensor's place among the blobs."""
        blobs.append(x.detach().cpu().contiguous())
        return {"blob": len(blobs) - 1, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}

    entries = [{"size": list(size), **_describe_plan(plan, hold)} for size, plan in plans.items()]
    places, at = [], 0
    for x in blobs:
        places.append(at)
        at += -(-x.nbytes // _PAGE) * _PAGE
    text = json.dumps({"package": __version__, "num_threads": num_threads, "blobs": places, "bytes": at, "plans": entries}).encode()
    memory = torch.zeros(at, dtype=torch.uint8)
    for x, place in zip(blobs, places, strict=True):
        memory[place : place + x.nbytes] = x.reshape(-1).view(torch.uint8)
    checks = _fingerprint(torch.frombuffer(bytearray(text), dtype=torch.uint8)), _fingerprint(memory)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, len(text), *checks))
            file.write(text)
            file.write(bytes(_start(len(text)) - _HEADER.size - len(text)))
            file.write(memory.numpy().data)

    replace_file(path, write)


def is_plan(path: str | Path) -> bool:
    """Whether a file begins as those of `CompiledModel.save` do."""
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def load(path: str | Path, *, num_threads: int | None = None) -> CompiledModel:
    """What `CompiledModel.save` wrote, ready to run: the same results bit for bit. Weights are mapped into memory, not copied.

    Runs images of the saved sizes and no others, as the model is not in the file. Kernels read and write by the numbers in it: load only
    files that you would run as a program.

    Raises:
        ValueError: no such file of this version of the package, a damaged one, or wrong arguments.
        OSError: it cannot be read.
    """
    from .compiled import CompiledModel, check_threads

    path = Path(path)
    check_threads("load", num_threads)
    if native is None:
        raise ValueError(f"load: {path}: the native kernels are needed ({NATIVE_REASON})")
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[:8] != _MAGIC:
            raise ValueError(f"load: {path}: expected a file written by CompiledModel.save, got something else")
        _, version, length, text_check, memory_check = _HEADER.unpack(head)
        if version != _VERSION:
            raise ValueError(f"load: {path}: expected version {_VERSION} of plan files, got {version}; compile the model again")
        text = bytearray(file.read(min(length, path.stat().st_size)))
        if len(text) != length or not text or _fingerprint(torch.frombuffer(text, dtype=torch.uint8)) != text_check:
            raise ValueError(f"load: {path}: the file is damaged (its description)")
        described = json.loads(text.decode())
        if described["package"] != __version__:
            raise ValueError(
                f"load: {path}: expected a plan of mvit_kernels {__version__}, got one of {described['package']}; compile the model again"
            )
        start = _start(length)
        if path.stat().st_size != start + described["bytes"]:
            raise ValueError(f"load: {path}: the file is damaged (expected {start + described['bytes']} bytes, got {path.stat().st_size})")
        # Private: whatever happens to that memory does not reach the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)[start:]
    if _fingerprint(whole) != memory_check:
        raise ValueError(f"load: {path}: the file is damaged (its weights)")

    def held(place: Mapping[str, Any]) -> Tensor:
        dtype, at = getattr(torch, place["dtype"]), described["blobs"][place["blob"]]
        size = dtype.itemsize
        for each in place["shape"]:
            size *= each
        return whole[at : at + size].view(dtype).reshape(place["shape"])

    plans = {tuple(entry["size"]): _plan_from(entry, held) for entry in described["plans"]}
    return CompiledModel(None, plans, num_threads or described["num_threads"])


def _start(text_bytes: int) -> int:
    """Where the weights begin."""
    return -(-(_HEADER.size + text_bytes) // _PAGE) * _PAGE


def _fingerprint(x: Tensor) -> int:
    return int(native.fingerprint(x.data_ptr(), x.nbytes))


# --- plans as JSON ---


def _describe_plan(plan: Plan, hold: Any) -> dict[str, Any]:
    return {
        "parts": [_describe_part(part, hold) for part in plan.parts],
        "values": {name: [list(v.size), str(v.dtype).removeprefix("torch."), v.channels_last] for name, v in plan.values.items()},
        "weights": hold(plan.weights),
        "outputs": list(plan.outputs),
        "structure": _describe_structure(plan.structure),
    }


def _describe_structure(structure: Any) -> str | None:
    try:
        return None if structure is None else pytree.treespec_dumps(structure)
    except NotImplementedError as error:
        raise ValueError(f"CompiledModel: save: expected results in a structure that a file can hold, got {structure}") from error


def _plan_from(entry: Mapping[str, Any], held: Any) -> Plan:
    values = {name: Value(tuple(size), getattr(torch, dtype), last) for name, (size, dtype, last) in entry["values"].items()}
    structure = None if entry["structure"] is None else pytree.treespec_loads(entry["structure"])
    return Plan([_part_from(part, held) for part in entry["parts"]], values, held(entry["weights"]), entry["outputs"], structure)


def _describe_part(part: Segment | TorchStep, hold: Any) -> dict[str, Any]:
    if isinstance(part, Segment):
        steps = [[step.op, list(step.nodes), dict(step.fields), step.result, step.macs, step.bytes] for step in part.steps]
        return {"steps": steps, "arena_bytes": part.arena_bytes, "inputs": list(part.inputs), "outputs": list(part.outputs)}
    node = part.node
    weights = {name: hold(x) for name, x in node.weights.items()}
    settings = {key: _describe(value) for key, value in node.settings.items()}
    return {
        "node": [node.name, node.kind, list(node.inputs), list(node.size)], "settings": settings, "weights": weights, "reason": part.reason,
        "raw": part.raw,
    }  # fmt: skip


def _part_from(part: Mapping[str, Any], held: Any) -> Segment | TorchStep:
    if "steps" in part:
        steps = tuple(
            NativeStep(op, tuple(nodes), {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}, result, macs, size)
            for op, nodes, fields, result, macs, size in part["steps"]
        )
        return Segment(steps, part["arena_bytes"], tuple(part["inputs"]), tuple(part["outputs"]))
    from mvit_kernels.graph import Node  # only here: with it comes all that captures networks

    name, kind, inputs, size = part["node"]
    settings = {key: _described(value) for key, value in part["settings"].items()}
    weights = {name: held(place) for name, place in part["weights"].items()}
    return TorchStep(Node(name, kind, tuple(inputs), tuple(size), settings, weights), part["reason"], part["raw"])


def _describe(x: Any) -> Any:
    """Arguments of a torch node: what JSON has no word for is a pair of its kind and itself."""
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, (tuple, list)):
        return {"tuple" if isinstance(x, tuple) else "list": [_describe(each) for each in x]}
    if isinstance(x, dict):
        return {"dict": {key: _describe(value) for key, value in x.items()}}
    if isinstance(x, torch._ops.OpOverload):
        return {"op": str(x)}
    if x is operator.getitem:
        return {"op": "getitem"}
    if isinstance(x, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(x).removeprefix("torch.")}
    if isinstance(x, torch.device):
        return {"device": str(x)}
    raise ValueError(f"CompiledModel: save: expected arguments of torch ops that a file can hold, got {type(x).__name__}")


def _described(x: Any) -> Any:
    if not isinstance(x, dict):
        return x
    (kind, value), *_ = x.items()
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_described(each) for each in value)
    if kind == "dict":
        return {key: _described(each) for key, each in value.items()}
    if kind == "op" and value == "getitem":
        return operator.getitem
    if kind == "op":
        namespace, name, overload = value.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return getattr(torch, value) if kind == "torch" else torch.device(value)
