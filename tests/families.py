"""One small network of each family, with weights that leave their mark everywhere."""

from __future__ import annotations

import functools

import torch
from torch import nn

import mvit_kernels as mk

Tensor = torch.Tensor
SIDE, CLASSES = 64, 7
FAMILIES = {
    "mobilevit_xxs": {"depths": (1, 1, 1), "blocks": (1, 1)},
    "mobilevitv2_050": {"depths": (1, 1, 1), "blocks": (1, 1)},
    "efficientformer_l1": {"depths": (1, 1, 1, 2), "image_size": SIDE},
    "efficientformerv2_s0": {"mlp_ratios": ((4,), (4,), (4, 4), (4, 4)), "attention_blocks": 1, "image_size": SIDE},
    "mobile_former_26m": {"blocks": ((2, 48, 12), (1, 36, 12), (2, 72, 24), (1, 72, 24))},
}


def small(name: str, **settings: object) -> nn.Module:
    """As it begins; with other settings, too."""
    return mk.create_model(name, **{"num_classes": CLASSES, **FAMILIES[name], **settings})


def images(count: int, seed: int = 1) -> Tensor:
    """(count, 3, SIDE, SIDE) of noise, each with another mean and width."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return x * torch.rand(count, 1, 1, 1, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)


@torch.no_grad()
def mark(model: nn.Module) -> None:
    """Layer scales and position biases, which begin with next to nothing, get values that show."""
    for path, parameter in model.named_parameters():
        if path.endswith("gamma"):
            parameter.uniform_(0.2, 1.0)
        elif path.endswith("attention_biases"):
            parameter.normal_()


@functools.cache
@torch.no_grad()
def network(name: str) -> nn.Module:
    """In evaluation: seven classes, each of which some images are in."""
    torch.manual_seed(0)
    model = small(name).eval()
    mark(model)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
        elif isinstance(module, nn.Linear):  # gates and slopes begin with next to nothing
            module.weight.normal_(std=module.in_features**-0.5)
            module.bias.normal_(std=0.2)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None  # the statistics of these images, in which they differ
    model.train()(images(32))
    y = model.eval()(images(32))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:  # of several, results are means
            module.bias -= y.mean(0)
    return model
