"""Plans in a file: what `described.py` says of them, and their tensors.

    | magic, 8 bytes | version | bytes of the text | fingerprint of the text | fingerprint of the weights | text: JSON | weights |

Numbers are 64 bits, little-endian; tensors begin at multiples of 64 bytes, those of a page or more at multiples of 4096, and are mapped,
not read. A file of another version of this package is refused: the arguments of kernels may mean something else there.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mvit_kernels import __version__
from mvit_kernels.files import old_file, replace_file
from mvit_kernels.messages import shown
from mvit_kernels.ops.backend import NATIVE_REASON, native

from .described import describe_device_plan, describe_plan, device_plan_from, plan_from
from .plan import Plan

if TYPE_CHECKING:
    from .compiled import CompiledModel, Size
    from .device_plan import DevicePlan  # with it comes all that captures networks

Tensor = torch.Tensor
_MAGIC, _VERSION, _PAGE, _LINE = b"MVITPLAN", 3, 4096, 64
_HEADER = struct.Struct("<8sQQQQ")


def save_plans(path: Path, plans: Mapping[Size, Plan | DevicePlan], num_threads: int | None, device: torch.device) -> None:
    if native is None:
        raise ValueError(f"CompiledModel: save: the native kernels are needed ({NATIVE_REASON})")
    blobs: list[Tensor] = []
    seen: dict[int, tuple[int, Tensor]] = {}  # by id, while they live: programs of several sizes share theirs

    def hold(x: Tensor) -> dict[str, Any]:
        """A tensor's place among the blobs."""
        if id(x) not in seen:
            seen[id(x)] = len(blobs), x
            blobs.append(x.detach().cpu().contiguous())
        return {"blob": seen[id(x)][0], "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}

    entries = [
        {"size": list(size), **(describe_plan(plan, hold) if isinstance(plan, Plan) else describe_device_plan(plan, hold))}
        for size, plan in plans.items()
    ]
    places, at = [], 0
    for x in blobs:
        at = _aligned(at, _PAGE if x.nbytes >= _PAGE else _LINE)
        places.append(at)
        at += x.nbytes
    at = _aligned(at, _PAGE)
    content = {
        "package": __version__, "device": device.type, "num_threads": num_threads, "blobs": places, "bytes": at, "plans": entries,
    }  # fmt: skip
    text = json.dumps(content).encode()
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


def load(path: str | Path, *, num_threads: int | None = None, device: str | torch.device | None = None) -> CompiledModel:
    """What `CompiledModel.save` wrote, ready to run: the same results bit for bit, on a GPU of the same kind. Weights are mapped into
    memory, not copied, but for those that go to a GPU.

    Runs images of the saved sizes and no others, as the model is not in the file. Kernels read and write by the numbers in it: load only
    files that you would run as a program.

    Args:
        path: the file.
        num_threads: of plans of the CPU; None for those that were saved.
        device: of plans of a GPU, on which they run; None for the current one.

    Raises:
        TypeError, ValueError: no such file of this version of the package, a damaged one, or wrong arguments.
        OSError: it cannot be read.
    """
    from .compiled import CompiledModel, check_threads

    path = old_file("load: path", path)
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

    place = _place(described["device"], device)
    if described["device"] == "cpu":
        plans = {tuple(entry["size"]): plan_from(entry, held) for entry in described["plans"]}
        return CompiledModel(None, plans, num_threads or described["num_threads"])
    if num_threads is not None:
        raise ValueError(f"load: num_threads: expected None with plans of a GPU, got {num_threads}")
    on_device = {tuple(entry["size"]): device_plan_from(entry, held, place) for entry in described["plans"]}
    return CompiledModel(None, on_device, None, place)


def _place(kind: str, device: str | torch.device | None) -> torch.device:
    """Where plans of that kind of device run, if `device` is wanted."""
    try:
        wanted = torch.device(kind if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"load: device: expected a device of torch, got {shown(device)}") from error
    if wanted.type != kind:
        raise ValueError(f"load: device: expected {'the CPU' if kind == 'cpu' else 'a GPU'}, for which the plans are, got {wanted}")
    if kind == "cpu":
        return wanted
    if not torch.cuda.is_available():
        raise ValueError("load: device: expected a GPU, for which the plans are, and no GPU is available")
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"load: device: expected one of {torch.cuda.device_count()} GPUs, got {wanted}")
    return torch.device(kind, index)


def _start(text_bytes: int) -> int:
    """Where the weights begin."""
    return _aligned(_HEADER.size + text_bytes, _PAGE)


def _aligned(at: int, to: int) -> int:
    return -(-at // to) * to


def _fingerprint(x: Tensor) -> int:
    return int(native.fingerprint(x.data_ptr(), x.nbytes))
