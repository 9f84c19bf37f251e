"""Tensors of what was prepared, on every device that has asked for them."""

from __future__ import annotations

import torch

from .cuda_support import made_to_stay, once

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
            copies = self._copies[device] = made_to_stay(lambda: self._copied(device), device)
        return copies

    def _copied(self, device: torch.device) -> tuple[Optional, ...]:
        # Normal tensors in whatever mode the caller is: other calls use them too.
        with torch.inference_mode(False), torch.no_grad():
            return tuple(None if x is None else x.to(device) for x in self._tensors)
