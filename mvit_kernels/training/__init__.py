"""The training loop behind `mvit-kernels train`, and the evaluation that judges a network."""

from mvit_kernels.training.config import TrainConfig
from mvit_kernels.training.evaluate import Evaluation, evaluate
from mvit_kernels.training.loop import Diverged, TrainResult, train

__all__ = ["Diverged", "Evaluation", "TrainConfig", "TrainResult", "evaluate", "train"]
