"""Tensors of what was prepared, on every device that has asked for them."""

from __future__ import annotations

import torch

from .cuda_support import once

Optional = torch.Tensor | None


class Placed:
    """Tensors (or None) that do not change; a copy on each device, made when it is wanted first."""

    def __init__(self, *tensors: Optional) -> None:
        self._tensors = tensors
        self._copies: dict[torch.device, tuple[Optional, ...]] = {}

    def on(self, device: torch.device) -> tuple[Optional, ...]:
        copies = self._copies.get(device)
        if copies is None:
            once("prepared tensors", device)
            # Normal tensors in whatever mode the caller is: other calls use them too.
            with torch.inference_mode(False), torch.no_grad():
                copies = tuple(None if x is None else x.to(device) for x in self._tensors)
            self._copies[device] = copies
        return copies
