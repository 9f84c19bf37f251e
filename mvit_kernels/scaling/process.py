"""The fit of a Gaussian process."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from threadpoolctl import threadpool_limits


def fitted(process: GaussianProcessRegressor, x: np.ndarray, y: np.ndarray) -> GaussianProcessRegressor:
    """The process itself. On one thread: matrices have as many rows as there are samples, and threads of BLAS that wait for each other at
    each of them take ten times as long. A parameter may end at its bound: an input that does not matter has no finite length, nor has a
    curve that is constant or a straight line."""
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(x, y)
