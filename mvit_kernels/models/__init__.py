"""Reference models, to learn the architectures from and to hold fast ones against, and the checkpoint files that fit them."""

from .checkpoint import LoadReport, load_checkpoint, save_checkpoint
from .mobilevit import MobileViT, MobileViTBlock, MobileViTConfig
from .mobilevitv2 import MobileViTv2, MobileViTv2Block, MobileViTv2Config, SeparableAttention
from .network import FeatureInfo
from .registry import create_model, list_models

__all__ = [
    "FeatureInfo",
    "LoadReport",
    "MobileViT",
    "MobileViTBlock",
    "MobileViTConfig",
    "MobileViTv2",
    "MobileViTv2Block",
    "MobileViTv2Config",
    "SeparableAttention",
    "create_model",
    "list_models",
    "load_checkpoint",
    "save_checkpoint",
]
