"""How often a network is right."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


class Evaluation(NamedTuple):
    """top1: share of samples whose largest logit is the label's (logits with a nan are wrong); samples: how many were seen."""

    top1: float
    samples: int


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    *,
    batch_size: int = 64,
    workers: int = 0,
    downscale: int = 1,
) -> Evaluation:
    """Top-1 accuracy of a model on a dataset of (image, label), in evaluation mode; the model's own mode comes back.

    downscale: average the image over squares of this many pixels (an area resize) and bring it back to its size
    (bilinear), which tells how much of the accuracy rests on resolution: at the smaller size, things would also have
    another scale than the network learned.
    """
    if downscale < 1:
        raise ValueError(f"evaluate: downscale: expected at least 1, got {downscale}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    correct = samples = 0
    try:
        loader = DataLoader(dataset, batch_size, num_workers=workers)
        for images, labels in tqdm(loader, "evaluate", leave=False, disable=None):
            images = images.to(device, memory_format=torch.channels_last)
            if downscale > 1:
                images = F.interpolate(F.avg_pool2d(images, downscale), size=images.shape[-2:], mode="bilinear")
            logits = model(images)
            right = (logits.argmax(1) == labels.to(device)) & ~logits.isnan().any(1)
            correct += int(right.sum())
            samples += len(labels)
    finally:
        model.train(was_training)
    return Evaluation(correct / samples, samples)
