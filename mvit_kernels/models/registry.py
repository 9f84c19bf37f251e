"""Every model by name."""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any

from mvit_kernels.messages import shown

from .checkpoint import load_checkpoint
from .families import KINDS, Kind, Network
from .normalization import Normalization


def list_models() -> list[str]:
    """The names of models of one size that `create_model` knows, which are timm's where timm has the model."""
    return [name for kind in KINDS.values() for name in kind.variants]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    checkpoint: str | os.PathLike[str] | None = None,
    features_only: bool = False,
    **config: Any,
) -> Network:
    """A model with random weights, or with those of a checkpoint file in any format that `load_checkpoint` reads.

    num_classes: 0 gives pooled features in place of logits. features_only: the list of feature maps in place of them.
    config: other values for fields of the model's config, `MobileViTConfig` and its like. "mobilevitv2" is MobileViTv2 of any size:
    `create_model("mobilevitv2", resolution=192, width=0.4, depth_ir=1.0, depth_vit=0.75)`, factors of MobileViTv2-1.0.
    Raises ValueError for an unknown name or a bad value, TypeError for an unknown field of the config.
    """
    kind, base = _known("create_model", name)
    fields = [field.name for field in dataclasses.fields(base)]
    if unknown := [field for field in config if field not in fields]:
        raise TypeError(f"create_model: {name} has no option {', '.join(unknown)}; its options are {', '.join(fields)}")
    values = {field: _as_tuple(value) for field, value in config.items()}  # lists, as JSON has them
    model = kind.network(dataclasses.replace(base, **values), num_classes=num_classes, features_only=features_only)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def published_normalization(name: str) -> Normalization:
    """How images were normalized on which the published weights of model `name` were trained: the `mean` and `std` of timm.

    MobileViT v1 and v2 take pixels in [0, 1] as they are, the others subtract ImageNet's mean and divide by its deviation.
    Raises ValueError for an unknown name.
    """
    return _known("published_normalization", name)[0].published


def _known(caller: str, name: str) -> tuple[Kind, Any]:
    """The family of a model, and its config."""
    configs = {each: (kind, base) for kind in KINDS.values() for each, base in kind.variants.items()}
    configs |= {family: (kind, kind.factors) for family, kind in KINDS.items() if kind.factors is not None}
    if not isinstance(name, str):
        raise TypeError(f"{caller}: name: expected the name of a model, got {type(name).__name__}")
    if name not in configs:
        nearest = difflib.get_close_matches(name, list_models(), cutoff=0.5) or list_models()
        raise ValueError(f"{caller}: expected the name of a model, such as {', '.join(nearest)}; got {shown(name)}")
    return configs[name]
