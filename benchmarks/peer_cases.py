"""What `peers.py` runs: seeded networks whose activations are sane, the images they see, and where conversions of them are kept."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import mvit_kernels as mk
from mvit_kernels.data import StandInTask

CACHE = Path(__file__).parents[1] / "build" / "peers"
CALIBRATION_IMAGES = 32
JUDGED_IMAGES = 8
_SETTLING_IMAGES = 16


@dataclass(frozen=True)
class Case:
    """One network at one batch size. `model` is plain PyTorch in evaluation mode; whoever changes it takes a copy."""

    name: str
    model: nn.Module
    batch: int
    size: int
    threads: int

    @property
    def example(self) -> Tensor:
        """(batch, 3, size, size) float32, what is timed."""
        return self.judged[0]

    @functools.cached_property
    def judged(self) -> list[Tensor]:
        """Batches of held-out images, on which logits are compared."""
        return _batches("heldout", max(JUDGED_IMAGES, self.batch), self.batch, self.size)

    @functools.cached_property
    def calibration(self) -> list[Tensor]:
        """Batches of training images: every quantizer is calibrated on the same ones."""
        return _batches("train", CALIBRATION_IMAGES, self.batch, self.size)

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-adds of the original network for the whole batch, attention included."""
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            self.model(self.example)
        return counter.get_total_flops() // 2

    @functools.cached_property
    def folder(self) -> Path:
        """Where conversions are kept. Its name follows from the weights, so that other ones are converted anew."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return CACHE / f"{self.name}-{self.batch}x{self.size}-{digest.hexdigest()[:12]}"

    def kept(self, name: str, write: Callable[[Path], None]) -> Path:
        """A folder of that name that `write` has filled, now or in an earlier run. The name holds the versions of who writes."""
        folder = self.folder / name
        if not folder.is_dir():
            unfinished = folder.with_name(f"{name}.{os.getpid()}")
            unfinished.mkdir(parents=True)
            try:
                write(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return folder


def settled_model(name: str, size: int) -> nn.Module:
    """A model of `mk.create_model` with random weights, whose BatchNorms have the statistics of what reaches them.

    With statistics of zero and one, activations of random weights shrink from layer to layer, and a quantizer would be judged on nothing.
    The same where norms have no bias, as before training: channels have mean zero then, and little is left where the head takes means.
    One thread does it, so that the weights, and with them what is kept on disk, do not depend on the number of threads.
    """
    torch.manual_seed(0)
    model = mk.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.75, 1.25)
            nn.init.normal_(module.bias, std=0.3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for images in _batches("train", _SETTLING_IMAGES, _SETTLING_IMAGES // 2, size):
            model(images)
    torch.set_num_threads(threads)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval().requires_grad_(False)  # a parameter that is the input of a module, as tokens are, stops the counting of operations


def _batches(split: str, images: int, batch: int, size: int) -> list[Tensor]:
    """Whole batches of the stand-in task; fewer images than asked for where `batch` does not divide them, but at least a batch."""
    loader = DataLoader(StandInTask(split, max(images, batch), size), batch, drop_last=True)
    with torch.inference_mode(False):  # whoever asks for them first: export refuses tensors that were made for inference alone
        return [x for x, _ in loader]
