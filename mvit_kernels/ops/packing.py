"""Weights in the form that the kernels read, kept as long as the tensors they came from live and stay what they are.

A packed copy is found again by the identity of its source tensors, and used while none of them has changed: torch counts in-place changes
(`_version`), and memory or a shape given by assigning `tensor.data` shows in address, sizes and strides. The old memory is held until the
weight is packed anew, or new memory might come to lie at its address. What torch does not count:
- What compiled code writes (`passing_weights`).
- What fused optimizers do: after a step of any optimizer, everything is packed anew (but in a graph of somebody else's: `recalling`).
- Changes of tensors made in inference mode, and what batch_norm does to its statistics: a fingerprint of all they hold stands in for the
  count.
- In-place changes of `tensor.data`, through numpy, by collectives of torch.distributed, by replays of a CUDA graph or by another process:
  nobody can see them. `forget_all` (and so `mk.accelerate`, called again) makes everything anew.

Calls on any stream and any thread use a copy on a GPU: a stream waits for the one that made it (`cuda_support.Made`), the host for none. It
is never made inside of a CUDA graph, whose replays alone would fill it. A graph reads the copies that were there at its capture: it
computes with the weights as they were then, and once they are packed anew or gone, the memory that it reads is no longer theirs, unless
whoever captures it keeps them (`holding`). Capture it again after a change of weights. Two kinds of graphs pack weights themselves, at
every replay, as they change between two. A step of training that is captured packs those that want a gradient. Of its frozen ones it reads
copies, which stay there with the weights: every step of an optimizer forgets them, that which is captured first; where that of a warm-up
has done so before, it packs these, too. What torch.compile captures packs all of them, as nobody would capture it again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _disable_current_modes

from mvit_kernels.reference.folding import fold_norm_affine

from . import cuda_support
from .backend import native

PANEL = 32  # of csrc/cpu/core/tile.h
LANES = 16  # of the widest vectors


class Packed(NamedTuple):
    """A matrix (N, K) and its bias as csrc/cpu/core/tile.h wants them: (ceil(N / 32), K, 32) and (ceil(N / 32) * 32,), float32; for maps of
    bfloat16 (2 ceil(N / 32), ceil(K / 2), 16, 2), bfloat16, and such a bias. Of a depthwise convolution: see `pack_depthwise`."""

    weight: torch.Tensor
    bias: torch.Tensor


def by_dtype(recipe: Callable[..., Any]) -> dict[torch.dtype, Callable[..., Any]]:
    """A recipe that takes `dtype`, that of the maps which its weights multiply, for each."""
    wide, pairs = functools.partial(recipe, dtype=torch.float32), functools.partial(recipe, dtype=torch.bfloat16)
    return {torch.float32: wide, torch.float16: wide, torch.bfloat16: pairs}


def pack_matrix(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> Packed:
    """weight (N, K), bias (N,) or None for zeros; any float dtype. dtype: that of the maps."""
    (rows, depth), pairs = weight.shape, dtype == torch.bfloat16
    count = -(-rows // PANEL)
    beyond, odd = count * PANEL - rows, depth % 2 if pairs else 0
    padded = F.pad(weight.detach().float(), (0, odd, 0, beyond)) if beyond or odd else weight.detach().float()
    if pairs:
        panels = padded.to(dtype).reshape(2 * count, PANEL // 2, -(-depth // 2), 2).transpose(1, 2).contiguous()
    else:
        panels = padded.reshape(count, PANEL, depth).transpose(1, 2).contiguous()
    return Packed(panels, padded.new_zeros(count * PANEL) if bias is None else pad_vector(bias, count * PANEL))


def pack_convolution(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> Packed:
    """weight (N, C, k, k) as a matrix with columns in the order (ky, kx, c)."""
    return pack_matrix(weight.permute(0, 2, 3, 1).flatten(1), bias, dtype)


def pack_convolution_by_planes(weight: torch.Tensor, bias: torch.Tensor | None) -> Packed:
    """weight (N, C, k, k) as a matrix with columns in the order (c, ky, kx)."""
    return pack_matrix(weight.flatten(1), bias)


def pack_winograd(weight: torch.Tensor, bias: torch.Tensor | None) -> Packed:
    """weight (N, C, 3, 3) as the 16 matrices (N, C) of csrc/cpu/ops/winograd.h, each packed: (16, ceil(N / 32), C, 32)."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64, device=weight.device)
    elements = torch.einsum("ra,ncab,sb->rsnc", g, weight.detach().double(), g).float().flatten(0, 1)
    matrices = [pack_matrix(each, bias) for each in elements]
    return Packed(torch.stack([each.weight for each in matrices]), matrices[0].bias)


def pack_depthwise(weight: torch.Tensor, bias: torch.Tensor | None) -> Packed:
    """weight (C, 1, 3, 3), bias (C,) or None for zeros, as csrc/cpu/core/depthwise.h wants them: (9, C rounded up to 16) and a vector of
    that size, float32."""
    channels = weight.shape[0]
    size = -(-channels // LANES) * LANES
    taps = F.pad(weight.detach().float().reshape(channels, 9).T, (0, size - channels)).contiguous()
    return Packed(taps, taps.new_zeros(size) if bias is None else pad_vector(bias, size))


def pad_vector(vector: torch.Tensor, size: int) -> torch.Tensor:
    """float32, with zeros up to `size`; contiguous."""
    vector = vector.detach().float()
    return F.pad(vector, (0, size - vector.shape[0])) if size != vector.shape[0] else vector.contiguous()


def pack_normed(
    norm_w: torch.Tensor, norm_b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32
) -> Packed:
    """A linear map behind a norm, with the norm's gamma and beta inside; weight (N, K) or (N, K, 1, 1)."""
    return pack_matrix(*fold_norm(norm_w, norm_b, weight, bias), dtype)


def fold_norm(
    norm_w: torch.Tensor, norm_b: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight diag(gamma), bias + weight beta) in float64, weight as a matrix: one rounding, when they are packed."""
    return fold_norm_affine(weight.flatten(1).double(), bias, norm_w, norm_b.double())  # products and sums with float64 are float64


class _Entry(NamedTuple):
    sources: tuple[Callable[[], torch.Tensor | None], ...]
    state: tuple[Any, ...]
    memory: tuple[torch.UntypedStorage, ...]
    value: Any
    made: cuda_support.Made | None  # on a GPU


_entries: dict[tuple[Hashable, ...], _Entry] = {}
_forgotten = 0  # how often
_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


class Keeper:
    """Who keeps more than one call what was made of weights, and forgets it when all is to be made anew."""

    def __init__(self) -> None:
        _keepers.add(self)

    def forget(self) -> None:
        raise NotImplementedError


def forget_all(*_: object) -> None:
    """Make everything anew at its next use."""
    global _forgotten
    if not torch.compiler.is_compiling():  # the changes that a compiled step makes are counted
        _entries.clear()
        _forgotten += 1
        for each in list(_keepers):
            each.forget()


def times_forgotten() -> int:
    return _forgotten


register_optimizer_step_post_hook(forget_all)


_described = attrgetter("_version", "shape", "dtype")
_version = attrgetter("_version")
_address, _strides = torch.Tensor.data_ptr, torch.Tensor.stride
_numel, _is_contiguous = torch.Tensor.numel, torch.Tensor.is_contiguous


def packed(
    recipe: Callable[..., Any], *sources: torch.Tensor | None, contents: Sequence[torch.Tensor] = (), beside: Sequence[torch.Tensor] = ()
) -> Any:
    """recipe(*sources), made anew only after one of the sources has changed. Equal recipes are the same one; a lambda equals no other.

    contents: those of the sources, on the CPU, whose changes torch does not count; what they hold is compared. beside: other tensors, one
    of which changes when one of the sources does.
    """
    if native is None and contents:
        return _made(recipe, sources)
    tensors = [x for x in (*sources, *beside) if x is not None]
    if _passing.get() and not all(isinstance(x, torch.nn.Parameter) for x in tensors):
        return _made(recipe, sources)
    if _by_the_graph(tensors):
        return _made(recipe, sources)
    key = (recipe, *map(id, (*sources, *beside)))
    state = _state(tensors, contents)
    if state is None:
        return _made(recipe, sources)
    entry = _entries.get(key)
    if entry is not None and entry.state == state:
        for reference, source in zip(entry.sources, tensors, strict=True):
            if reference() is not source:  # a new tensor at an old address
                break
        else:
            if entry.made is not None:
                entry.made.take()
                if _trains() and torch.cuda.is_current_stream_capturing():
                    weakref.finalize(tensors[0], id, entry.value).atexit = False  # holds it as long
            return entry.value if _holding.get() is None else _held(Use(entry.value, key, tensors, contents, state))
    recalled = _recalled.get({}).get(key)
    if recalled is not None and recalled.state == state:
        return recalled.value if _holding.get() is None else _held(recalled)

    def forget(_: object, entries: dict[Any, Any] = _entries) -> None:  # bound: at exit, globals go first
        entries.pop(key, None)

    device = tensors[0].device
    if _trains() and _is_capturing(device) and any(isinstance(x, torch.nn.Parameter) for x in tensors):
        return _made(recipe, sources)  # frozen ones that a step of an optimizer has forgotten
    cuda_support.once("packed weights", device)  # which calls on other streams and threads take, too, and graphs
    value = cuda_support.made_to_stay(lambda: _made(recipe, sources), device)
    made = cuda_support.Made(device, tensors_in(value)) if _on_gpu(device) else None
    references = tuple(weakref.ref(x, forget) for x in tensors)
    memory = tuple(x.untyped_storage() for x in tensors)
    _entries[key] = _Entry(references, state, memory, value, made)
    return value if _holding.get() is None else _held(Use(value, key, tensors, contents, state))


def _by_the_graph(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a CUDA graph that is being captured packs them at every replay: those that a gradient is wanted of, and in compiled code all,
    but where someone keeps what it reads."""
    passing = _passing.get()
    if not (passing or differentiated.get()) or not _is_capturing(tensors[0].device):
        return False
    return any(x.requires_grad for x in tensors) or (passing and _holding.get() is None)


def _is_capturing(device: torch.device) -> bool:
    return _on_gpu(device) and torch.cuda.is_current_stream_capturing()


def _trains() -> bool:
    """Whether a call may be part of a step of training."""
    return torch.is_grad_enabled() or differentiated.get() or _passing.get()


# Whether a call will have a gradient: inside of autograd's functions nothing tells.
differentiated: contextvars.ContextVar[bool] = contextvars.ContextVar("differentiated", default=False)

_passing: contextvars.ContextVar[bool] = contextvars.ContextVar("passing", default=False)


def are_passing() -> bool:
    """Whether weights may be others at the next call, which packs them anew: a gradient is wanted, or compiled code calls."""
    return differentiated.get() or _passing.get()


@contextlib.contextmanager
def passing_weights() -> Iterator[None]:
    """Inside, of tensors that are no parameters nothing is kept: code that Inductor has made writes the next weight into the memory, and
    the same object, of one that it needs no more, and torch counts none of it."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)


_recalled: contextvars.ContextVar[dict[tuple[Hashable, ...], Use]] = contextvars.ContextVar("recalled")


@contextlib.contextmanager
def recalling(uses: Iterable[Use]) -> Iterator[None]:
    """Inside, what has been forgotten is not made anew if the uses have it and torch counts no change of its sources: for a graph of
    somebody else's, in which nothing can be made."""
    token = _recalled.set({use.key: use for use in uses})
    try:
        yield
    finally:
        _recalled.reset(token)


def _state(tensors: Sequence[torch.Tensor], contents: Sequence[torch.Tensor]) -> tuple[Any, ...] | None:
    """What changes when one of the tensors does; None where nobody could tell."""
    # Mapped, as this stands before every call of every op: the loops are in C.
    places = (*map(_address, tensors), *map(_strides, tensors))
    try:
        state = (*map(_described, tensors), *places)
    except RuntimeError:  # tensors of inference mode have no version
        if native is None or not all(x.is_cpu for x in tensors):  # what lies on a GPU cannot be read here
            return None
        state = (*((_content(x) if x.is_inference() else x._version, x.shape, x.dtype) for x in tensors), *places)
    return (*state, *map(_content, contents)) if contents else state


class Use(NamedTuple):
    """What a call of `packed` gave, what it was asked for, and the state of the sources that it was made from."""

    value: Any
    key: tuple[Hashable, ...]
    sources: Sequence[torch.Tensor]
    contents: Sequence[torch.Tensor]
    state: tuple[Any, ...]

    def is_current(self) -> bool:
        return self.state == _state(self.sources, self.contents)


_holding: contextvars.ContextVar[list[Use] | None] = contextvars.ContextVar("holding", default=None)


@contextlib.contextmanager
def holding(held: list[Use] | None = None) -> Iterator[list[Use]]:
    """Inside, the list gets everything that calls take from here: a graph that reads it must keep it, as it may be forgotten here at any
    time."""
    held = [] if held is None else held
    token = _holding.set(held)
    try:
        yield held
    finally:
        _holding.reset(token)


def unkept() -> bool:
    """Whether nobody keeps what calls take from here, and no gradient will be wanted."""
    return _holding.get() is None and not _passing.get() and not differentiated.get()


def _held(use: Use) -> Any:
    held = _holding.get()
    assert held is not None
    held.append(use)
    return use.value


class Watch:
    """Whether tensors are still what they were, in the sense of `packed`: for those who keep what was made of many of them.

    It keeps the memory that they had, and not them. contents: as of `packed`.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], contents: Sequence[torch.Tensor]) -> None:
        self._counted = [not x.is_inference() for x in tensors]
        self._strided = [not x.is_contiguous() for x in tensors]
        uncounted = {id(x): x.untyped_storage() for x in (*contents, *(x for x in tensors if x.is_inference()))}
        self._memory = [x.untyped_storage() for x in tensors], list(uncounted.values())
        self._fingerprint = native.Fingerprint([(each.data_ptr(), each.nbytes()) for each in uncounted.values()]) if uncounted else None
        self._state, self._content = self._state_of(tensors), self._fingerprint.value() if self._fingerprint else None

    def _state_of(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        # What has another shape, or other strides, has another size or is contiguous no longer, except what was not contiguous before.
        # To ask all tensors for both would take as long as all the rest.
        return (
            _forgotten, list(map(_version, compress(tensors, self._counted))), list(map(_address, tensors)), list(map(_numel, tensors)),
            list(map(_is_contiguous, tensors)), list(map(_strides, compress(tensors, self._strided))),
        )  # fmt: skip

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """tensors: the same objects as before."""
        # In this order: what lies where it lay can be read.
        if self._state_of(tensors) != self._state:
            return False
        return self._fingerprint is None or self._fingerprint.value() == self._content


def _content(x: torch.Tensor) -> int:
    """A fingerprint of all that the memory of x holds."""
    storage = x.untyped_storage()
    return native.fingerprint(storage.data_ptr(), storage.nbytes())


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All that are in what a recipe gave: a tensor, or tuples of these and of numbers."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for each in value for x in tensors_in(each)] if isinstance(value, tuple | list) else []


def _made(recipe: Callable[..., Any], sources: tuple[torch.Tensor | None, ...]) -> Any:
    # A normal tensor whatever mode the caller is in: it may be used in another one later. And no business of modes that watch the call.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        return recipe(*(None if each is None else each.detach() for each in sources))
