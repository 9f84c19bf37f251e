"""Processes of torchrun that share work out among themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, processes), from torchrun's environment. Tensors travel by gloo, those of GPUs by NCCL; a group that there is already is used
    and left open."""
    own = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    finally:
        if own:
            dist.destroy_process_group()
