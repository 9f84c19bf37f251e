"""What runs only in the slow half of the suite."""

from __future__ import annotations

import pytest


def slow(value: object) -> object:
    """A value of `pytest.mark.parametrize` that repeats in another form what the other values cover."""
    return pytest.param(value, marks=pytest.mark.slow)
