"""The families of models: how each is made, and all its variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from . import efficientformer, efficientformerv2, mobile_former, mobilevit, mobilevitv2
from .efficientformer import EfficientFormer
from .efficientformerv2 import EfficientFormerV2
from .mobile_former import MobileFormer
from .mobilevit import MobileViT
from .mobilevitv2 import MobileViTv2
from .names import Family
from .normalization import IMAGENET, Normalization

Network: TypeAlias = MobileViT | MobileViTv2 | EfficientFormer | EfficientFormerV2 | MobileFormer


class Kind(NamedTuple):
    """What a family is made of. `network` takes one of the configs."""

    network: Callable[..., Network]
    variants: Mapping[str, Any]  # name -> config
    factors: Any = None  # the config under the family's own name, where factors give a model of any size
    published: Normalization = Normalization()  # of the images that the weights of its authors, and timm's, were trained on


KINDS: dict[Family, Kind] = {
    "mobilevit": Kind(MobileViT, mobilevit.VARIANTS),
    "mobilevitv2": Kind(MobileViTv2, mobilevitv2.VARIANTS, mobilevitv2.MobileViTv2Config()),
    "efficientformer": Kind(EfficientFormer, efficientformer.VARIANTS, published=IMAGENET),
    "efficientformerv2": Kind(EfficientFormerV2, efficientformerv2.VARIANTS, published=IMAGENET),
    "mobile_former": Kind(MobileFormer, mobile_former.VARIANTS, published=IMAGENET),
}
