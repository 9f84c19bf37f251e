"""Gaussian processes over the factors: accuracy, or the latency with one precision and number of threads.

Inputs are logarithms of what rounding leaves of the factors (a model knows nothing else): resolution r, width w as the mean of the channels
over those of MobileViTv2-1.0, inverted residuals d_i and attention layers d_m likewise, and the joint factors r w and r d with d of all
blocks. The kernel is linear + Matérn 5/2 + white noise: the linear part carries the power laws that hold beyond the samples, the Matérn
part what departs from them. It has one length for all inputs, which are standardized: with six lengths the likelihood of some forty
samples takes noise for detail. Accuracies are fitted as logits and latencies as logarithms, so that no prediction leaves (0, 1) or becomes
negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.preprocessing import StandardScaler

from mvit_kernels.models import MobileViTv2Config

from .factors import Factors
from .process import fitted

INPUTS = ("resolution", "width", "depth_ir", "depth_vit", "resolution x width", "resolution x depth")
_ONE = MobileViTv2Config()

Scale = Literal["logit", "log"]


def inputs(settings: Sequence[Factors]) -> np.ndarray:
    """(settings, INPUTS) logarithms."""
    rows = []
    for factors in settings:
        config = factors.config
        width = sum((config.stem_channels, *config.channels, *config.dims)) / sum((_ONE.stem_channels, *_ONE.channels, *_ONE.dims))
        blocks, layers = sum(config.block_counts), sum(config.layer_counts)
        depth_ir, depth_vit = blocks / sum(_ONE.blocks), layers / sum(_ONE.depths)
        side, depth = config.resolution / _ONE.resolution, (blocks + layers) / sum(_ONE.blocks + _ONE.depths)
        rows.append((side, width, depth_ir, depth_vit, side * width, side * depth))
    return np.log(np.array(rows).reshape(-1, len(INPUTS)))


class Prediction(NamedTuple):
    """mean and deviation of what training (or timing) another such model would give: model and noise together. (settings,) each."""

    mean: np.ndarray
    deviation: np.ndarray


class LeaveOneOut(NamedTuple):
    """Each sample predicted from all others, with the kernel as fitted to all.

    rmse: in the units of the target. r2: share of the variance that is explained. within_68, within_95: share of samples inside of the
    central intervals of that probability. log_density: mean, on the fitted scale; baseline_log_density: that of their mean and deviation.
    """

    rmse: float
    r2: float
    within_68: float
    within_95: float
    log_density: float
    baseline_log_density: float


class Surface:
    """A Gaussian process over the factors.

    Args:
        settings: at least 5 of them.
        values: one each, not all the same: accuracies in [0, 1] (scale "logit"; those of 0 and 1 are taken as half a count inside, out of
            `counts`), or positive times (scale "log").
        seed: of the restarts of the search for the kernel's parameters.
    """

    def __init__(self, settings: Sequence[Factors], values: Sequence[float], scale: Scale, *, counts: int = 1000, seed: int = 0) -> None:
        y = np.asarray(values, dtype=float)
        if len(settings) != len(y) or len(y) < 5:
            raise ValueError(f"Surface: values: expected one for each of at least 5 settings, got {len(y)} for {len(settings)}")
        if not np.isfinite(y).all() or (scale == "log" and (y <= 0).any()) or (scale == "logit" and ((y < 0) | (y > 1)).any()):
            kind = "positive numbers" if scale == "log" else "numbers from 0 to 1"
            raise ValueError(f"Surface: values: expected {kind}, got {y.tolist()}")
        self.settings, self.values, self.scale = tuple(settings), y, scale
        inside = np.clip(y, 0.5 / counts, 1 - 0.5 / counts)
        self._target = np.log(y) if scale == "log" else logit(inside)
        if np.ptp(self._target) == 0:
            raise ValueError(f"Surface: values: expected values that differ, got {y.tolist()}")
        # A share of so many images is no better known than this, whatever the fit would like to believe.
        least = float(np.mean(1 / (counts * inside * (1 - inside))) / self._target.var()) if scale == "logit" else 0.0
        self._scaler = StandardScaler()
        x = self._scaler.fit_transform(inputs(settings))
        linear = ConstantKernel(0.1, (1e-5, 1e2)) * DotProduct(1.0, "fixed")
        smooth = ConstantKernel(0.5, (1e-3, 1e2)) * Matern(3.0, (0.5, 1e2), nu=2.5)
        noise = WhiteKernel(max(least, 0.05), (max(least, 1e-6), max(least, 1.0)))
        process = GaussianProcessRegressor(linear + smooth + noise, normalize_y=True, n_restarts_optimizer=4, random_state=seed)
        self._process = fitted(process, x, self._target)

    def predict(self, settings: Sequence[Factors]) -> Prediction:
        """In the units of the values; deviations to first order."""
        mean, deviation = self._process.predict(self._scaler.transform(inputs(settings)), return_std=True)
        return self._in_units(mean, deviation)

    def leave_one_out(self) -> LeaveOneOut:
        """In closed form: mean_i = y_i - [K⁻¹ y]_i / [K⁻¹]_ii, variance_i = 1 / [K⁻¹]_ii (Rasmussen and Williams 2006, equation 5.12)."""
        middle, spread = self._target.mean(), self._target.std()
        y = (self._target - middle) / spread
        inverse = np.linalg.inv(self._process.kernel_(self._process.X_train_) + self._process.alpha * np.eye(len(y)))
        deviation = np.sqrt(1 / np.diag(inverse)) * spread
        mean = (y - inverse @ y / np.diag(inverse)) * spread + middle
        z = (self._target - mean) / deviation
        error = self._in_units(mean, deviation).mean - self.values
        return LeaveOneOut(
            rmse=float(np.sqrt(np.mean(error**2))),
            r2=float(1 - np.mean((mean - self._target) ** 2) / spread**2),
            within_68=float(np.mean(np.abs(z) < norm.ppf(0.84134))),
            within_95=float(np.mean(np.abs(z) < norm.ppf(0.975))),
            log_density=float(np.mean(norm.logpdf(self._target, mean, deviation))),
            baseline_log_density=float(np.mean(norm.logpdf(self._target, middle, spread))),
        )

    @property
    def kernel(self) -> str:
        """The fitted kernel, in words of scikit-learn; of standardized inputs in the order of INPUTS."""
        return str(self._process.kernel_)

    def _in_units(self, mean: np.ndarray, deviation: np.ndarray) -> Prediction:
        if self.scale == "log":
            return Prediction(np.exp(mean), np.exp(mean) * deviation)
        probability = expit(mean)
        return Prediction(probability, probability * (1 - probability) * deviation)
