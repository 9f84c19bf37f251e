"""Our own Mobile-Former (mvit_kernels.models.mobile_former): whole blocks in evaluation, where shuffles of channels and groups are but an
order of weights and zeros among them; in training attention and dynamic ReLU by ops with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels import ops
from mvit_kernels.models import mobile_former
from mvit_kernels.models.mobile_former import BRIDGE_HEADS, FORMER_HEADS

from . import blocks, fused, weights
from .blocks import Replacement
from .obstacles import (
    BATCH_NORM,
    CONVOLUTION,
    DROPOUT,
    GELU,
    LAYER_NORM,
    LINEAR,
    Kind,
    Place,
    evaluates,
    grouped,
    multiplied,
    not_replaced,
    one_of,
)
from .weights import Convolution

Tensor = torch.Tensor
Backend = str | None

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_GROUPED = one_of(Kind(nn.Conv2d, grouped, watched=_GEOMETRY))
_DEPTHWISE = one_of(Kind(nn.Conv2d, multiplied, watched=_GEOMETRY))
_SHUFFLE = one_of(Kind(nn.ChannelShuffle, watched=("groups",)), Kind(nn.Identity))
_RELU6 = one_of(Kind(nn.ReLU6))


def _in_order(*places: Place) -> Place:
    """Of a Sequential."""
    return one_of(Kind(nn.Sequential, children={str(i): place for i, place in enumerate(places)}))


def _runs(shuffle: nn.Module) -> int:
    """How many runs of channels it deals out."""
    return shuffle.groups if isinstance(shuffle, nn.ChannelShuffle) else 1


def _convolution(conv: Any, norm: Any, activation: str = "none") -> Convolution:
    return Convolution(conv, norm, activation)


# --- the map ---


class Stem(blocks.ConvLayer, mobile_former.Stem):
    _places: ClassVar[Mapping[str, Place]] = {"0": CONVOLUTION, "1": BATCH_NORM, "2": _RELU6}

    def _parts(self) -> Convolution:
        return _convolution(self[0], self[1], "relu6")


class _Filter(NamedTuple):
    """A depthwise convolution that widens, whose activation is behind a shuffle of `runs`, and the 1x1 that narrows it again. They need no
    shuffle: the 1x1 takes the channels in the order in which they come."""

    depthwise: Convolution
    runs: int
    reduce: Convolution

    def __call__(self, x: Tensor, slopes: Any, backend: Backend, residual: Tensor | None = None) -> Tensor:
        """slopes: of the layer that makes them and its input; None for ReLU6."""
        weight, bias = weights.grouped_convolution(self.reduce, before=self.runs)
        y = fused.convolution(x, self.depthwise, backend)
        if slopes is not None:
            y = ops.dynamic_relu(y, slopes(self.runs), backend=backend)
        return ops.conv2d(y, weight, bias, residual=residual, backend=backend)


class LiteBlock(Replacement, mobile_former.LiteBlock):
    _option = "conv"
    _places: ClassVar[Mapping[str, Place]] = {"conv": _in_order(_DEPTHWISE, BATCH_NORM, _RELU6, _SHUFFLE, _GROUPED, BATCH_NORM)}

    def _parts(self) -> _Filter:
        depthwise, norm, _, shuffle, reduce, last = self.conv
        return _Filter(_convolution(depthwise, norm, "relu6"), _runs(shuffle), _convolution(reduce, last))

    def _ops(self) -> tuple[str, ...]:
        return ("depthwise_conv2d", "conv2d")

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: Tensor, parts: _Filter) -> Tensor:
        x = fused.autocast(x)
        return parts(x, None, self._backend, residual=x if self.has_skip else None)


_HYPER = _in_order(LINEAR, one_of(Kind(nn.ReLU)), LINEAR, one_of(Kind(nn.Hardsigmoid)))


class DynamicReLU(Replacement, mobile_former.DynamicReLU):
    """By itself, in training above all."""

    _option = "conv"
    _places: ClassVar[Mapping[str, Place]] = {"hyper": _HYPER}

    def _ops(self) -> tuple[str, ...]:
        return ("dynamic_relu",)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        if self._obstacle() is not None or self._standing_back(x):
            return super().forward(x, token)
        first, relu, last, _ = self.hyper
        return ops.dynamic_relu(x, (last(relu(first(token))) / 3).to(x.dtype), backend=self._backend)


_DYNAMIC = one_of(Kind(DynamicReLU, children={"hyper": _HYPER}), Kind(mobile_former.DynamicReLU, not_replaced))


# --- the tokens ---


class _Rows(NamedTuple):
    """Tokens (B, T, D) as the rows of a matrix."""

    rows: Tensor
    batch: int
    number: int

    @staticmethod
    def of(tokens: Tensor, x: Tensor) -> _Rows:
        """For a batch as large as that of x, of tokens that may be the same for all of it."""
        tokens = tokens.expand(x.shape[0], -1, -1)
        return _Rows(tokens.reshape(-1, tokens.shape[2]), x.shape[0], tokens.shape[1])

    def tokens(self, rows: Any = None) -> Tensor:
        rows = self.rows if rows is None else rows
        return rows.reshape(self.batch, self.number, rows.shape[1])

    def through(self, layer: Any, backend: Backend, **more: Any) -> Any:
        return ops.gemm(self.rows, layer.weight, layer.bias, backend=backend, **more)


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C): a view of channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def _as_map(pixels: Tensor, like: Tensor) -> Tensor:
    return pixels.transpose(1, 2).unflatten(2, like.shape[2:])


def _normed(norm: Any, rows: Any, backend: Backend) -> Any:
    return ops.layer_norm(rows, norm.weight, norm.bias, norm.eps, backend=backend)


class MobileToFormer(Replacement, mobile_former.MobileToFormer):
    _option = "attention"
    _places: ClassVar[Mapping[str, Place]] = {
        "alpha": _in_order(LINEAR, one_of(Kind(nn.Hardsigmoid))), "q": LINEAR, "proj": LINEAR, "layer_norm": LAYER_NORM
    }  # fmt: skip

    def _parts(self) -> Any:
        return self.alpha, self.q, self.proj, self.layer_norm

    def _ops(self) -> tuple[str, ...]:
        return ("gemm", "attention", "hard_gate", "layer_norm")

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        prepared = None if tokens.requires_grad and torch.is_grad_enabled() else self._prepared_for(x)
        if prepared is not None:
            z = _Rows.of(tokens.to(x.dtype), x)
            return z.tokens(mobile_to_former(prepared.parts, z, x, self._backend))
        if self._obstacle() is not None or self._standing_back(x):
            return super().forward(tokens, x)
        pixels = _pixels(x)
        query = self.q(tokens).expand(x.shape[0], -1, -1).to(x.dtype)
        seen = ops.attention(query, pixels, pixels, BRIDGE_HEADS, backend=self._backend)
        return self.layer_norm(tokens + self.proj(seen * (2 * self.alpha(tokens))))


def mobile_to_former(parts: Any, z: _Rows, x: Tensor, backend: Backend) -> Any:
    """Rows of tokens that have looked at a map. The gate is twice a hard-sigmoid; the factor is one of the projection's weights."""
    alpha, query, proj, norm = parts
    pixels = _pixels(x)
    seen = ops.attention(z.tokens(z.through(query, backend)), pixels, pixels, BRIDGE_HEADS, backend=backend)
    gated = ops.hard_gate(seen.reshape(-1, seen.shape[2]), z.through(alpha[0], backend), backend=backend)
    weight, bias = weights.doubled(proj)
    return _normed(norm, ops.gemm(gated, weight, bias, residual=z.rows, backend=backend), backend)


class Former(Replacement, mobile_former.Former):
    _option = "attention"
    _places: ClassVar[Mapping[str, Place]] = {
        "ffn": _in_order(LINEAR, GELU, LINEAR), "ffn_norm": LAYER_NORM, "q": LINEAR, "channel_mlp": LINEAR, "layer_norm": LAYER_NORM
    }  # fmt: skip

    def _parts(self) -> Any:
        return self.q, self.channel_mlp, self.layer_norm, self.ffn, self.ffn_norm

    def _ops(self) -> tuple[str, ...]:
        return ("gemm", "attention", "layer_norm")

    def _standing_back(self, x: Tensor) -> bool:
        return super()._standing_back(x[..., None])

    def forward(self, tokens: Tensor) -> Tensor:
        prepared = self._prepared_for(tokens)
        if prepared is not None:
            return self._run(tokens, prepared)
        if self._obstacle() is not None or self._standing_back(tokens):
            return super().forward(tokens)
        query = self.q(tokens).to(tokens.dtype)
        seen = ops.attention(query, tokens, tokens, FORMER_HEADS, backend=self._backend)
        tokens = self.layer_norm(tokens + self.channel_mlp(seen))
        return self.ffn_norm(tokens + self.ffn(tokens))

    def _fused(self, tokens: Tensor, parts: Any) -> Tensor:
        z = _Rows(tokens.reshape(-1, tokens.shape[2]), tokens.shape[0], tokens.shape[1])
        return z.tokens(former(parts, z, self._backend))


def former(parts: Any, z: _Rows, backend: Backend) -> Any:
    """Rows of tokens that have looked at each other."""
    query, proj, norm, ffn, ffn_norm = parts
    tokens = z.tokens()
    seen = ops.attention(z.tokens(z.through(query, backend)), tokens, tokens, FORMER_HEADS, backend=backend)
    rows = _normed(norm, ops.gemm(seen.reshape(-1, seen.shape[2]), proj.weight, proj.bias, residual=z.rows, backend=backend), backend)
    hidden: Any = ops.gemm(rows, ffn[0].weight, ffn[0].bias, activation="gelu", backend=backend)
    return _normed(ffn_norm, ops.gemm(hidden, ffn[2].weight, ffn[2].bias, residual=rows, backend=backend), backend)


class FormerToMobile(Replacement, mobile_former.FormerToMobile):
    _option = "attention"
    _places: ClassVar[Mapping[str, Place]] = {"k": LINEAR, "proj": LINEAR}

    def _parts(self) -> Any:
        return self.k, self.proj

    def _ops(self) -> tuple[str, ...]:
        return ("gemm", "attention")

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        prepared = None if tokens.requires_grad and torch.is_grad_enabled() else self._prepared_for(x)
        if prepared is not None:
            return former_to_mobile(prepared.parts, x, _Rows.of(tokens.to(x.dtype), x), self._backend)
        if self._obstacle() is not None or self._standing_back(x):
            return super().forward(x, tokens)
        key, value = (layer(tokens).to(x.dtype) for layer in (self.k, self.proj))
        return x + _as_map(ops.attention(_pixels(x), key, value, BRIDGE_HEADS, backend=self._backend), x)


def former_to_mobile(parts: Any, x: Tensor, z: _Rows, backend: Backend) -> Tensor:
    """A map that has looked at the tokens."""
    key, value = (z.tokens(z.through(layer, backend)) for layer in parts)
    return x + _as_map(ops.attention(_pixels(x), key, value, BRIDGE_HEADS, backend=backend), x)


_BRIDGES: Mapping[str, Place] = {
    "local_global": one_of(Kind(MobileToFormer, children=MobileToFormer._places), Kind(mobile_former.MobileToFormer, not_replaced)),
    "global_block": one_of(Kind(Former, children=Former._places), Kind(mobile_former.Former, not_replaced)),
    "global_local": one_of(Kind(FormerToMobile, children=FormerToMobile._places), Kind(mobile_former.FormerToMobile, not_replaced)),
}


# --- blocks and head ---


class _Steered(NamedTuple):
    """The layers that make the slopes of a dynamic ReLU."""

    hidden: nn.Linear
    last: nn.Linear

    @staticmethod
    def of(relu: Any) -> _Steered:
        return _Steered(relu.hyper[0], relu.hyper[2])

    def slopes(self, token: Tensor, backend: Backend, runs: int = 1) -> Any:
        """runs: that were dealt out in front of the activation, which is now in front of that."""
        hidden: Any = ops.gemm(token, self.hidden.weight, self.hidden.bias, activation="relu", backend=backend)
        return ops.gemm(hidden, *weights.slopes(self.last, runs), backend=backend)


class _Block(Replacement):
    """Whole, in evaluation."""

    _option = "conv"

    def _ops(self) -> tuple[str, ...]:
        return ("conv2d", "depthwise_conv2d", "dynamic_relu", "gemm", "attention", "hard_gate", "layer_norm")

    def _bridges(self) -> tuple[Any, Any, Any]:
        return self.local_global._parts(), self.global_block._parts(), self.global_local._parts()  # which are replaced too

    def _filtered(self, x: Tensor, token: Tensor, parts: Any) -> Tensor:
        """The convolutions, whose activations the first token steers."""
        raise NotImplementedError

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        prepared = None if tokens.requires_grad and torch.is_grad_enabled() else self._prepared_for(x)
        if prepared is None:
            return super().forward(x, tokens)
        x = fused.autocast(x)
        (looking, thinking, telling), parts = prepared.parts
        z = _Rows.of(tokens.to(x.dtype), x)
        z = z._replace(rows=mobile_to_former(looking, z, x, self._backend))
        z = z._replace(rows=former(thinking, z, self._backend))
        tokens = z.tokens()
        return former_to_mobile(telling, self._filtered(x, tokens[:, 0], parts), z, self._backend), tokens


_EXPAND = _in_order(_GROUPED, BATCH_NORM, _SHUFFLE)


class InvertedBlock(_Block, mobile_former.InvertedBlock):
    _places: ClassVar[Mapping[str, Place]] = {
        "conv1": _EXPAND, "hyper1": _DYNAMIC, "conv2": _in_order(_DEPTHWISE, BATCH_NORM), "hyper2": _DYNAMIC, "conv3": _EXPAND, **_BRIDGES
    }  # fmt: skip

    def _parts(self) -> Any:
        (expand, norm1, shuffle1), (depthwise, norm2), (reduce, norm3, shuffle3) = self.conv1, self.conv2, self.conv3
        return self._bridges(), (
            _convolution(expand, norm1), _runs(shuffle1), _Steered.of(self.hyper1), _convolution(depthwise, norm2),
            _Steered.of(self.hyper2), _convolution(reduce, norm3), _runs(shuffle3),
        )  # fmt: skip

    def _filtered(self, x: Tensor, token: Tensor, parts: Any) -> Tensor:
        expand, shuffled, first, depthwise, second, reduce, dealt = parts
        backend = self._backend
        weight, bias = weights.grouped_convolution(expand, behind=shuffled)
        y = ops.dynamic_relu(ops.conv2d(x, weight, bias, backend=backend), first.slopes(token, backend), backend=backend)
        y = ops.dynamic_relu(fused.convolution(y, depthwise, backend), second.slopes(token, backend), backend=backend)
        weight, bias = weights.grouped_convolution(reduce, behind=dealt)
        return ops.conv2d(y, weight, bias, residual=x if self.has_skip else None, backend=backend)


_WIDEN, _NARROW = _in_order(_DEPTHWISE, BATCH_NORM, _SHUFFLE), _in_order(_GROUPED, BATCH_NORM)


class DownsamplingBlock(_Block, mobile_former.DownsamplingBlock):
    _places: ClassVar[Mapping[str, Place]] = {
        "conv1": _WIDEN, "hyper1": _DYNAMIC, "conv2": _NARROW, "conv3": _WIDEN, "hyper3": _DYNAMIC, "conv4": _NARROW, **_BRIDGES
    }  # fmt: skip

    def _parts(self) -> Any:
        filters = [
            _Filter(_convolution(wide[0], wide[1]), _runs(wide[2]), _convolution(narrow[0], narrow[1]))
            for wide, narrow in ((self.conv1, self.conv2), (self.conv3, self.conv4))
        ]
        return self._bridges(), (*filters, _Steered.of(self.hyper1), _Steered.of(self.hyper3))

    def _filtered(self, x: Tensor, token: Tensor, parts: Any) -> Tensor:
        first, second, steering, steering2 = parts
        backend = self._backend
        y = first(x, lambda runs: steering.slopes(token, backend, runs), backend)
        return second(y, lambda runs: steering2.slopes(token, backend, runs), backend, residual=y)


class MobileFormerHead(Replacement, mobile_former.MobileFormerHead):
    _option = "conv"
    _places: ClassVar[Mapping[str, Place]] = {
        "conv": _in_order(_SHUFFLE, _GROUPED, BATCH_NORM, _RELU6),
        "fc": _in_order(LINEAR, one_of(Kind(nn.BatchNorm1d, evaluates)), one_of(Kind(nn.Hardswish))),
        "classifier": _in_order(one_of(DROPOUT), {**LINEAR, **one_of(Kind(nn.Identity))}),
    }  # fmt: skip

    def _parts(self) -> Any:
        shuffle, conv, norm, _ = self.conv
        last: Any = self.classifier[1]
        return _convolution(conv, norm, "relu6"), _runs(shuffle), self.fc[0], self.fc[1], None if isinstance(last, nn.Identity) else last

    def _ops(self) -> tuple[str, ...]:
        return ("conv2d", "gemm")

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        prepared = None if token.requires_grad and torch.is_grad_enabled() else self._prepared_for(x)
        if prepared is None:
            return super().forward(x, token)
        x, backend = fused.autocast(x), self._backend
        conv, runs, hidden, norm, last = prepared.parts
        y = ops.conv2d(x, *weights.grouped_convolution(conv, before=runs), activation="relu6", backend=backend)
        both = torch.cat((F.hardswish(y.mean(dim=(2, 3))), token.to(x.dtype)), dim=1)
        features: Any = ops.gemm(both, *weights.linear_with_norm(hidden, norm), activation="hard_swish", backend=backend)
        logits: Any = features if last is None else ops.gemm(features, last.weight, last.bias, backend=backend)
        return logits


REPLACEMENTS = {
    mobile_former.Stem: Stem,
    mobile_former.LiteBlock: LiteBlock,
    mobile_former.InvertedBlock: InvertedBlock,
    mobile_former.DownsamplingBlock: DownsamplingBlock,
    mobile_former.DynamicReLU: DynamicReLU,
    mobile_former.MobileToFormer: MobileToFormer,
    mobile_former.Former: Former,
    mobile_former.FormerToMobile: FormerToMobile,
    mobile_former.MobileFormerHead: MobileFormerHead,
}
