from torch import nn


class Identity(nn.Module):
    """Not torch's."""

    def forward(self, x):
        return x
