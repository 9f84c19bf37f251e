"""What a network's values are on calibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from mvit_kernels.graph import Node, Program, run

from .share import ALONE, Share

Tensor = torch.Tensor


class Range(NamedTuple):
    """(C,) each: the smallest and the largest value of each channel."""

    low: Tensor
    high: Tensor


def record(model: nn.Module, calibration: Any) -> list[Tensor]:
    """The batches (B, C, H, W) of a calibration as float32 on the CPU: those of an iterable of batches or of (batch, target), or those that
    the model is called with by `calibration(model)`.

    Raises:
        TypeError, ValueError: another calibration, no batch, batches of several image sizes, or values that are not finite.
    """
    if isinstance(calibration, Tensor):
        raise TypeError("quantize: calibration: expected an iterable of batches, or a callable that runs the model, got a tensor")
    if callable(calibration) and not isinstance(calibration, Iterable):
        batches = _seen(model, calibration)
    elif isinstance(calibration, Iterable):
        batches = [_own(each[0] if isinstance(each, (tuple, list)) and each else each) for each in calibration]
    else:
        got = type(calibration).__name__
        raise TypeError(f"quantize: calibration: expected an iterable of batches, or a callable that runs the model, got {got}")
    sizes = {tuple(each.shape[1:]) for each in batches}
    if len(sizes) != 1:
        got = ", ".join(map(str, sorted(sizes))) if sizes else "none"
        raise ValueError(f"quantize: calibration: expected batches of one image size, got {got}")
    batches = [each for each in batches if each.shape[0]]
    if not batches:
        raise ValueError("quantize: calibration: expected at least one image, got none")
    return batches


def _own(x: Any) -> Tensor:
    """A batch in memory of its own, as a loader may fill that of x again, and in one order, on which float sums depend."""
    if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"quantize: calibration: expected batches of float images (B, C, H, W), got {got}")
    own = x.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(own.isfinite().all()):
        raise ValueError("quantize: calibration: expected finite values, got others in the images")
    return own


def fingerprint(batches: list[Tensor]) -> str:
    """SHA-256 of all images, one after the other."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.contiguous().numpy().data)
    return digest.hexdigest()


def _seen(model: nn.Module, calibration: Callable[[nn.Module], object]) -> list[Tensor]:
    batches: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        batches.append(_own(value))

    hook = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad():
            calibration(model)
    finally:
        hook.remove()
    return batches


def mean_squares(program: Program, batches: list[Tensor], progress: bool = True, share: Share = ALONE) -> dict[str, Tensor]:
    """(C,) float64 of each map and vector of a float program: the mean of the squares of each channel, over all batches."""
    count = sum(batch.shape[0] for batch in batches)
    found: dict[int, dict[str, Tensor]] = {}

    def watch(node: Node, y: object) -> None:
        if isinstance(y, Tensor) and y.is_floating_point() and y.ndim in (2, 4):
            found[number][node.name] = y.double().square().mean([axis for axis in range(y.ndim) if axis != 1]) * (y.shape[0] / count)

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for number, batch in tqdm(share.of(batches), desc="mean squares", unit="batch", leave=False, disable=None if progress else True):
            found[number] = {}
            run(program, batch, watch)
    pieces = share.gathered(found)
    return {name: torch.stack([piece[name] for piece in pieces]).sum(0) for name in pieces[0]}


def ranges(program: Program, batches: list[Tensor], progress: bool = True, share: Share = ALONE) -> dict[str, Range]:
    """What each node of a float program gives, over all batches.

    Raises ValueError where a value is not finite.
    """
    found: dict[str, Range] = {}

    def see(name: str, low: Tensor, high: Tensor) -> None:
        seen = found.get(name)
        found[name] = Range(low, high) if seen is None else Range(torch.minimum(low, seen.low), torch.maximum(high, seen.high))

    def watch(node: Node, y: object) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 2:
            return
        if node.kind == "torch" and y.ndim not in (2, 4):  # no map and no vector: nothing in integers takes it
            return
        axes = [axis for axis in range(y.ndim) if axis != 1]
        low, high = y.amin(axes), y.amax(axes)
        if not bool((high - low).isfinite().all()):
            raise ValueError(f"quantize: calibration: expected finite values, got others at {node.name}")
        see(node.name, low, high)

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _, batch in tqdm(share.of(batches), desc="calibration", unit="batch", leave=False, disable=None if progress else True):
            run(program, batch, watch)
    for others in share.gathered({share.rank: found}):
        for name, (low, high) in others.items():
            see(name, low, high)
    return found
