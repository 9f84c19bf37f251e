"""What errors say of a value that was not expected."""

from __future__ import annotations

import reprlib

import numpy as np
import torch


class _Short(reprlib.Repr):
    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, torch.Tensor) and x.numel() != 1:
            return f"a tensor of shape {tuple(x.shape)}"
        if isinstance(x, np.ndarray) and x.size != 1:
            return f"an array of shape {x.shape}"
        if isinstance(x, torch.nn.Module):
            return f"a {type(x).__name__}"
        return " ".join(super().repr1(x, level).split())


_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 8
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: object) -> str:
    """As `repr`, in one line; but of a tensor or an array with several values its shape, of a module its class, and of anything long its
    ends."""
    return _SHORT.repr(value)
