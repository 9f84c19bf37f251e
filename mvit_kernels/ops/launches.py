"""Calls on a GPU that launch at once what they launched before: to check, choose, look up and bind takes the host longer than a small map
takes the GPU.

The second call of an op with inputs of some form (dtype, sizes, strides, device, stream, the backend that is asked for), on the same
weights, runs as the first one, while what it launches and what it allocates are written down. The calls that follow allocate the results,
and in one piece what lies between, and launch the same with the addresses of today, as long as the weights stay what they were
(`packing.Watch`).

A call can be made again only where every address is known: of an input, of what was allocated on the way, or of the weights or what was
packed of them. Where torch computes something in between, or something that is no view of known memory comes out, such a call is made as
the first one every time. So is what needs a gradient, what somebody watches, keeps the weights of, or captures in a graph: on the host that
costs what it always did. On the CPU `replay.py` does the same, with plans of the engine.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import cuda_support, triton_support
from .arena import Lifetime, place
from .backend import native, requested, undisturbed
from .packing import Keeper, Watch, holding, tensors_in, times_forgotten, unkept

Tensor = torch.Tensor
Optional = torch.Tensor | None
_MOST_FORMS = 16  # of inputs
_MOST_CALLS = 4096  # of an op: weights and settings; sizes that images are brought to are settings, too
_ALIGNMENT = 16  # bytes: kernels are compiled for aligned addresses, or for others
_NEVER = object()  # cannot be made again
# Of a torch that is built with CUDA.
_stream, _device = (getattr(torch._C, name, lambda *_: None) for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"))
_is_capturing = torch.cuda.is_current_stream_capturing
_of_launches, _of_moments, _of_tiles = map(triton_support.Kernels, ("launch", "moments", "tuning"))
_ALLOCATIONS = frozenset(
    (
        torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default, torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default, torch.ops.aten.new_empty_strided.default,
    )
)  # fmt: skip


class _Kept(NamedTuple):
    by_form: dict[Any, Any]
    weights: list[weakref.ref[Tensor]]


class Launches(Keeper):
    """Calls of one op, by their weights, settings and forms.

    run(*args, **kwargs): the op itself, whose first `tensors` arguments are tensors, or None. inputs: which of these change from call to
    call; the others are weights.
    """

    def __init__(self, run: Callable[..., Any], tensors: int, inputs: Sequence[int]) -> None:
        super().__init__()
        self._run, self._tensors, self._inputs = run, tensors, tuple(inputs)
        self._weights = tuple(i for i in range(tensors) if i not in inputs)
        self._kept: dict[Any, _Kept] = {}

    def forget(self) -> None:
        self._kept.clear()

    def again(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call without a gradient; None, where it is to be made as the others."""
        count, device = len(args), args[0].get_device()
        if native is None or device != _device() or not (undisturbed() and unkept()) or _is_capturing() or _of_its_own():
            return None
        inputs = [args[i] for i in self._inputs if i < count and args[i] is not None]
        weights = [args[i] for i in self._weights if i < count and args[i] is not None]
        settings = [tuple(each) if type(each) is list else each for each in args[self._tensors :]]
        there = [args[i] is not None for i in range(min(self._tensors, count))]
        try:
            kept = self._kept.get(key := (*map(id, weights), *there, *settings, *kwargs.items()))
        except TypeError:  # settings that the op itself converts, or refuses
            return None
        form: list[Any] = [requested(), device, _stream(device)]
        addresses: list[int] = []
        for x in inputs:
            if x.layout is not torch.strided or x.get_device() != device or (address := x.data_ptr()) % _ALIGNMENT:
                return None
            form += x.dtype, x.shape, x.stride(), addresses.index(address) if address in addresses else None  # keys that are values, too
            addresses.append(address)
        if kept is None:
            if len(self._kept) >= _MOST_CALLS:
                self._kept.clear()
            kept = self._kept[key] = _Kept({}, [weakref.ref(each, self._dropping(key)) for each in weights])
        found = kept.by_form.get(seen := tuple(form))
        if type(found) is _Again:
            if found.watch.holds(weights):
                return found(addresses)
            kept.by_form.clear()  # nor would the others hold
        elif found is _ONCE and not any(x.is_inference() for x in weights):  # whose changes nobody counts
            result, kept.by_form[seen] = _written(self._run, args, kwargs, inputs, weights)
            return result
        elif found is None:
            if len(kept.by_form) >= _MOST_FORMS:
                kept.by_form.clear()
            kept.by_form[seen] = _ONCE
        return None

    def _dropping(self, key: Any) -> Callable[[object], None]:
        def drop(_: object, all_kept: dict[Any, Any] = self._kept) -> None:  # bound: at exit, globals go first
            all_kept.pop(key, None)

        return drop


_ONCE = object()  # was seen once


def _of_its_own() -> bool:
    """Whether results have another form than elsewhere (`ops.moments.keeping_parts`), or somebody chooses the tiles."""
    return triton_support.installed() is None and bool(_of_moments.keeps_parts() or _of_tiles.is_watched())


# --- to make it again ---


class _Launch(NamedTuple):
    run: Callable[..., object]
    arguments: list[Any]
    places: list[tuple[int, int, int]]  # of arguments that are addresses: which one, whose memory, how far from its begin


class _Result(NamedTuple):
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Again:
    """held: what the launches read and nobody else need keep."""

    def __init__(
        self, launches: list[_Launch], results: list[_Result], alone: bool, arena_bytes: int, device: torch.device, watch: Watch,
        held: list[Tensor],
    ) -> None:  # fmt: skip
        self.watch = watch
        self._launches, self._results, self._alone = launches, results, alone
        self._arena_bytes, self._device, self._held = arena_bytes, device, held

    def __call__(self, addresses: list[int]) -> Any:
        """addresses: of the inputs."""
        results = [torch.empty_strided(*each[:2], dtype=each.dtype, device=self._device) for each in self._results]
        addresses += [each.data_ptr() for each in results]
        if self._arena_bytes:
            arena = torch.empty(self._arena_bytes, dtype=torch.uint8, device=self._device)
            addresses.append(arena.data_ptr())
        for run, written, places in self._launches:
            arguments = written.copy()
            for at, owner, offset in places:
                arguments[at] = addresses[owner] + offset
            run(*arguments)
        return results[0] if self._alone else tuple(results)


# --- to write it down ---


class _Memory(NamedTuple):
    """From its first byte to behind its last, known from launch number `since` on: what an earlier one read there was something else."""

    begin: int
    end: int
    since: int = 0

    @staticmethod
    def of(x: Tensor, since: int = 0) -> _Memory:
        """All that x is a view of."""
        storage = x.untyped_storage()
        return _Memory(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), since)

    @staticmethod
    def within(x: Tensor) -> _Memory:
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return _Memory(x.data_ptr(), x.data_ptr() + ((last + 1) * x.element_size() if x.numel() else 0))

    def meets(self, other: _Memory) -> bool:
        return self.begin < other.end and other.begin < self.end


class _Log(TorchDispatchMode):
    """What a call launches and allocates. whole: it does nothing else on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[Callable[..., object], list[Any], list[int]]] = []
        self.made: list[tuple[Tensor, int]] = []  # with how many launches there were before; held, so that no two have the same memory
        self.whole = True

    def launched(self, run: Callable[..., object], arguments: list[Any], addresses: list[int]) -> None:
        self.launches.append((run, arguments, addresses))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tensors_in(result):
            if func in _ALLOCATIONS or x.numel() == 0:
                self.made.append((x, len(self.launches)))
            elif not any(_share(x, each) for each in args if isinstance(each, Tensor)):
                self.whole = False
        if func._schema.is_mutable or not isinstance(result, Tensor | tuple | list):  # numbers would have come from the GPU
            self.whole = False
        return result


def _share(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


@contextlib.contextmanager
def _writing(log: _Log) -> Iterator[None]:
    token = cuda_support.listener.set(log.launched)
    of_triton = _of_launches.listener.set(log.launched) if triton_support.installed() is None else None
    try:
        with log:
            yield
    finally:
        cuda_support.listener.reset(token)
        if of_triton is not None:
            _of_launches.listener.reset(of_triton)


def _written(
    run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], weights: list[Tensor]
) -> tuple[Any, Any]:
    """The result, and what makes it again, or _NEVER."""
    since, log = times_forgotten(), _Log()
    with holding() as uses, _writing(log):
        result = run(*args, **kwargs)
    packed = [x for use in uses for x in tensors_in(use.value)]
    if not {id(x) for use in uses for x in use.sources} <= {id(x) for x in (*packed, *weights)}:  # packed of something else
        return result, _NEVER
    if not all(use.is_current() for use in uses) or times_forgotten() != since:  # a weight was changed meanwhile
        return result, _NEVER
    results = [result] if isinstance(result, Tensor) else list(result)
    linked = _linked(log, inputs, results, [*packed, *weights])
    if linked is None:
        return result, _NEVER
    watch = Watch(weights, [])
    forms = [_Result(tuple(x.shape), x.stride(), x.dtype) for x in results]
    launches, arena_bytes = linked
    return result, _Again(launches, forms, isinstance(result, Tensor), arena_bytes, inputs[0].device, watch, packed)


def _linked(log: _Log, inputs: list[Tensor], results: list[Tensor], fixed: list[Tensor]) -> tuple[list[_Launch], int] | None:
    """(launches, bytes of what lies between): of owners of memory the inputs come first, then the results, then what lies between."""
    if not (log.whole and log.launches and all(isinstance(x, Tensor) for x in results)):
        return None
    made = [_Memory.of(x, since) for x, since in log.made]
    given = [_Memory.within(x) for x in inputs]
    read = [_Memory.of(x) for x in fixed]
    if any(a.meets(b) for a in made for b in (*given, *read)) or any(a.meets(b) for a in given for b in read):
        return None
    owned: dict[int, int] = {}  # which of `made` are results
    for number, x in enumerate(results):
        memory = _Memory.of(x)
        index = next((i for i, each in enumerate(made) if each[:2] == memory[:2] and i not in owned), None)
        if index is None or x.storage_offset() or x.numel() * x.element_size() != memory.end - memory.begin:
            return None
        owned[index] = len(inputs) + number
    lives: dict[str, Lifetime] = {}
    launches: list[_Launch] = []
    between: list[tuple[int, int, str, int]] = []
    for number, (run, arguments, addresses) in enumerate(log.launches):
        launches.append(_Launch(run, arguments, places := []))
        for at in addresses:
            address = arguments[at]
            if (i := _input(given, address)) is not None:
                places.append((at, i, address - given[i].begin))
            elif (i := _owner(made, address, number)) is not None and i in owned:
                places.append((at, owned[i], address - made[i].begin))
            elif i is not None:
                life = lives.get(str(i), Lifetime(number, number, made[i].end - made[i].begin))
                lives[str(i)] = life._replace(last=number)
                between.append((number, at, str(i), address - made[i].begin))
            elif address and _owner(read, address, number) is None:
                return None
    offsets, arena_bytes = place(lives)
    for number, at, name, offset in between:
        launches[number].places.append((at, len(inputs) + len(results), offsets[name] + offset))
    return launches, arena_bytes


def _input(memories: Sequence[_Memory], address: int) -> int | None:
    """Of inputs that are parts of the same tensor, the one that begins there."""
    having = [i for i, each in enumerate(memories) if each.begin <= address < each.end]
    return having[0] if len(having) == 1 else next((i for i in having if memories[i].begin == address), None)


def _owner(memories: Sequence[_Memory], address: int, launch: int) -> int | None:
    return next((i for i, each in enumerate(memories) if each.begin <= address < each.end and each.since <= launch), None)
