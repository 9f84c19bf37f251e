"""Reference models, to learn the architectures from and to hold fast ones against, and the checkpoint files that fit them."""

from .checkpoint import LoadReport, load_checkpoint, save_checkpoint
from .efficientformer import EfficientFormer, EfficientFormerConfig
from .efficientformerv2 import EfficientFormerV2, EfficientFormerV2Config
from .mobile_former import MobileFormer, MobileFormerConfig
from .mobilevit import MobileViT, MobileViTBlock, MobileViTConfig
from .mobilevitv2 import MobileViTv2, MobileViTv2Block, MobileViTv2Config, SeparableAttention
from .network import FeatureInfo
from .normalization import IMAGENET, Normalization
from .registry import create_model, list_models, published_normalization

__all__ = [
    "IMAGENET",
    "EfficientFormer",
    "EfficientFormerConfig",
    "EfficientFormerV2",
    "EfficientFormerV2Config",
    "FeatureInfo",
    "LoadReport",
    "MobileFormer",
    "MobileFormerConfig",
    "MobileViT",
    "MobileViTBlock",
    "MobileViTConfig",
    "MobileViTv2",
    "MobileViTv2Block",
    "MobileViTv2Config",
    "Normalization",
    "SeparableAttention",
    "create_model",
    "list_models",
    "load_checkpoint",
    "published_normalization",
    "save_checkpoint",
]
