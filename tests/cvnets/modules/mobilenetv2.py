from torch import nn

from cvnets.layers import ConvLayer2d


class InvertedResidual(nn.Module):
    def __init__(self, in_channels, out_channels, stride, expand_ratio, skip_connection=True):
        super().__init__()
        hidden = in_channels * expand_ratio
        self.block = nn.Sequential()
        if expand_ratio != 1:
            self.block.add_module("exp_1x1", ConvLayer2d(in_channels, hidden, 1))
        self.block.add_module("conv_3x3", ConvLayer2d(hidden, hidden, 3, stride=stride, groups=hidden))
        self.block.add_module("red_1x1", ConvLayer2d(hidden, out_channels, 1, use_act=False))
        self.use_res_connect = stride == 1 and in_channels == out_channels and skip_connection

    def forward(self, x, *args, **kwargs):
        return x + self.block(x) if self.use_res_connect else self.block(x)
