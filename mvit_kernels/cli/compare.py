"""Whole networks side by side: PyTorch eager and what this package makes of the same model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mvit_kernels as mk

from .timing import interleaved

COLUMNS = ("variant", "median\nms", "min\nms", "spread\nms", "speed-up", "difference")
NOTE = "Speed-up: of the median, over the faster PyTorch row. Difference: the largest of any logit from PyTorch eager in float32."

Network = Callable[[Tensor], Tensor]


def as_it_is(model: nn.Module, inputs: Sequence[Tensor]) -> Network:
    return model


def swapped(model: nn.Module, inputs: Sequence[Tensor]) -> Network:
    return mk.accelerate(model)


def compiled(model: nn.Module, inputs: Sequence[Tensor]) -> Network:
    return mk.compile(model, inputs[0], dtype=inputs[0].dtype)


def compiled_integers(model: nn.Module, inputs: Sequence[Tensor]) -> Network:
    """Calibrated on the inputs."""
    config = mk.QuantConfig(method="minmax")
    return mk.compile(mk.quantize(model, [x.float() for x in inputs], config, progress=False), inputs[0])


@dataclass(frozen=True)
class Variant:
    """One way to run a model. `build` gets a copy of its own and the inputs, in the dtype and memory format of the comparison.

    channels_last: that format, the default one, or (None) either: the default one, unless the comparison is of channels_last.
    """

    name: str
    build: Callable[[nn.Module, Sequence[Tensor]], Network]
    channels_last: bool | None = False
    baseline: bool = False  # PyTorch eager: speed-ups are over the fastest of these


VARIANTS = (
    Variant("PyTorch eager", as_it_is, baseline=True),
    Variant("PyTorch channels_last", as_it_is, channels_last=True, baseline=True),
    Variant("swapped", swapped),
    Variant("swapped channels_last", swapped, channels_last=True),
    Variant("compiled", compiled, channels_last=None),
    Variant("compiled, int8", compiled_integers, channels_last=None),
)


def compare(
    model: nn.Module,
    inputs: Sequence[Tensor],
    variants: Iterable[Variant],
    *,
    rounds: int,
    warmup: int = 3,
    dtype: torch.dtype = torch.float32,
    label: str = "",
) -> list[dict[str, Any]]:
    """Rows, one a variant: latency on inputs[0] in turn with the other variants, the second call of each in a row, and the difference
    over all inputs.

    model: plain PyTorch, float32, in evaluation mode; it is copied. inputs: batches (B, 3, H, W) float32.
    Raises ValueError where logits are not finite.
    The difference is that of the logits from those of `model` itself, so with another dtype it contains the rounding of that dtype.
    """
    with torch.inference_mode():
        expected = [model(x) for x in inputs]
    variants = list(variants)
    networks, differences = {}, {}
    for variant in variants:
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        batches = [x.to(dtype, memory_format=layout) for x in inputs]
        network = variant.build(copy.deepcopy(model).to(dtype=dtype, memory_format=layout), batches)  # type: ignore[call-overload]
        with torch.inference_mode():  # entered with a model that was made outside, as one loads it
            outputs = [network(x).float() for x in batches]
        difference = float(torch.stack([(y - e).abs().max() for y, e in zip(outputs, expected, strict=True)]).max())
        if not math.isfinite(difference):
            raise ValueError(f"compare: {label or 'model'}: expected finite logits in both, got others in {variant.name} or PyTorch eager")
        differences[variant.name] = difference
        networks[variant.name] = lambda network=network, x=batches[0]: network(x)

    with torch.inference_mode():
        times = interleaved(networks, rounds=rounds, warmup=warmup, settle=1, label=label)
    fastest_eager = min(times[variant.name].median for variant in variants if variant.baseline)
    logit_range = max(float(e.max() - e.min()) for e in expected)
    return [
        {
            "variant": name,
            "median_ms": 1e3 * time.median,
            "min_ms": 1e3 * time.minimum,
            "spread_ms": 1e3 * time.spread,
            "speedup": fastest_eager / time.median,
            "max_difference": differences[name],
            "logit_range": logit_range,
        }
        for name, time in times.items()
    ]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of `compare` under COLUMNS."""
    return [
        row["variant"],
        f"{row['median_ms']:.2f}",
        f"{row['min_ms']:.2f}",
        f"{row['spread_ms']:.2f}",
        f"{row['speedup']:.2f}x",
        f"{row['max_difference']:.1e}" if row["max_difference"] else "0",
    ]
