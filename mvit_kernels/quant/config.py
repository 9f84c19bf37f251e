"""What a quantization is asked to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from mvit_kernels.messages import shown

METHODS = ("qhyvit", "minmax", "percentile", "omse", "easyquant", "ptq4vit", "fqvit", "repqvit", "best")
_FIELDS = ("weight_bits", "activation_bits")


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantized.

    Args:
        weight_bits: 8 or 6, of the weights of convolutions and linear maps: symmetric, one scale for each output channel.
        activation_bits: 8 or 6; None: activations stay float32, and weights alone are rounded.
        method: how scales are found:
            "qhyvit": scale, granularity and scheme together, by what an error does to the loss, in a network whose channels were made alike
            where they share a scale (`quant/methods/qhyvit.py`);
            "minmax": the smallest and the largest value that calibration shows;
            "percentile": the same without the farthest values;
            "omse": the least squared error of each tensor;
            "easyquant": scales of weights and results in turns, by the angle of each layer's result;
            "best": "qhyvit", then weights that are rounded together and corrected biases (`quant/methods/best.py`);
            "ptq4vit", "fqvit", "repqvit": published methods, for comparison. They have quantizers that no kernel runs, so that a network
            is simulated and can neither be converted nor compiled.
        full: softmax and norms in integers too. In this version they are anyway, as far as kernels go.
        skip: patterns of node names (as of `fnmatch`) that stay float: their weights are not rounded either.
        overrides: pattern of node names -> a dict of weight_bits and activation_bits that differ for them; of several that match, the last.
            The activation_bits of a node are those of its result; None runs it in float32 with rounded weights.
        seed: of whatever a method draws by chance.

    Node names are the paths of modules: "stem.conv", "stages.2.1.transformer.*"; the report of a quantized model has them all.

    Raises:
        TypeError, ValueError: anything else.
    """

    weight_bits: int = 8
    activation_bits: int | None = 8
    method: str = "qhyvit"
    full: bool = False
    skip: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        _check_bits("", self.weight_bits, self.activation_bits)
        if self.method not in METHODS:
            raise ValueError(f"QuantConfig: method: expected one of {', '.join(METHODS)}, got {shown(self.method)}")
        if not isinstance(self.full, bool):
            raise TypeError(f"QuantConfig: full: expected True or False, got {shown(self.full)}")
        skip = tuple(self.skip) if isinstance(self.skip, Iterable) else ()  # once: it may be a generator
        if isinstance(self.skip, str) or not isinstance(self.skip, Iterable) or not all(isinstance(each, str) for each in skip):
            raise TypeError(f"QuantConfig: skip: expected a sequence of patterns, got {shown(self.skip)}")
        object.__setattr__(self, "skip", skip)
        if not isinstance(self.overrides, Mapping):
            raise TypeError(f"QuantConfig: overrides: expected a dict of patterns, got {shown(self.overrides)}")
        for pattern, fields in self.overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"QuantConfig: overrides: expected patterns of node names as keys, got {shown(pattern)}")
            if not isinstance(fields, Mapping) or not set(fields) <= set(_FIELDS):
                raise ValueError(f"QuantConfig: overrides[{pattern!r}]: expected a dict of {' and '.join(_FIELDS)}, got {shown(fields)}")
            _check_bits(f"overrides[{pattern!r}]: ", fields.get("weight_bits", 8), fields.get("activation_bits", 8))
        object.__setattr__(
            self, "overrides", {pattern: dict(fields) for pattern, fields in self.overrides.items()}
        )  # the caller's may change
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"QuantConfig: seed: expected an integer, got {shown(self.seed)}")

    def skips(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def weight_bits_of(self, name: str) -> int:
        return self._of(name, "weight_bits", self.weight_bits)

    def activation_bits_of(self, name: str) -> int | None:
        return self._of(name, "activation_bits", self.activation_bits)

    def _of(self, name: str, which: str, otherwise: Any) -> Any:
        for pattern, fields in self.overrides.items():
            if which in fields and fnmatchcase(name, pattern):
                otherwise = fields[which]
        return otherwise

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `QuantConfig(**d)` is the same again."""
        return asdict(self) | {"skip": list(self.skip), "overrides": {key: dict(value) for key, value in self.overrides.items()}}


def _check_bits(where: str, weight_bits: Any, activation_bits: Any) -> None:
    if type(weight_bits) is not int or weight_bits not in (8, 6):  # 8.0 equals 8, and is none that kernels take
        raise ValueError(f"QuantConfig: {where}weight_bits: expected 8 or 6, got {shown(weight_bits)}")
    if activation_bits is not None and (type(activation_bits) is not int or activation_bits not in (8, 6)):
        raise ValueError(f"QuantConfig: {where}activation_bits: expected 8, 6 or None, got {shown(activation_bits)}")
