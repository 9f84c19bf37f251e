"""The rules for scales and zero-points, which all integer ops have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvit_kernels.ops import qchecks

SCALES = [2.0**-126, 2.0**126, 0.1, 1, 3e-38, *torch.rand(300, dtype=torch.float64).log().neg().exp().tolist()]


def test_scales_are_float32() -> None:
    """Whether they come as numbers or in tensors, alone or with others."""
    for value in SCALES:
        exact = float(np.float32(value))
        assert qchecks.scale("op", "scale", value) == qchecks.scale("op", "scale", torch.tensor(value, dtype=torch.float64)) == exact
        assert qchecks.scales("op", "scale", value, 2).tolist() == [exact, exact]
    assert type(qchecks.scale("op", "scale", np.float32(0.1))) is float
    assert torch.equal(qchecks.scales("op", "scale", torch.tensor(SCALES), len(SCALES)), torch.tensor(SCALES))


@pytest.mark.parametrize("value", [0.0, -1.0, 2.0**-127, 2.0**127, float("nan"), float("inf"), -float("inf")])
def test_bad_scales(value: float) -> None:
    for check in (qchecks.scale, lambda *args: qchecks.scales(*args, 3)):
        for one in (value, torch.tensor(value)):
            with pytest.raises(ValueError, match=r"op: scale: expected a positive finite value between 2\^-126 and 2\^126, got"):
                check("op", "scale", one)
    with pytest.raises(ValueError, match=r"op: scale: expected positive finite values between 2\^-126 and 2\^126, got"):
        qchecks.scales("op", "scale", torch.tensor([1.0, value, 2.0]), 3)


@pytest.mark.parametrize("value", [None, "1", True, torch.tensor(True), torch.ones(2)], ids=str)
def test_what_is_no_scale(value) -> None:
    with pytest.raises(TypeError, match="op: scale: expected a number, got"):
        qchecks.scale("op", "scale", value)


@pytest.mark.parametrize(("near", "most", "message"), [(False, 2**31 - 1, "an int32"), (True, 2**20, r"\|zero_point\| <= 2\^20")])
def test_zero_points(near: bool, most: int, message: str) -> None:
    least = -most if near else -(2**31)
    for value in (0, 3, least, most):
        assert qchecks.zero_point("op", "z", value, near) == qchecks.zero_point("op", "z", torch.tensor(value), near) == value
        assert qchecks.zero_points("op", "z", value, 2, near).tolist() == [value, value]
    assert type(qchecks.zero_point("op", "z", np.int64(3), near)) is int
    every = torch.tensor([least, 7, most])
    for given in (every, every[None]):
        assert torch.equal(qchecks.zero_points("op", "z", given, 3, near), every.to(torch.int32))
    for value in (least - 1, most + 1):
        for call in (
            lambda value: qchecks.zero_point("op", "z", value, near),
            lambda value: qchecks.zero_point("op", "z", torch.tensor(value), near),
            lambda value: qchecks.zero_points("op", "z", torch.tensor([0, value]), 2, near),
        ):
            with pytest.raises(ValueError, match=f"op: z: expected {message}, got {value}"):
                call(value)


@pytest.mark.parametrize("value", [None, 0.5, True, torch.tensor(1.0), torch.tensor(True), torch.zeros(2, dtype=torch.int32)], ids=str)
def test_what_is_no_zero_point(value) -> None:
    with pytest.raises(TypeError, match="op: z: expected an integer, got"):
        qchecks.zero_point("op", "z", value)
    with pytest.raises(TypeError if value is None else ValueError, match="op: z: expected a"):
        qchecks.zero_points("op", "z", value, 3)
