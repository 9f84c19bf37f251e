"""Forwards of EfficientFormer (V1) and EfficientFormerV2, which the files of our models and of timm's build on: whole blocks on
channels-last maps in evaluation, and their attention by `ops.attention` in training too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels import ops

from . import fused, weights
from .blocks import Replacement
from .obstacles import Obstacle, Place, activation_name, inside, shadowed
from .weights import Convolution

Tensor = torch.Tensor


class PoolingParts(NamedTuple):
    """x += scale (mean of neighbours - x); x += second(first(x))."""

    scale: Tensor
    first: Convolution
    second: Convolution


class TokenParts(NamedTuple):
    """x += scale1 proj(attention(qkv(norm1(x)))); x += scale2 fc2(act(fc1(norm2(x)))) on tokens."""

    norm1: Any  # nn.LayerNorm
    attention: Any  # what has qkv, proj, attention_biases and attention_bias_idxs
    heads: int
    parts: tuple[int, int, int]  # queries, keys and values of a head
    scale1: Tensor
    norm2: Any
    fc1: nn.Linear
    fc2: nn.Linear
    scale2: Tensor
    activation: str


class AttentionParts(NamedTuple):
    """proj(gelu(enlarged(attention(q, k, v) + local(v)))), all of a filtered map if it has a filter. The module is not among them: it
    lives as long as what is kept here."""

    heads: int
    filter: Convolution | None  # a depthwise one
    projections: tuple[Convolution, ...]  # to queries, keys and values
    local: Convolution
    mix_scores: nn.Conv2d | None
    mix_weights: nn.Conv2d | None
    enlarge: int  # how many times as high and wide
    proj: Convolution
    query_filter: nn.Conv2d | None = None  # of every second pixel, which is added to its result


class BlockParts(NamedTuple):
    """x += attention(x), if there is one; x += third(second(first(x))), an inverted residual."""

    attention: AttentionParts | None
    mlp: tuple[Convolution, Convolution, Convolution]


class PoolingBlock(Replacement):
    """EfficientFormer's block without attention, in evaluation."""

    _option = "conv"

    def _parts(self) -> PoolingParts:
        mlp = self.mlp
        first = Convolution(mlp.fc1, mlp.norm1, activation_name(mlp.act))
        return PoolingParts(self.ls1.gamma, first, Convolution(mlp.fc2, mlp.norm2, "none", self.ls2.gamma))

    def _ops(self) -> tuple[str, ...]:
        return ("pool_mixer", "conv2d")

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: Tensor, parts: PoolingParts) -> Tensor:
        x = ops.pool_mixer(fused.autocast(x), parts.scale, backend=self._backend)
        y = fused.convolution(x, parts.first, self._backend)
        return fused.convolution(y, parts.second, self._backend, residual=x)


class TokenBlock(Replacement):
    """EfficientFormer's block with attention, in evaluation, on tokens (B, N, C)."""

    _option = "attention"

    def _parts(self) -> TokenParts:
        mixer: Any = self.token_mixer  # replaced too
        heads, parts = mixer._sizes()
        return TokenParts(
            self.norm1, mixer, heads, parts, self.ls1.gamma, self.norm2, self.mlp.fc1, self.mlp.fc2, self.ls2.gamma,
            activation_name(self.mlp.act),
        )  # fmt: skip

    def _ops(self) -> tuple[str, ...]:
        return ("gemm", "attention")

    def _standing_back(self, x: Tensor) -> bool:
        return super()._standing_back(x[..., None])

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: Tensor, parts: TokenParts) -> Tensor:
        x, backend = fused.autocast(x), self._backend
        tokens: Any = x.reshape(-1, x.shape[2])
        query, key, value = (
            _as_tokens(ops.gemm(tokens, weight, shift, layer_norm=True, eps=parts.norm1.eps, backend=backend), x)
            for weight, shift in weights.queries_keys_values(parts.norm1, parts.attention.qkv, parts.parts)
        )
        bias = weights.position_bias(parts.attention.attention_biases, parts.attention.attention_bias_idxs)
        seen = ops.attention(query, key, value, parts.heads, bias=bias, scale=parts.parts[0] ** -0.5, backend=backend)
        proj = weights.scaled_linear(parts.attention.proj, parts.scale1)
        tokens = ops.gemm(seen.reshape(-1, seen.shape[2]), *proj, residual=tokens, backend=backend)
        first = weights.linears(parts.norm2, parts.fc1)
        hidden: Any = ops.gemm(tokens, *first, layer_norm=True, eps=parts.norm2.eps, activation=parts.activation, backend=backend)
        second = weights.scaled_linear(parts.fc2, parts.scale2)
        y: Tensor = _as_tokens(ops.gemm(hidden, *second, residual=tokens, backend=backend), x)
        return y


def _as_tokens(rows: Any, like: Tensor) -> Any:
    return rows.reshape(like.shape[0], like.shape[1], rows.shape[1])


class TokenAttention(Replacement):
    """EfficientFormer's attention by itself: where its block runs as before, in training above all. (B, N, C) -> the same."""

    _option = "attention"

    def _sizes(self) -> tuple[int, tuple[int, int, int]]:
        """Heads, and what each has of queries, keys and values."""
        raise NotImplementedError

    def _ops(self) -> tuple[str, ...]:
        return ("attention",)

    def forward(self, x: Tensor) -> Tensor:
        if self._obstacle() is not None or self._standing_back(x[..., None]):
            return super().forward(x)
        heads, parts = self._sizes()
        projected = self.qkv(x).unflatten(2, (heads, -1)).split(parts, dim=3)
        query, key, value = (each.flatten(2) for each in projected)
        bias = self.attention_biases[:, self.attention_bias_idxs]
        return self.proj(ops.attention(query, key, value, heads, bias=bias, scale=parts[0] ** -0.5, backend=self._backend))


class OfConvolutions(Replacement):
    """A part of EfficientFormerV2, in a library that says how its convolutions are written."""

    @staticmethod
    def _convolution(module: Any, scale: Tensor | None = None) -> Convolution:
        """A convolution with its norm and activation, times scale."""
        raise NotImplementedError


class MapAttention(OfConvolutions):
    """EfficientFormerV2's attention by itself, on a map; with a `LocalGlobalQuery`, that between its stages."""

    _option = "attention"
    _fused_parts: ClassVar[Mapping[str, Place]]

    def _parts(self) -> AttentionParts:
        return self._scaled(None)

    def _scaled(self, scale: Tensor | None) -> AttentionParts:
        """Its parts, the last convolution times scale (N,)."""
        query_filter, own_filter = getattr(self.q, "local", None), getattr(self, "stride_conv", None)
        filtered = None if own_filter is None or isinstance(own_filter, nn.Identity) else self._convolution(own_filter)
        queries = self.q if query_filter is None else self.q.proj
        return AttentionParts(
            self._heads(), filtered, tuple(map(self._convolution, (queries, self.k, self.v))), self._convolution(self.v_local),
            getattr(self, "talking_head1", None), getattr(self, "talking_head2", None), 1 if filtered is None else filtered.stride,
            self._convolution(self.proj, scale), query_filter,
        )  # fmt: skip

    def _ops(self) -> tuple[str, ...]:
        return ("attention",)

    def _fused_places(self) -> Mapping[str, Place]:
        return self._fused_parts

    def _fused_obstacle(self) -> Obstacle | None:
        if not self._mvit_kernels_setting.conv:
            return Obstacle(self, "was accelerated without conv")
        return shadowed(self, self._helpers) or inside(self, self._fused_parts)

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        if prepared is not None:
            return self._run(x, prepared)
        if self._obstacle() is not None or self._standing_back(x):
            return super().forward(x)
        return self._attended(x)

    def _fused(self, x: Tensor, parts: AttentionParts) -> Tensor:
        return attention(self, fused.autocast(x), parts, None, self._backend)

    def _attended(self, x: Tensor) -> Tensor:
        """The modules around the attention one by one, with gradients."""
        filtered = getattr(self, "stride_conv", None)
        x = x if filtered is None else filtered(x)
        query, key, value = self.q(x), self.k(x), self.v(x)
        first, second = (getattr(self, name, None) for name in ("talking_head1", "talking_head2"))
        bias = self.attention_biases[:, self.attention_bias_idxs]
        if first is not None:
            bias = torch.einsum("hg,gnm->hnm", first.weight.flatten(1), bias)
            if first.bias is not None:  # softmax does not see it, but who trains expects a gradient of every parameter
                bias = bias + first.bias[:, None, None]
        y = ops.attention(
            _differentiated(query), _differentiated(key), _differentiated(value), self._heads(), bias=bias, mix_scores=_mixture(first),
            mix_weights=_mixture(second), mix_bias=None if second is None else second.bias, backend=self._backend,
        )  # fmt: skip
        y = y.transpose(1, 2).unflatten(2, query.shape[2:]) + self.v_local(value)
        enlarged = getattr(self, "upsample", None)
        return self.proj(self.act(y if enlarged is None else enlarged(y)))

    def _heads(self) -> int:
        raise NotImplementedError


class AttentionBlock(OfConvolutions):
    """EfficientFormerV2's block, in evaluation."""

    _option = "conv"

    def _fused_obstacle(self) -> Obstacle | None:
        obstacle = super()._fused_obstacle()
        if obstacle is None and not fused.is_inverted_residual(*self._parts().mlp):
            return Obstacle(self, "is no inverted residual of a kind that has a kernel")
        return obstacle

    def _parts(self) -> BlockParts:
        attention = self.token_mixer._scaled(self.ls1.gamma) if self._attends() else None  # the mixer is replaced too
        mlp = self.mlp
        return BlockParts(attention, (self._convolution(mlp.fc1), self._convolution(mlp.mid), self._convolution(mlp.fc2, self.ls2.gamma)))

    def _attends(self) -> bool:
        return self.token_mixer is not None and self.ls1 is not None

    def _ops(self) -> tuple[str, ...]:
        return ("attention", "conv2d", "inverted_residual") if self._attends() else ("inverted_residual",)

    def _small_call(self, op: str, like: Tensor) -> tuple[Any, ...]:
        if op != "inverted_residual":
            return super()._small_call(op, like)
        return fused.small_inverted_residual(like, *self._parts().mlp)

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: Tensor, parts: BlockParts) -> Tensor:
        x = fused.autocast(x)
        if parts.attention is not None:
            x = attention(self.token_mixer, x, parts.attention, x, self._backend)
        expand, depthwise, reduce = parts.mlp
        return fused.inverted_residual(x, expand, depthwise, reduce, True, self._backend)


class AttentionDownsample(OfConvolutions):
    """What halves the map between two stages of EfficientFormerV2: a convolution and, before the last stage, attention."""

    _option = "conv"

    def _parts(self) -> tuple[Convolution, AttentionParts | None]:
        return self._convolution(self.conv), None if self.attn is None else self.attn._scaled(None)  # which is replaced too

    def _ops(self) -> tuple[str, ...]:
        return ("conv2d",) if self.attn is None else ("conv2d", "attention")

    def forward(self, x: Tensor) -> Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: Tensor, parts: tuple[Convolution, AttentionParts | None]) -> Tensor:
        conv, attending = parts
        x = fused.autocast(x)
        y = fused.convolution(x, conv, self._backend)
        return y if attending is None else attention(self.attn, x, attending, y, self._backend)


def attention(module: Any, x: Tensor, parts: AttentionParts, residual: Tensor | None, backend: str | None) -> Tensor:
    """What `parts` of a module with attention_biases and attention_bias_idxs say of a channels-last map, plus `residual`."""
    if parts.filter is not None:
        x = fused.convolution(x, parts.filter, backend)
    queries = x
    if parts.query_filter is not None:
        weight, shift = weights.with_every_second_pixel(parts.query_filter)
        queries = ops.depthwise_conv2d(x, weight, shift, stride=2, backend=backend)
    sources = (queries, x, x)
    query, key, value = (fused.convolution(source, part, backend) for source, part in zip(sources, parts.projections, strict=True))
    first, second = parts.mix_scores, parts.mix_weights
    bias = weights.position_bias(
        module.attention_biases, module.attention_bias_idxs, None if first is None else first.weight
    )  # fmt: skip
    y = ops.attention(
        tokens(query), tokens(key), tokens(value), parts.heads, bias=bias, mix_scores=_mixture(first), mix_weights=_mixture(second),
        mix_bias=None if second is None else second.bias, backend=backend,
    )  # fmt: skip
    y = y.transpose(1, 2).unflatten(2, query.shape[2:]) + fused.convolution(value, parts.local, backend)
    if parts.enlarge > 1:
        y = F.interpolate(y, scale_factor=parts.enlarge, mode="bilinear", align_corners=False)
    return fused.convolution(F.gelu(y), parts.proj, backend, residual=residual)


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C): a view of channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def _differentiated(x: Tensor) -> Tensor:
    """`tokens`, where the gradient of one image has the strides of channels-last memory. Of others, which size 1 allows as well, torch's
    BatchNorm (2.13) makes wrong gradients in evaluation."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _mixture(conv: nn.Conv2d | None) -> Tensor | None:
    return None if conv is None else conv.weight.flatten(1)
