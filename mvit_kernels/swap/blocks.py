"""The kinds of replacement that every library's file builds on: convolutions, inverted residuals, and blocks and attentions of MobileViT
(V1) and MobileViTv2 (V2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from mvit_kernels.ops import avg_pool, fold_patches, gemm, group_norm, separable_attention, unfold_patches
from mvit_kernels.ops.backend import native
from mvit_kernels.ops.library import dense, is_channels_last
from mvit_kernels.ops.replay import Replays

from . import devices, fused
from .fused import V1Layer, V1Parts, V2Layer, V2Parts
from .obstacles import Obstacle, Place, Snapshot, helpers, inside, shadowed
from .weights import Convolution

Inner = Callable[[torch.Tensor], torch.Tensor]
PATCH_OPS = ("unfold_patches", "fold_patches")


@dataclass(frozen=True)
class Setting:
    """What `accelerate` leaves on a module: how to run it, or the reason why it kept its class."""

    backend: str | None  # asked of every op; None is automatic
    attention: bool  # a block runs attention on the map
    norm: bool  # inside the ops that read what it normalises
    conv: bool  # a block in evaluation runs its convolutions with their norms folded in
    left_alone: str | None = None
    kept: Kept = field(default_factory=lambda: Kept(), compare=False, repr=False)


class Prepared(NamedTuple):
    """How a module runs fused. Where it may differ from call to call (in training, in compiled code) there is no more than parts."""

    parts: Any
    snapshot: Snapshot | None = None
    replays: Replays | None = None


class Kept:
    """What a module has prepared for its next call. It stands in the module, so that they go together; copies begin without."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


class Replacement(nn.Module):
    """Mixed in before the class to replace. Adds no state but `_mvit_kernels_setting`."""

    _option: ClassVar[str]  # the argument of `accelerate` that asks for it
    _places: ClassVar[Mapping[str, Place]] = {}  # children that are not called, or with other shapes than by the original forward
    _helpers: ClassVar[tuple[str, ...]]
    _mvit_kernels_setting: Setting

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._helpers = helpers(cls)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # what the class to replace has

    def _obstacle(self) -> Obstacle | None:
        """Why a call now would run the original forward."""
        return shadowed(self, self._helpers) or (inside(self, self._places) if self._places else None)

    def _ops(self) -> tuple[str, ...]:
        """The ops that `forward` calls."""
        raise NotImplementedError

    def _ops_apart(self) -> tuple[str, ...]:
        """Those that it calls where nothing runs fused."""
        return ()

    def _fused_places(self) -> Mapping[str, Place]:
        """What `_parts` depends on."""
        return self._places

    def _fused_obstacle(self) -> Obstacle | None:
        """Why a call now would not run `_fused`."""
        return self._obstacle()

    def _parts(self) -> Any:
        """The modules that `_fused` runs, sorted by what they do."""
        raise NotImplementedError

    def _prepared_for(self, x: torch.Tensor) -> Prepared | None:
        """How to run fused, or None where a call with x does not run `_fused`.

        Nor does it where a gradient is wanted: folded and packed weights, which are kept from call to call, know none. (A compiled or
        exported graph holds the folding, too.)
        """
        if self._standing_back(x) or (torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._wants_gradient(x)):
            return None
        return self._prepared()

    def _wants_gradient(self, x: torch.Tensor) -> bool:
        return x.requires_grad or any(each.requires_grad for each in self.parameters())

    def _prepared(self) -> Prepared | None:
        """None where something is in the way. Found once, and again after something in the module has changed."""
        if torch.compiler.is_compiling():
            return Prepared(self._parts()) if self._fused_obstacle() is None else None
        kept = self._mvit_kernels_setting.kept
        if self.training or native is None:
            kept.prepared = None  # weights will change, and what was packed of them would wait for nobody
            return Prepared(self._parts()) if self._fused_obstacle() is None else None
        prepared = kept.prepared
        if prepared is not None and prepared.snapshot is not None and prepared.snapshot.holds(self):
            return prepared
        if self._fused_obstacle() is not None:
            return None
        prepared = Prepared(self._parts(), Snapshot(self, self._fused_places()), Replays(type(self).__name__))
        kept.prepared = prepared
        return prepared

    def _run(self, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        """`_fused`; where a call like this one was before, on the CPU, by what that ran."""
        if prepared.snapshot is None or prepared.replays is None or devices.off_cpu(x) or torch.is_autocast_enabled("cpu"):
            return self._fused(x, prepared.parts)
        y: torch.Tensor = prepared.replays(self._fused, (x,), (prepared.parts,), prepared.snapshot.tensors(self))
        return y

    def _fused(self, x: torch.Tensor, parts: Any) -> torch.Tensor:
        """The module by fused ops, on x and what `_parts` gave."""
        raise NotImplementedError

    def _patch_size(self) -> tuple[int, int] | None:
        """Of the ops' calls; None where patches come unfolded."""
        return None

    def _small_call(self, op: str, like: torch.Tensor) -> tuple[Any, ...]:
        """Arguments of a call of one of `_ops` as small as they come, by which that chooses its backend; with the dtype and device of
        `like`."""
        patch = self._patch_size()
        return like.new_empty(1, 3, *(patch or (1, 1))), patch

    @property
    def _backend(self) -> str | None:
        return self._mvit_kernels_setting.backend

    def _standing_back(self, x: torch.Tensor) -> bool:
        """Whether what calls must see torch's own operations (torch.fx, whose x is no tensor), or there are no kernels where x is."""
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return True
        return devices.off_cpu(x) and devices.without_kernels(x.device) is not None


class ConvLayer(Replacement):
    """A convolution with its BatchNorm and activation, in evaluation."""

    _option = "conv"

    def _parts(self) -> Convolution:
        raise NotImplementedError

    def _ops(self) -> tuple[str, ...]:
        return ("depthwise_conv2d" if self._parts().depthwise else "conv2d",)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: torch.Tensor, part: Convolution) -> torch.Tensor:
        return fused.convolution(fused.autocast(x), part, self._backend)


class InvertedResidual(Replacement):
    """The block of MobileNetV2, in evaluation."""

    _option = "conv"

    def _parts(self) -> tuple[Convolution, Convolution, Convolution]:
        """Expansion, depthwise, reduction."""
        raise NotImplementedError

    def _residual(self) -> bool:
        raise NotImplementedError

    def _obstacle(self) -> Obstacle | None:
        obstacle = super()._obstacle()
        if obstacle is None and not fused.is_inverted_residual(*self._parts()):
            return Obstacle(self, "is no inverted residual of a kind that has a kernel")
        return obstacle

    def _ops(self) -> tuple[str, ...]:
        return ("inverted_residual",)

    def _small_call(self, op: str, like: torch.Tensor) -> tuple[Any, ...]:
        return fused.small_inverted_residual(like, *self._parts())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self._prepared_for(x)
        return super().forward(x) if prepared is None else self._run(x, prepared)

    def _fused(self, x: torch.Tensor, parts: tuple[Convolution, Convolution, Convolution]) -> torch.Tensor:
        return fused.inverted_residual(fused.autocast(x), *parts, self._residual(), self._backend)


class Head(Replacement):
    """Global average pooling and a linear classifier, in evaluation."""

    _option = "conv"

    def _parts(self) -> nn.Linear:
        raise NotImplementedError

    def _ops(self) -> tuple[str, ...]:
        return ("avg_pool", "gemm")

    def _fused(self, x: torch.Tensor, part: nn.Linear) -> torch.Tensor:
        y: Any = gemm(avg_pool(fused.autocast(x), backend=self._backend), part.weight, part.bias, backend=self._backend)
        return y


class Block(Replacement):
    """A MobileViT block. It runs wholly on the map where it may (`_fused`), and else as much of it as can."""

    _option = "patches"
    _layer_places: ClassVar[Mapping[str, Place]]  # what may stand where for the layers to run fused
    _conv_places: ClassVar[Mapping[str, Place]]  # and for the rest of the block

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_size

    def _layers(self) -> list[Any]:
        raise NotImplementedError

    def _layer_obstacle(self) -> Obstacle | None:
        """Why the layers do not run fused."""
        setting = self._mvit_kernels_setting
        if not (setting.attention and setting.norm):
            return Obstacle(self, "was accelerated without attention or norm")
        return shadowed(self, self._helpers) or inside(self, self._layer_places)

    def _fused_places(self) -> Mapping[str, Place]:
        return {**self._layer_places, **self._conv_places}

    def _fused_obstacle(self) -> Obstacle | None:
        return self._layer_obstacle() or self._conv_obstacle()

    def _fused(self, x: torch.Tensor, parts: Any) -> torch.Tensor:
        """The whole block, on a map of any size (V1) or of whole patches (V2)."""
        raise NotImplementedError

    def _conv_obstacle(self) -> Obstacle | None:
        """Why the block as a whole does not, though its layers do."""
        if not self._mvit_kernels_setting.conv:
            return Obstacle(self, "was accelerated without conv")
        return inside(self, self._conv_places)


class V1Block(Block):
    """Where its layers do not run fused, they are called as before, on the same tokens: nothing inside can be an obstacle then."""

    def _parts(self) -> V1Parts:
        raise NotImplementedError

    def _layers(self) -> list[V1Layer]:
        raise NotImplementedError

    def _ops_apart(self) -> tuple[str, ...]:
        return PATCH_OPS

    def _ops(self) -> tuple[str, ...]:
        if self._layer_obstacle() is not None:
            return self._ops_apart()
        layers = ("gemm", "patch_attention", "feed_forward")
        return layers if self._conv_obstacle() is not None else ("conv2d", *layers)

    def _small_call(self, op: str, like: torch.Tensor) -> tuple[Any, ...]:
        if op != "patch_attention":
            return super()._small_call(op, like)
        widest = max((layer.proj.in_features // layer.heads for layer in self._layers()), default=1)
        return like.new_empty(1, 3 * widest, *self._patch_size()), 1, self._patch_size()

    def _transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The layers on a map of whole patches."""
        y = fused.v1_layers(fused.channels_last(x), self._layers(), self._patch_size(), self._backend)
        return fused.given_back(y, x)

    def _on_map(self, x: torch.Tensor, inner: Inner) -> torch.Tensor:
        """`inner` on x, resized up and back if it does not divide into patches."""
        size = x.shape[2], x.shape[3]
        whole = round_up(size, self._patch_size())
        if whole == size:
            return inner(x)
        y = inner(F.interpolate(x, size=whole, mode="bilinear", align_corners=False))
        return F.interpolate(y, size=size, mode="bilinear", align_corners=False)

    def _fused(self, x: torch.Tensor, parts: V1Parts) -> torch.Tensor:
        first, second, layers, norm, proj, fusion = parts
        x = fused.autocast(x)
        y = fused.convolution(fused.convolution(x, first, self._backend), second, self._backend)
        size = y.shape[2], y.shape[3]
        if round_up(size, self._patch_size()) == size:
            y = fused.v1_layers(y, layers, self._patch_size(), self._backend)
            y = fused.projection(y, None, norm, proj, self._backend)
        else:  # the norm stands before the resizing, the projection behind it
            y = self._on_map(y, lambda y: _normalized(norm, self._transformed(y)))
            y = fused.convolution(fused.autocast(y), proj, self._backend)
        return y if fusion is None else fused.convolution(x, fusion, self._backend, second=y)

    def _represented(self, x: torch.Tensor, norm: nn.LayerNorm, inner: Inner) -> torch.Tensor:
        """Layers and `norm` on a map (B, C, H, W); `inner` is both on tokens (B * P, N, C)."""
        if self._layer_obstacle() is None and not self._standing_back(x):
            return self._on_map(x, lambda x: _normalized(norm, self._transformed(x)))
        return self._on_map(x, lambda x: self._on_tokens(x, inner))

    def _on_tokens(self, x: torch.Tensor, inner: Inner) -> torch.Tensor:
        """Unfold, `inner` on tokens (B * P, N, C), fold. x: (B, C, H, W) of whole patches."""
        # From channels_last memory, patches are dense as (B, P, N, C), and tokens a view of them.
        patches = unfold_patches(dense(x, True), self._patch_size(), backend=self._backend)
        batch, channels, phases, length = patches.shape
        tokens = inner(patches.permute(0, 2, 3, 1).reshape(batch * phases, length, channels))
        patches = tokens.reshape(batch, phases, length, channels).permute(0, 3, 1, 2)
        return fused.given_back(fold_patches(patches, (x.shape[2], x.shape[3]), self._patch_size(), backend=self._backend), x)


def _normalized(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """LayerNorm of each pixel of a map, with the memory format of x."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    y = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)


class V2Block(Block):
    """Runs on the map where it may: norms, 1x1 convolutions and residuals do not care about pixel order, and attention takes strides."""

    _branches: ClassVar[tuple[str, str, str, str]] = (
        "norm1",
        "attn",
        "norm2",
        "mlp",
    )  # of a layer: x += attn(norm1(x)); x += mlp(norm2(x))
    _norm_places: ClassVar[Mapping[str, Place]]  # the norm behind the layers, where an op computes it

    def _parts(self) -> V2Parts:
        raise NotImplementedError

    def _layers(self) -> list[V2Layer]:
        raise NotImplementedError

    def _ops_apart(self) -> tuple[str, ...]:
        return ("separable_attention",) if self._mvit_kernels_setting.attention else PATCH_OPS

    def _ops(self) -> tuple[str, ...]:
        if not self._mvit_kernels_setting.attention or self._layer_obstacle() is not None:
            return self._ops_apart()
        layers = ("separable_attention_block", "feed_forward")
        return layers if self._conv_obstacle() is not None else ("inverted_residual", *layers, "gemm")

    def _small_call(self, op: str, like: torch.Tensor) -> tuple[Any, ...]:
        if op == "inverted_residual":
            return fused.small_inverted_residual(like, None, *self._parts()[:2])
        if op == "separable_attention_block":
            widest = max((layer.out.in_channels for layer in self._layers()), default=1)
            return like.new_empty(1, widest, *self._patch_size()), self._patch_size()
        return super()._small_call(op, like)

    def _obstacle(self) -> Obstacle | None:
        return super()._obstacle() if self._mvit_kernels_setting.attention else shadowed(self, self._helpers)

    def _conv_obstacle(self) -> Obstacle | None:
        obstacle = super()._conv_obstacle()
        if obstacle is None:
            first, second, _, _, proj = self._parts()
            if not (fused.is_depthwise_and_pointwise(first, second) and fused.is_pointwise(proj)):
                return Obstacle(self, "has other convolutions than MobileViTv2's")
        return obstacle

    def _fused(self, x: torch.Tensor, parts: V2Parts, then: Convolution | None = None) -> torch.Tensor:
        """then: a 1x1 convolution that follows."""
        first, second, layers, norm, proj = parts
        y, moments = fused.depthwise_and_pointwise(fused.autocast(x), first, second, self._backend)
        y, moments = fused.v2_layers(y, moments, layers, self._patch_size(), self._backend)
        return fused.projection(y, moments, norm, proj, self._backend, then)

    def _on_patches(self, x: torch.Tensor, inner: Inner) -> torch.Tensor:
        """Unfold, `inner` on (B, C, P, N), fold. x: (B, C, H, W) of whole patches."""
        patches = inner(unfold_patches(x, self._patch_size(), backend=self._backend))
        return fold_patches(patches, (x.shape[2], x.shape[3]), self._patch_size(), backend=self._backend)

    def _global(self, x: torch.Tensor, transformer: nn.Module, layers: Iterable[nn.Module], norm: Inner) -> torch.Tensor:
        """`norm` of `transformer`, which is made of `layers`, on a map (B, d, H, W) of whole patches."""
        if not self._mvit_kernels_setting.attention:
            return self._on_patches(x, lambda patches: norm(transformer(patches)))
        if self._layer_obstacle() is None and not self._standing_back(x):
            return self._normalized(norm, self._transformed(x))
        norm1, attention, norm2, mlp = self._branches
        for layer in layers:
            x = x + self._attend(getattr(layer, attention), getattr(layer, norm1)(x))
            x = x + getattr(layer, mlp)(getattr(layer, norm2)(x))
        return norm(x)

    def _transformed(self, x: torch.Tensor) -> torch.Tensor:
        """The layers on a map of whole patches."""
        y, _ = fused.v2_layers(fused.channels_last(x), None, self._layers(), self._patch_size(), self._backend)
        return fused.given_back(y, x)

    def _normalized(self, norm: Any, x: torch.Tensor) -> torch.Tensor:
        """The norm behind the layers, with gradients. Torch's copies channels_last maps of a GPU, in its backward again."""
        if not devices.off_cpu(x) or inside(self, self._norm_places) is not None:
            y: torch.Tensor = norm(x)
            return y
        return group_norm(x, norm.weight, norm.bias, norm.eps, backend=self._backend)

    def _attend(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """The attention of a layer on a map (B, d, H, W) of whole patches."""
        return attention.out_proj(separable_attention(attention.qkv_proj(x), self._patch_size(), backend=self._backend))


class V1Attention(Replacement):
    _option = "attention"

    def _ops_apart(self) -> tuple[str, ...]:
        return ("scaled_dot_product_attention",)

    def _ops(self) -> tuple[str, ...]:
        return self._ops_apart()


class V2Attention(Replacement):
    _option = "attention"

    def _ops_apart(self) -> tuple[str, ...]:
        return ("separable_attention",)

    def _ops(self) -> tuple[str, ...]:
        return self._ops_apart()

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d, P, N) -> (B, d, P, N)."""
        return self.out_proj(separable_attention(self.qkv_proj(x), backend=self._mvit_kernels_setting.backend))


def round_up(size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) as multiples of the patch."""
    return -(-size[0] // patch_size[0]) * patch_size[0], -(-size[1] // patch_size[1]) * patch_size[1]
