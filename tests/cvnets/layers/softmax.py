from torch import nn


class Softmax(nn.Softmax):
    pass
