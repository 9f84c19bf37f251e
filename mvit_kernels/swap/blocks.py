"""The four kinds of replacement that every library's file builds on: blocks and attentions of MobileViT (V1) and MobileViTv2 (V2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mvit_kernels.ops import fold_patches, separable_attention, unfold_patches
from mvit_kernels.ops.library import is_channels_last

from .obstacles import Obstacle, Place, helpers, inside, shadowed

Inner = Callable[[torch.Tensor], torch.Tensor]
PATCH_OPS = ("unfold_patches", "fold_patches")


@dataclass(frozen=True)
class Setting:
    """What `accelerate` leaves on a module: how to run it, or the reason why it kept its class."""

    backend: str | None  # asked of every op; None is automatic
    attention: bool  # a V2Block runs attention on the map
    left_alone: str | None = None


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

    def _patch_size(self) -> tuple[int, int] | None:
        """Of the ops' calls; None where patches come unfolded."""
        return None


class Block(Replacement):
    _option = "patches"

    def _ops(self) -> tuple[str, ...]:
        return PATCH_OPS

    def _patch_size(self) -> tuple[int, int]:
        return self.patch_size


class V1Block(Block):
    """Its inner modules are called as before, on the same tokens, so nothing inside can be an obstacle."""

    def _on_tokens(self, x: torch.Tensor, inner: Inner) -> torch.Tensor:
        """Unfold, `inner` on tokens (B * P, N, C), fold. x: (B, C, H, W), resized up and back if it does not divide into patches.

        The result has the shape and memory format of x.
        """
        memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        patch_size, backend = self._patch_size(), self._mvit_kernels_setting.backend
        size = x.shape[2], x.shape[3]
        whole = round_up(size, patch_size)
        if whole != size:
            x = F.interpolate(x, size=whole, mode="bilinear", align_corners=False)

        # From channels_last memory, patches are dense as (B, P, N, C), and tokens a view of them.
        patches = unfold_patches(x.contiguous(memory_format=torch.channels_last), patch_size, backend=backend)
        batch, channels, phases, length = patches.shape
        tokens = inner(patches.permute(0, 2, 3, 1).reshape(batch * phases, length, channels))
        patches = tokens.reshape(batch, phases, length, channels).permute(0, 3, 1, 2)
        x = fold_patches(patches, whole, patch_size, backend=backend).contiguous(memory_format=memory_format)

        if whole != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x


class V2Block(Block):
    """Runs on the map where it may: norms, 1x1 convolutions and residuals do not care about pixel order, and attention takes strides."""

    _branches: ClassVar[tuple[str, str, str, str]] = (
        "norm1",
        "attn",
        "norm2",
        "mlp",
    )  # of a layer: x += attn(norm1(x)); x += mlp(norm2(x))

    def _ops(self) -> tuple[str, ...]:
        return ("separable_attention",) if self._mvit_kernels_setting.attention else PATCH_OPS

    def _obstacle(self) -> Obstacle | None:
        return super()._obstacle() if self._mvit_kernels_setting.attention else shadowed(self, self._helpers)

    def _on_patches(self, x: torch.Tensor, inner: Inner) -> torch.Tensor:
        """Unfold, `inner` on (B, C, P, N), fold. x: (B, C, H, W) of whole patches."""
        patch_size, backend = self._patch_size(), self._mvit_kernels_setting.backend
        patches = inner(unfold_patches(x, patch_size, backend=backend))
        return fold_patches(patches, (x.shape[2], x.shape[3]), patch_size, backend=backend)

    def _global(self, x: torch.Tensor, transformer: nn.Module, layers: Iterable[nn.Module], norm: Inner) -> torch.Tensor:
        """`norm` of `transformer`, which is made of `layers`, on a map (B, d, H, W) of whole patches."""
        if not self._mvit_kernels_setting.attention:
            return self._on_patches(x, lambda patches: norm(transformer(patches)))
        norm1, attention, norm2, mlp = self._branches
        for layer in layers:
            x = x + self._attend(getattr(layer, attention), getattr(layer, norm1)(x))
            x = x + getattr(layer, mlp)(getattr(layer, norm2)(x))
        return norm(x)

    def _attend(self, attention: Any, x: torch.Tensor) -> torch.Tensor:
        """The attention of a layer on a map (B, d, H, W) of whole patches."""
        return attention.out_proj(
            separable_attention(attention.qkv_proj(x), self._patch_size(), backend=self._mvit_kernels_setting.backend)
        )


class V1Attention(Replacement):
    _option = "attention"

    def _ops(self) -> tuple[str, ...]:
        return ("scaled_dot_product_attention",)


class V2Attention(Replacement):
    _option = "attention"

    def _ops(self) -> tuple[str, ...]:
        return ("separable_attention",)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d, P, N) -> (B, d, P, N)."""
        return self.out_proj(separable_attention(self.qkv_proj(x), backend=self._mvit_kernels_setting.backend))


def round_up(size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) as multiples of the patch."""
    return -(-size[0] // patch_size[0]) * patch_size[0], -(-size[1] // patch_size[1]) * patch_size[1]
