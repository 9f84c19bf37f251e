from torch import nn


class Swish(nn.SiLU):
    pass
