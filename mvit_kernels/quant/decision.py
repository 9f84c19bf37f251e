"""What a method decided about a result or a weight, and why: the entries of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .representation import SEVERAL, Byte, Channels, Representation, Stream
from .simulated import SOFTMAX, LogIntSoftmax, RootLogSoftmax, Twin, TwinSoftmax

Numbers = float | tuple[float, ...]


@dataclass(frozen=True)
class Decision:
    """A quantizer of a result, or of the weight of a node.

    Attributes:
        name: of the result (`<name>.bytes`: of what a stream has, in bytes; `<name>.scores`, `<name>.values`: of a map for separable
            attention; `<name>.softmax`: of the weights inside of attention), or of the node that has the weight.
        of: "activation" or "weight".
        low, high: what calibration showed.
        scale: a number, or one for each channel; of twin uniform quantizers both steps; of logarithms what 0 stands for.
        zero_point: likewise; None of weights, which are symmetric, and of quantizers that have none.
        bits: 8, 6, or 16 of streams; 4 of softmax by FQ-ViT.
        scheme: "asymmetric" or "symmetric"; of what no kernel runs "twin uniform", "log 2" or "log sqrt 2".
        granularity: "tensor", or "channel": one scale or zero-point for each channel.
        overflow: the range has no 0 in it, so that the zero-point of a step fitted to it does not fit into the bits.
        resolution: what was done about it: "wide zero-point", which integer kernels take, or "widened" to 0; None where there was no need.
        objective: what the method makes small: "hessian", "cosine", "mse", or None.
        error, minmax_error: the objective of this decision, and that of min-max in its place; None where the method does not look.
        bridge: number of the bridge block that it was decided in, or None.
    """

    name: str
    of: str
    low: float
    high: float
    scale: Numbers
    zero_point: int | tuple[int, ...] | None
    bits: int
    scheme: str
    granularity: str
    overflow: bool = False
    resolution: str | None = None
    objective: str | None = None
    error: float | None = None
    minmax_error: float | None = None
    bridge: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Decision:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return cls(**values)


def parts_of(key: str, found: Representation) -> list[tuple[str, Representation]]:
    """The quantizers of a representation by name."""
    if isinstance(found, SEVERAL):
        return [(f"{key}.{name}", byte) for name, byte in found.parts().items()]
    return [(key, found)]


def decision_of(name: str, found: Representation, low: float, high: float, **more: Any) -> Decision:
    """of `found`, one quantizer; low, high: what calibration showed."""
    assert not isinstance(found, SEVERAL)
    if isinstance(found, (Twin, *SOFTMAX)):
        scale, scheme = _simulated(found)
        return Decision(name, "activation", low, high, scale, None, found.bits, scheme, "tensor", **more)
    if isinstance(found, Stream):
        return Decision(name, "activation", low, high, found.scale, 0, 16, "symmetric", "tensor", **more)
    zeros = found.zero_points if isinstance(found, Channels) else (found.zero_point,)
    symmetric = all(zero == 2 ** (found.bits - 1) for zero in zeros)
    overflow = low > 0 or high < 0
    fields: dict[str, Any] = {
        "bits": found.bits, "scheme": "symmetric" if symmetric else "asymmetric", "overflow": overflow,
        "resolution": ("wide zero-point" if is_wide(found) else "widened") if overflow or is_wide(found) else None,
    }  # fmt: skip
    if isinstance(found, Byte):
        return Decision(name, "activation", low, high, found.scale, found.zero_point, granularity="tensor", **(fields | more))
    return Decision(name, "activation", low, high, found.scales, found.zero_points, granularity="channel", **(fields | more))


def _simulated(found: Representation) -> tuple[Numbers, str]:
    """(scale, scheme)."""
    if isinstance(found, Twin):
        return (found.negative, found.positive), "twin uniform"
    if isinstance(found, TwinSoftmax):
        most = 2 ** (found.bits - 1) - 1
        return (found.split / most, 1 / most), "twin uniform"
    if isinstance(found, LogIntSoftmax):
        return 1.0, "log 2"
    assert isinstance(found, RootLogSoftmax)
    return found.largest, "log sqrt 2"


def is_wide(found: Byte | Channels) -> bool:
    """Whether a zero-point is outside of the bits."""
    zeros = found.zero_points if isinstance(found, Channels) else (found.zero_point,)
    return not all(0 <= zero < 2**found.bits for zero in zeros)
