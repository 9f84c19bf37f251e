"""The ops, registered in the torch namespace `mvit_kernels`: one file an op, each with schema, checks, fake, backward and backends."""

from .backend import BackendInfo, backends, native, use_backend, warn_of_missing_kernels
from .group_norm import group_norm
from .layer_norm import layer_norm
from .patches import fold_patches, unfold_patches
from .separable_attention import separable_attention

__all__ = [
    "BackendInfo",
    "backends",
    "fold_patches",
    "group_norm",
    "layer_norm",
    "separable_attention",
    "unfold_patches",
    "use_backend",
]

if native is None:
    warn_of_missing_kernels()
