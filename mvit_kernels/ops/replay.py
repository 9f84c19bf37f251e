"""Calls that do at once what they did before: the checks, choices and look-ups of an op take longer than many kernels.

The second call with tensors of some form (dtype, sizes, strides, the backend that is asked for) runs as the first one, while the native ops
that it calls are written down (csrc/engine/recording.h). They become a plan in which its inputs and its result are places to be filled in,
and what lies between has places in one piece of memory. The calls that follow run the plan, as long as all that it came from stays what it
was.

A call can be run again only where every pointer is known: to an input, to what an op on the way has made (`library.fresh`), or to weights
(of `packed`, or of who calls). Where torch computes something in between, some pointer is not, and such a call runs op by op every time.
Where something wants to see calls (`library.watched`), every call does.

Of an op that is called with weights the calls on each set of them are such a function (`WeightedReplays`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from .arena import Lifetime, place
from .backend import native, requested, requested_here
from .library import PLAIN, WATCHERS, is_plain, made, raise_status, watched
from .packing import Keeper, Watch, holding, tensors_in, times_forgotten

Tensor = torch.Tensor
Optional = torch.Tensor | None
_INPUT, _OUTPUT = 3, 4  # Space of csrc/engine/plan.h
_RESULT, _ARENA = 0, 1  # outputs of a plan
_MOST_FORMS = 16
_MANY_BYTES = 128 * 1024  # read and written, from which on work is shared among threads: csrc/cpu/core/parallel.h
_ONCE, _NEVER = object(), object()  # was seen once; cannot be run again

# Calls that depend on their inputs and a few weights are found and run by one native function, where torch (2.10) lets it read tensors.
_EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
_torch = None
if native is not None and _EXCHANGE is not None:
    _torch = native.torch_of(
        _EXCHANGE, *PLAIN, torch.empty_strided, torch.get_num_threads, torch.is_grad_enabled, forward_ad, requested_here, WATCHERS
    )  # fmt: skip


class _Forms:
    """Forms that only Python knows: none that `again` finds."""

    def again(self, *_: Optional) -> None:
        return None

    def add(self, *_: object) -> None:
        pass

    def clear(self) -> None:
        pass


class Replays(Keeper):
    """Calls of one function of tensors, by their form. op: whose calls they are, for errors. weights: how many known tensors `again` gets.
    A copy knows none.

    again(*inputs, *known): the result of a call that depends on nothing but these, needs no gradient and was made before; or None, and then
    it is to be made as the others. Nothing that is being compiled calls it.
    """

    def __init__(self, op: str, weights: int = 0) -> None:
        super().__init__()
        self._op, self._weights = op, weights
        self._by_form: dict[Any, Any] = {}
        self._forms = _Forms() if _torch is None else native.Forms(_torch, weights)
        self.again: Callable[..., Any] = self._forms.again

    def __reduce__(self) -> tuple[Any, ...]:
        return Replays, (self._op, self._weights)

    def forget(self) -> None:
        self._by_form.clear()
        self._forms.clear()

    def __call__(
        self, function: Callable[..., Any], inputs: tuple[Optional, ...], rest: tuple[Any, ...] = (), known: Sequence[Tensor] = (),
        read: Callable[[], Iterable[Optional]] = tuple,
    ) -> Any:  # fmt: skip
        """function(*inputs, *rest).

        Args:
            inputs: tensors, or None, that change from call to call.
            rest: other arguments, the same in every call.
            known: tensors that the function reads, itself or what it packs of them, and whose values may change; who calls sees to it that
                they are the same objects in every call.
            read: gives other tensors that the function reads, which nobody changes.
        """
        if watched() or made.get() is not None:  # or it is part of a call that is being recorded
            return function(*inputs, *rest)
        form: Any = requested()
        addresses = []
        for x in inputs:
            if x is None:
                form = form, None
            elif is_plain(x) and x.layout is torch.strided:
                form = form, x.dtype, x.shape, x.stride()
                addresses.append(x.data_ptr())
            else:
                return function(*inputs, *rest)
        replay = self._by_form.get(form)
        if type(replay) is _Replay:
            if replay.watch is None or replay.watch.holds(known):
                return replay(addresses)
            self.forget()  # nor would the others hold, which keep what was packed of former weights
        if replay is None:
            if len(self._by_form) >= _MOST_FORMS:
                self.forget()
            self._by_form[form] = _NEVER if native is None else _ONCE
        if replay is None or replay is _NEVER:
            return function(*inputs, *rest)
        y, found = _recorded(self._op, function, inputs, rest, known, [x for x in read() if x is not None])
        self._by_form[form] = _NEVER if found is None else found
        if found is not None and found.alone is not None and len(known) == self._weights:
            watch = found.watch
            self._forms.add((*inputs, *known), requested(), lambda: watch is None or watch.holds(known), *found.alone)
        return y


class _Kept(NamedTuple):
    by_settings: dict[tuple[Any, ...], Replays]
    weights: list[weakref.ref[Tensor]]


class WeightedReplays:
    """Calls of an op on weights: `Replays` for each set of them and of settings, as long as the weights live.

    function(*inputs, *weights, *settings) gives one tensor. Inputs are tensors or None, settings what can be hashed.
    """

    def __init__(self, op: str, function: Callable[..., Tensor]) -> None:
        self._op, self._function = op, function
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    def again(self, inputs: tuple[Optional, ...], weights: tuple[Tensor, ...], settings: tuple[Any, ...]) -> Optional:
        """What a call that was made before gives; or None, and then it is to be checked and made. Not for what is being compiled."""
        kept = self._kept.get(tuple(map(id, weights)))
        replays = None if kept is None else kept.by_settings.get(settings)
        return None if replays is None else replays.again(*inputs, *weights)

    def __call__(self, inputs: tuple[Optional, ...], weights: tuple[Tensor, ...], settings: tuple[Any, ...]) -> Tensor:
        """The call, whose arguments are of the right types."""
        rest = (*weights, *settings)
        if native is None or watched() or not all(map(is_plain, weights)) or _needs_gradient(*inputs, *weights):
            return self._function(*inputs, *rest)
        key = tuple(map(id, weights))
        kept = self._kept.get(key)
        if kept is None:

            def forget(_: object, all_kept: dict[Any, Any] = self._kept) -> None:  # bound: at exit, globals go first
                all_kept.pop(key, None)

            kept = _Kept({}, [weakref.ref(each, forget) for each in weights])
            self._kept[key] = kept
        replays = kept.by_settings.get(settings)
        if replays is None:
            if len(kept.by_settings) >= _MOST_FORMS:
                kept.by_settings.clear()
            replays = kept.by_settings[settings] = Replays(self._op, len(weights))
        y: Tensor = replays(self._function, inputs, rest, weights)
        return y


def _needs_gradient(*tensors: Optional) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


class _Replay:
    def __init__(self, op: str, again: Any, arena_bytes: int, y: Tensor, watch: Watch | None, held: list[Tensor]) -> None:
        self.watch = watch
        self._op, self._run, self._arena_bytes, self._held = op, again.run, arena_bytes, held
        self._size, self._stride, self._dtype = tuple(y.shape), y.stride(), y.dtype
        # What it takes to run it without looking at anything else, and what that reads.
        self.alone = (again, (self._size, self._stride, self._dtype, held, watch)) if arena_bytes == 0 else None

    def __call__(self, addresses: list[int]) -> Tensor:
        """addresses: of the inputs that there are."""
        y = torch.empty_strided(self._size, self._stride, dtype=self._dtype)
        if self._arena_bytes:
            arena = torch.empty(self._arena_bytes, dtype=torch.uint8)
            status = self._run(addresses, y.data_ptr(), arena.data_ptr(), torch.get_num_threads())
        else:
            status = self._run(addresses, y.data_ptr(), 0, torch.get_num_threads())
        if status:
            raise_status(self._op, status)
        return y


def _recorded(
    op: str, function: Callable[..., Any], inputs: tuple[Optional, ...], rest: tuple[Any, ...], known: Sequence[Tensor],
    fixed: Sequence[Tensor],
) -> tuple[Any, _Replay | None]:  # fmt: skip
    """What the function gives, and what runs it again; None where that is not known."""
    since, recording = times_forgotten(), native.Recording()
    between, uses = _Dated(recording), _Dated(recording)
    token = made.set(between)
    recording.begin()
    try:
        with holding(uses):
            y = function(*inputs, *rest)
    finally:
        recording.end()
        made.reset(token)
    packed = [x for use in uses for x in tensors_in(use.value)]
    dates = [date for date, use in zip(uses.dates, uses, strict=True) for _ in tensors_in(use.value)]
    places = _Places.of(inputs, y, between, [*zip(packed, dates, strict=True), *((x, 0) for x in (*known, *fixed))])
    if not recording.whole or places is None:
        return y, None
    if not {id(x) for use in uses for x in use.sources} <= {id(x) for x in (*packed, *known)}:  # packed from something else
        return y, None
    linked = places.link(recording)
    if linked is None:
        return y, None
    again, arena_bytes = linked
    watch = Watch(known, [x for use in uses for x in use.contents]) if known else None
    if not all(use.is_current() for use in uses) or times_forgotten() != since:  # a weight was changed meanwhile
        return y, None
    return y, _Replay(op, again, arena_bytes, y, watch, [*packed, *fixed])


class _Dated(list[Any]):
    """A list that remembers how many calls were recorded when something came."""

    def __init__(self, recording: Any) -> None:
        super().__init__()
        self._recording = recording
        self.dates: list[int] = []

    def append(self, each: Any) -> None:
        super().append(each)
        self.dates.append(self._recording.count)


class _Range(NamedTuple):
    """Memory of a tensor, from its first element to its last, alive from call number `date` on: what an earlier call read there was
    something else, and is gone."""

    begin: int
    end: int
    date: int = 0

    @staticmethod
    def of(x: Tensor, date: int = 0) -> _Range:
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return _Range(x.data_ptr(), x.data_ptr() + ((last + 1) * x.element_size() if x.numel() else 0), date)


class _Places(NamedTuple):
    """Where the pointers of a call may point to."""

    inputs: list[_Range]
    between: list[_Range]
    result: int  # which of them
    fixed: list[_Range]

    @staticmethod
    def of(inputs: Sequence[Optional], y: Any, between: _Dated, read: Sequence[tuple[Tensor, int]]) -> _Places | None:
        """None where a pointer's place would not be sure, or the result is not what an op has made."""
        if type(y) is not Tensor or any(not x.is_inference() and x._version for x in between):  # torch has written to it
            return None
        given = [_Range.of(x) for x in inputs if x is not None]
        filled = [_Range.of(x, date) for x, date in zip(between, between.dates, strict=True) if x.numel()]
        fixed = [_Range.of(x, date) for x, date in read if x.numel()]
        changing = sorted([*given, *filled])
        apart = all(a.end <= b.begin for a, b in itertools.pairwise(changing)) and not any(
            a.begin < b.end and b.begin < a.end for a in changing for b in fixed
        )
        result = next((i for i, each in enumerate(filled) if each[:2] == _Range.of(y)[:2]), None)
        return _Places(given, filled, result, fixed) if apart and result is not None else None

    def link(self, recording: Any) -> tuple[Any, int] | None:
        """(what runs the recorded calls again, bytes that it needs between); None where a pointer leads elsewhere."""
        calls = recording.pointers()
        if not calls or recording.hides([each[:2] for each in (*self.inputs, *self.between)]):
            return None
        lives: dict[str, Lifetime] = {}
        places: list[list[tuple[int, tuple[int, int, int]]]] = [[] for _ in calls]
        in_arena: list[tuple[int, int, str, int]] = []
        for number, pointers in enumerate(calls):
            for at, address in pointers:
                if at >= 0 and (i := _owner(self.inputs, address, number)) is not None:
                    places[number].append((at, (_INPUT, i, address - self.inputs[i].begin)))
                elif at >= 0 and (i := _owner(self.between, address, number)) is not None:
                    begin, end, _ = self.between[i]
                    if i == self.result:
                        places[number].append((at, (_OUTPUT, _RESULT, address - begin)))
                        continue
                    name = str(i)
                    lives[name] = lives.get(name, Lifetime(number, number, end - begin))._replace(last=number)
                    in_arena.append((number, at, name, address - begin))
                elif _owner(self.fixed, address, number) is None:
                    return None
        offsets, arena_bytes = place(lives)
        for number, at, name, offset in in_arena:
            places[number].append((at, (_OUTPUT, _ARENA, offsets[name] + offset)))
        moved = sum(each.end - each.begin for each in (*self.inputs, self.between[self.result]))
        return recording.replay(places, len(self.inputs), moved >= _MANY_BYTES), arena_bytes


def _owner(ranges: Sequence[_Range], address: int, call: int) -> int | None:
    """Whose memory that was when the call was made."""
    return next((i for i, each in enumerate(ranges) if each.begin <= address < each.end and each.date <= call), None)
