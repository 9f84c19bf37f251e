"""Every model by name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any, TypeVar

from . import mobilevit, mobilevitv2
from .checkpoint import load_checkpoint
from .mobilevit import MobileViT, MobileViTConfig
from .mobilevitv2 import MobileViTv2, MobileViTv2Config

Config = TypeVar("Config", MobileViTConfig, MobileViTv2Config)


def list_models() -> list[str]:
    """The names that `create_model` knows, which are timm's."""
    return [*mobilevit.VARIANTS, *mobilevitv2.VARIANTS]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    checkpoint: str | os.PathLike[str] | None = None,
    features_only: bool = False,
    **config: Any,
) -> MobileViT | MobileViTv2:
    """A MobileViT with random weights, or with those of a checkpoint file in any format that `load_checkpoint` reads.

    num_classes: 0 gives pooled features in place of logits. features_only: the list of five feature maps in place of them.
    config: other values for fields of `MobileViTConfig` or `MobileViTv2Config`.
    Raises ValueError for an unknown name or a bad value, TypeError for an unknown field of the config.
    """
    model: MobileViT | MobileViTv2
    if name in mobilevit.VARIANTS:
        v1 = _replace(mobilevit.VARIANTS[name], name, config)
        model = MobileViT(v1, num_classes=num_classes, features_only=features_only)
    elif name in mobilevitv2.VARIANTS:
        v2 = _replace(mobilevitv2.VARIANTS[name], name, config)
        model = MobileViTv2(v2, num_classes=num_classes, features_only=features_only)
    else:
        nearest = difflib.get_close_matches(name, list_models(), cutoff=0.5) or list_models()
        raise ValueError(f"create_model: expected the name of a model, such as {', '.join(nearest)}; got {name!r}")
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def _replace(config: Config, name: str, values: dict[str, Any]) -> Config:
    fields = [field.name for field in dataclasses.fields(config)]
    if unknown := [field for field in values if field not in fields]:
        raise TypeError(f"create_model: {name} has no option {', '.join(unknown)}; its options are {', '.join(fields)}")
    return dataclasses.replace(config, **values)
