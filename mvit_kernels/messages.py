"""What errors say of a value that was not expected."""

from __future__ import annotations

import reprlib

import torch

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 8
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: object) -> str:
    """As `repr`, but of a tensor with several values its shape, of a module its class, and of anything long the beginning."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    if isinstance(value, (tuple, list)) and any(isinstance(each, (torch.Tensor, torch.nn.Module)) for each in value):
        return f"{type(value).__name__} of {', '.join(map(shown, value[:8]))}{', ...' if len(value) > 8 else ''}"
    return _SHORT.repr(value)
