"""Quantizers that papers have and no kernel here runs: a network that has them is a simulation.

Of results: one step for what is negative and one for what is not. Of softmax: logarithms, or one step for small weights and one for large
ones. Those of softmax are called with scores (..., M), in its place, and give weights of the same shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Twin:
    """Twin uniform quantization: integers times `negative` below 0, times `positive` above, 2^(bits - 1) of either sign.

    Yuan, Xue, Chen, Wu and Sun 2022, "PTQ4ViT: post-training quantization for vision transformers with twin uniform quantization" (arXiv
    2111.12293), equation 7, for what GELU gives, whose negative side is short.
    """

    negative: float
    positive: float
    bits: int

    fold = None  # scales of channels that weights absorb: none

    def fake(self, x: Tensor, axis: int = 1) -> Tensor:
        """x, quantized and back."""
        most = 2 ** (self.bits - 1)
        above = (x / self.positive).round_().clamp_(0, most - 1).mul_(self.positive)
        return above.add_((x / self.negative).round_().clamp_(-most, 0).mul_(self.negative))  # one of both is 0

    def farthest(self) -> float:
        """The largest size of an integer."""
        return float(2 ** (self.bits - 1))

    def representation(self) -> Twin:
        return self


@dataclass(frozen=True)
class TwinSoftmax:
    """Twin uniform quantization of softmax: weights below `split` in steps of split / (2^(bits - 1) - 1), others in steps of 1 / (2^(bits -
    1) - 1). PTQ4ViT, equation 7.

    The published code adds up both ranges, clamped, and so `split` comes to every weight above it; here a weight is in one of them.
    """

    split: float
    bits: int

    def __call__(self, scores: Tensor) -> Tensor:
        weights, most = scores.softmax(-1), 2 ** (self.bits - 1) - 1
        step = self.split / most
        return torch.where(weights < self.split, (weights / step).round() * step, (weights * most).round() / most)


@dataclass(frozen=True)
class LogIntSoftmax:
    """Log-int-softmax: exponentials of integer scores in integers, and the nearest 2^-q of each quotient, q in 0 .. 2^bits - 1.

    scale, zero_point, score_bits: of the scores, as bytes. Lin, Zhang, Sun, Li and Zhou 2022, "FQ-ViT: post-training quantization for fully
    quantized vision transformer" (arXiv 2111.13824), section 4.2; exponentials are those of I-BERT (arXiv 2101.01321): of a score
    x = r - s ln 2, e^x = 2^-s e^r, and e^r of r in (-ln 2, 0] by a polynomial of degree 2, on integers.
    """

    scale: float
    zero_point: int
    score_bits: int
    bits: int = 4

    def __call__(self, scores: Tensor) -> Tensor:
        x = (scores.double() / self.scale).round().clamp(-self.zero_point, 2**self.score_bits - 1 - self.zero_point)
        exponentials = _integer_exponential(x - x.amax(-1, keepdim=True), self.scale)
        quotient = (exponentials.sum(-1, keepdim=True) / exponentials).round()
        mantissa, exponent = quotient.frexp()
        q = exponent - 1 + (mantissa >= 0.75)  # the nearest power of two
        return torch.where((q < 2**self.bits) & quotient.isfinite(), 0.5**q, 0.0).to(scores.dtype)


def _integer_exponential(x: Tensor, scale: float) -> Tensor:
    """e^(scale x) of integers x <= 0, up to a factor."""
    b, c, most = 0.96963238 / 0.35815147, 1 / 0.35815147, 30
    ln2 = math.floor(-0.6931 / scale)
    x = x.clamp_min(most * ln2)
    s = (x / ln2).floor()
    r = x - ln2 * s
    # Steps of scores so long that nothing is left of the constant would make every exponential 0, and quotients undefined.
    polynomial = r * (r + math.floor(b / scale)) + max(math.floor(c / scale**2), 1)
    return (polynomial * 2.0 ** (most - s)).floor().clamp_min(0)


@dataclass(frozen=True)
class RootLogSoftmax:
    """largest * 2^(-q / 2), q in 0 .. 2^bits - 1; smaller weights are 0.

    Li, Xiao, Yang and Gu 2023, "RepQ-ViT: scale reparameterization for post-training quantization of vision transformers" (arXiv
    2212.08254), section 3.4. There the base is 2 in hardware, and scales that depend on q's parity make up for it: the same numbers.
    """

    largest: float
    bits: int

    def quantized(self, weights: Tensor) -> Tensor:
        q = (-2 * (weights / self.largest).log2()).round()
        return torch.where(q < 2**self.bits, self.largest * 0.5 ** (q.clamp_min(0) / 2), 0.0)

    def __call__(self, scores: Tensor) -> Tensor:
        return self.quantized(scores.softmax(-1))


Softmax = TwinSoftmax | LogIntSoftmax | RootLogSoftmax
SOFTMAX = (TwinSoftmax, LogIntSoftmax, RootLogSoftmax)
_KINDS: tuple[type[Any], ...] = (Twin, *SOFTMAX)


def kind_of(fields: set[str]) -> type[Any] | None:
    """The class that has these fields."""
    return next((kind for kind in _KINDS if set(kind.__dataclass_fields__) == fields), None)
