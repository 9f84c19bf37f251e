from torch import nn

from .activation import Swish
from .normalization.batch_norm import BatchNorm2d


class Conv2d(nn.Conv2d):
    pass


class ConvLayer2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, bias=False, use_norm=True, use_act=True):
        super().__init__()
        self.block = nn.Sequential()
        conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias)
        self.block.add_module("conv", conv)
        if use_norm:
            self.block.add_module("norm", BatchNorm2d(out_channels))
        if use_act:
            self.block.add_module("act", Swish())

    def forward(self, x):
        return self.block(x)
