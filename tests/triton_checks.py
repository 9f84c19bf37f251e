"""Where the tests of Triton kernels run: on a GPU, or interpreted on the CPU where TRITON_INTERPRET=1 (`make test` sets it for them)."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from marks import slow
from tolerance import assert_float_rule

import mvit_kernels as mk

if not mk.backends()["triton"].usable:
    pytest.skip(mk.backends()["triton"].reason, allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.allow_tf32 = False  # what results are held against is float32
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# The interpreter takes longest to repeat in 16 bits what it did in 32; a GPU computes them by other instructions.
DTYPES = [torch.float32, *(each if DEVICE == "cuda" else slow(each) for each in (torch.bfloat16, torch.float16))]

Tensor = torch.Tensor

if DEVICE == "cpu":
    import triton.language as tl
    from triton.runtime import interpreter

    # The interpreter prepares the language anew at every call of a device function, half of its time; once for them all is enough.
    interpreter._patch_lang(tl.sum.fn)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)

    # It cuts the lower bits of a float off to make a bfloat16, where a GPU rounds to nearest even.
    _convert_float = interpreter._convert_float

    def _convert(x, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return _convert_float(x, source, target, rounding_mode)
        rounded = torch.from_numpy(numpy.array(x, dtype=numpy.float32, order="C")).bfloat16()
        return rounded.view(torch.int16).numpy().view(numpy.uint16)

    interpreter._convert_float = _convert


def randn(*size: int, dtype: torch.dtype = torch.float32, fmt: str = "nchw") -> Tensor:
    x = torch.randn(size).to(DEVICE, dtype)
    return x.contiguous(memory_format=FORMATS[fmt]) if x.ndim == 4 else x


def views(channels: int, height: int, width: int) -> dict[str, Tensor]:
    """Maps (1 or 2, channels, height, width) of all kinds of strides."""
    big = randn(3, channels + 2, 2 * height, 2 * width + 4)
    return {
        "slice": big[1:2, 1:-1, :height, 2 : 2 + width],
        "every other": big[1::2, :channels, ::2, 4::2],
        "transposed": randn(1, channels, width, height).transpose(2, 3),
        "channels last slice": big.contiguous(memory_format=torch.channels_last)[1:2, 1:-1, :height, :width],
        "expanded": big[:1, :channels, :height, :width].expand(2, -1, -1, -1),
        "batch innermost": randn(channels, height, width, 2).permute(3, 0, 1, 2),
    }


def assert_gradients(op: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """By the float rule, of one gradient of the result; plain: of the same arguments in plain torch."""
    dy = torch.randn_like(plain(*inputs))
    found = []
    for function, wide in ((op, False), (plain, False), (plain, True)):
        leaves = [(each.double() if wide else each.clone()).requires_grad_() for each in inputs]
        function(*leaves).backward(dy.double() if wide else dy)
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs, exact in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert_rule(ours, theirs, exact)


def assert_rule(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    assert_float_rule(actual.cpu(), plain.cpu(), exact.cpu())


def assert_bits(op: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What Triton gives: in float32 the bits of plain torch, else by the float rule."""
    y, plain = (op(*inputs, backend=backend) for backend in ("triton", "reference"))
    assert y.dtype == inputs[0].dtype
    assert y.stride() == plain.stride() or y.numel() == 0
    if y.dtype == torch.float32:
        assert torch.equal(y.nan_to_num(7.0), plain.nan_to_num(7.0))
        assert torch.equal(y.isnan(), plain.isnan())
    else:
        assert_rule(y, plain, op(*(each.double() for each in inputs)))
    return y


def assert_gradients_arrive(op: Callable[..., Tensor], *inputs: Tensor) -> None:
    results = []
    for backend in ("triton", "reference"):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        op(*leaves, backend=backend).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.allclose(ours, plain, atol=1e-4) for ours, plain in zip(*results, strict=True))
