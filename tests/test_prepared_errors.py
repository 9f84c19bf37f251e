"""What was prepared, called with something that is no tensor: the op and the argument are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels import ops
from mvit_kernels.quant import QLinear

BYTES = {"out_dtype": torch.uint8, "out_scale": 1.0, "out_zero_point": 0}
PRODUCT = {"a_scale": 1.0, "a_zero_point": 3, "w_scale": 1.0, **BYTES}


def weight(*size: int) -> torch.Tensor:
    return torch.randint(-127, 128, size, dtype=torch.int8)


def packed() -> ops.PackedWeight:
    return ops.pack_weight(weight(20, 12))


PREPARED: dict[str, tuple[str, Callable[[], Any], int]] = {
    "qgemm": ("a", lambda: ops.prepare_qgemm(packed(), 1.0, 3, w_scale=1.0, **BYTES), 1),
    "qconv2d": ("x", lambda: ops.prepare_qconv2d(ops.pack_weight(weight(8, 4, 3, 3)), 1.0, 3, 1.0, kernel_size=3, **BYTES), 1),
    "qdepthwise_conv2d": ("x", lambda: ops.prepare_qdepthwise_conv2d(weight(8, 1, 3, 3), **PRODUCT), 1),
    "qnorm_gemm": ("x", lambda: ops.prepare_qnorm_gemm(packed(), scale=1.0, **PRODUCT), 1),
    "qnorm": ("x", lambda: ops.prepare_qnorm("layer", scale=1.0, out_scale=1.0, out_zero_point=0), 1),
    "qpool_mixer": (
        "x",
        lambda: ops.prepare_qpool_mixer(torch.ones(8), a_scale=1.0, a_zero_point=0, out_scale=1.0, out_zero_point=0),
        1,
    ),
    "qseparable_gate": (
        "v",
        lambda: ops.prepare_qseparable_gate(v_scale=1.0, v_zero_point=0, out_scale=1.0, out_zero_point=0),
        2,
    ),
    "QLinear": ("x", lambda: QLinear.from_float(torch.nn.Linear(8, 4)), 1),
}


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_no_tensor(name: str) -> None:
    argument, prepare, count = PREPARED[name]
    prepared = prepare()
    for wrong in (None, 3.0, [1, 2]):
        with pytest.raises(TypeError, match=rf"^{name}: {argument}: expected a"):
            prepared(*[wrong] * count)


@pytest.mark.parametrize("op", [ops.layer_norm, ops.group_norm])
def test_eps(op: Callable[..., torch.Tensor], backend: str) -> None:
    x = torch.randn(2, 8, 3, 3) if op is ops.group_norm else torch.randn(2, 8)
    weight, bias = torch.ones(8), torch.zeros(8)
    for wrong in ("1e-5", None, [1e-5]):
        with pytest.raises(TypeError, match=rf"^{op.__name__}: eps: expected a number, got "):
            op(x, weight, bias, wrong, backend=backend)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"^{op.__name__}: eps: expected one that is not negative, got "):
            op(x, weight, bias, wrong, backend=backend)
    assert torch.equal(op(x, weight, bias, 1, backend=backend), op(x, weight, bias, 1.0, backend=backend))


def test_sizes_of_a_plan() -> None:
    model = mk.create_model("mobilevitv2_050", num_classes=3).eval()
    if not mk.backends()["cpu"].usable:
        pytest.skip("nothing to compile with")
    compiled = mk.compile(model, torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"^CompiledModel: save: sizes: expected one \(height, width\) or more, got 256$"):
        compiled.save("never.plan", sizes=256)  # type: ignore[arg-type]
