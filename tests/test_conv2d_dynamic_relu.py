"""A convolution with a dynamic ReLU behind it: float64 and torch's own gradients. By Triton: test_triton_dynamic_relu.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_checks import FLOATS, FORMATS, assert_forward_and_gradients
from q_checks import assert_compiles_and_exports

from mvit_kernels import ops

Tensor = torch.Tensor
# batch, channels, height, width, columns, kernel
SIZES = [(1, 1, 1, 1, 1, 1), (2, 3, 4, 5, 7, 1), (1, 17, 1, 9, 33, 1), (2, 5, 7, 3, 5, 3), (1, 12, 5, 6, 72, 3), (3, 1, 4, 1, 2, 3)]


def plain(x: Tensor, weight: Tensor, bias: Tensor, u: Tensor, stride: int) -> Tensor:
    """As Mobile-Former's module has it, of what stands in front of its hard-sigmoid, divided by 3."""
    y = F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=x.shape[1] if weight.shape[2] == 3 else 1)
    a, b = (2 * F.hardsigmoid(3 * u)[..., None, None]).chunk(2, dim=1)
    return torch.maximum(a * y, (b - 1) * y)


def draw(size: tuple[int, ...], dtype: torch.dtype = torch.float32, fmt: str = "nhwc") -> list[Tensor]:
    batch, channels, height, width, columns, kernel = size
    x = torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=FORMATS[fmt])
    weight = torch.randn(columns, channels if kernel == 1 else 1, kernel, kernel)
    return [x, weight.to(dtype), torch.randn(columns).to(dtype), torch.randn(batch, 2 * columns).to(dtype)]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolutions(size, stride: int, dtype: torch.dtype, fmt: str, backend: str, poison) -> None:
    draws = [draw(size, dtype, fmt) for _ in range(3)]
    assert_forward_and_gradients(
        lambda *inputs: ops.conv2d_dynamic_relu(*inputs, stride=stride, backend=backend), lambda *inputs: plain(*inputs, stride), *draws
    )


def test_no_bias_empty_and_the_format_of_results(backend: str) -> None:
    x, weight, bias, u = draw((2, 4, 5, 6, 4, 3), fmt="nchw")
    y = ops.conv2d_dynamic_relu(x, weight, None, u, backend=backend)
    assert torch.equal(y, ops.conv2d_dynamic_relu(x, weight, 0 * bias, u, backend=backend))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert ops.conv2d_dynamic_relu(x[:0], weight, bias, u[:0], backend=backend).shape == (0, 4, 5, 6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_torch_asks_of_ops(kernel: int) -> None:
    x, weight, bias, u = draw((2, 6, 5, 4, 6, kernel))
    for leaf in (x, weight, bias, u):
        leaf.requires_grad_()
    torch.library.opcheck(torch.ops.mvit_kernels.conv2d_dynamic_relu, (x, weight, bias, u, 2))
    dy, held = torch.randn(2, 6, 3, 2), [each.detach() for each in (x, weight, bias, u)]
    torch.library.opcheck(torch.ops.mvit_kernels.conv2d_dynamic_relu_backward, (dy, *held, 2, None))
    draws = [(torch.randn(batch, 6, 3 * batch, 5), torch.randn(batch, 12)) for batch in (2, 3)]
    assert_compiles_and_exports(lambda x, u: ops.conv2d_dynamic_relu(x, *held[1:3], u), *draws)


def test_wrong_arguments() -> None:
    x, weight, bias, u = draw((2, 6, 5, 4, 12, 3))
    op = "conv2d_dynamic_relu"
    for error, message, arguments, more in (
        (ValueError, rf"{op}: weight: expected shape \(N, 6, 1, 1\) or \(a multiple of 6, 1, 3, 3\)", (x, weight[:11], bias, u), {}),
        (ValueError, rf"{op}: weight: expected shape \(N, 6, 1, 1\)", (x, weight.expand(-1, 6, -1, -1), bias, u), {}),
        (ValueError, rf"{op}: bias: expected shape \(12,\)", (x, weight, bias[1:], u), {}),
        (ValueError, rf"{op}: u: expected torch.float32 of shape \(2, 24\)", (x, weight, bias, u[:, 1:]), {}),
        (ValueError, rf"{op}: u: expected torch.float32 of", (x, weight, bias, u.half()), {}),
        (ValueError, rf"{op}: stride: expected 1 or 2, got 3", (x, weight, bias, u), {"stride": 3}),
        (TypeError, rf"{op}: u: expected a tensor, got NoneType", (x, weight, bias, None), {}),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            ops.conv2d_dynamic_relu(*arguments, **more)


@pytest.mark.parametrize("kernel", [1, 3])
def test_slopes_that_are_nan(kernel: int, backend: str) -> None:
    x, weight, bias, u = draw((2, 12, 5, 6, 12, kernel))
    u[0, 3] = u[1, 23] = float("nan")  # of a first slope, and of a second
    y = ops.conv2d_dynamic_relu(x, weight, bias, u, backend=backend)
    assert torch.equal(y.isnan(), plain(x, weight, bias, u, 1).isnan())
