"""nn.Conv2d on integers: 1x1, 3x3 with padding 1, and depthwise 3x3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mvit_kernels import ops

from .layer import QLayer, check_bits, quantize_weight

Tensor = torch.Tensor


class QConv2d(QLayer):
    """Stands in for an `nn.Conv2d` of 1x1 without padding, of 3x3 with padding 1, or of 3x3 depthwise with padding 1; stride 1 or 2.

    Floats in and floats out, in channels_last memory. Its input is quantized with input_scale and input_zero_point (static: a number each,
    or a zero-point for each channel) or, without these, over the range that the whole map has at the call (dynamic). `state_dict` holds
    all of it.
    """

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Any, input_zero_point: Any, weight_bits: int,
        activation_bits: int, stride: int, depthwise: bool,
    ) -> None:  # fmt: skip
        self.stride, self.depthwise = stride, depthwise
        super().__init__(weight, weight_scale, bias, input_scale, input_zero_point, weight_bits, activation_bits)

    @classmethod
    def from_float(
        cls, conv: nn.Conv2d, *, input_scale: float | None = None, input_zero_point: Any = None, weight_scale: Tensor | None = None,
        weight_bits: int = 8, activation_bits: int = 8,
    ) -> QConv2d:  # fmt: skip
        """weight_scale (N,): that of the largest weight of each output channel, if None."""
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"QConv2d: conv: expected an nn.Conv2d, got {type(conv).__name__}")
        reason = cls.refuse(conv)
        if reason:
            raise ValueError(
                f"QConv2d: conv: expected 1x1, 3x3 with padding 1 or depthwise 3x3 with padding 1, stride 1 or 2, got {reason}"
            )
        check_bits("QConv2d", weight_bits=weight_bits)
        weight, scale = quantize_weight(conv.weight, weight_scale, weight_bits, conv.bias, input_scale)
        return cls(
            weight, scale, conv.bias, input_scale, input_zero_point, weight_bits, activation_bits, conv.stride[0], conv.groups > 1
        )  # fmt: skip

    @staticmethod
    def refuse(conv: nn.Conv2d) -> str | None:
        """Why a convolution cannot be replaced, or None."""
        kernel, padding = conv.kernel_size, conv.padding
        if kernel not in ((1, 1), (3, 3)) or conv.stride not in ((1, 1), (2, 2)) or conv.dilation != (1, 1):
            return f"kernel {kernel}, stride {conv.stride}, dilation {conv.dilation}"
        same = padding == "same" and conv.stride == (1, 1)
        if conv.padding_mode != "zeros" or (
            padding != tuple(k // 2 for k in kernel) and not same and not (padding == "valid" and kernel == (1, 1))
        ):
            return f"padding {padding!r} ({conv.padding_mode}) of a kernel {kernel}"
        depthwise = conv.groups == conv.in_channels == conv.out_channels and kernel == (3, 3) and conv.groups > 1
        return None if conv.groups == 1 or depthwise else f"groups {conv.groups} of {conv.in_channels} channels and a kernel {kernel}"

    @property
    def input_channels(self) -> int:
        return self.weight_shape[0] if self.depthwise else self.weight_shape[1]

    def prepare(self) -> None:
        self._packed = None if self.depthwise else ops.pack_weight(self.int_weight().permute(0, 2, 3, 1).flatten(1), bits=self.weight_bits)
        self._kernel: dict[Any, Any] = {}
        self._range = None if self.input_scale is None else self.input_range()
        if self._range is not None:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                self._kernel[dtype] = self._prepared(*self._range, self.bias, dtype)

    def _prepared(self, scale: float, zero_point: Any, bias: Tensor | None, dtype: torch.dtype) -> Any:
        settings: dict[str, Any] = {
            "a_scale": scale, "a_zero_point": zero_point, "w_scale": self.weight_scale, "bias": bias, "stride": self.stride,
            "out_dtype": dtype, "a_bits": self.activation_bits,
        }  # fmt: skip
        if self._packed is None:
            return ops.prepare_qdepthwise_conv2d(self.int_weight(), **settings)
        return ops.prepare_qconv2d(self._packed, kernel_size=self.weight_shape[-1], **settings)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, ceil(H / stride), ceil(W / stride)), of the dtype of x: float32, bfloat16 or float16."""
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or x.ndim != 4 or x.shape[1] != self.input_channels:
            expected = f"float32, bfloat16 or float16 of shape (B, {self.input_channels}, H, W)"
            raise ValueError(f"QConv2d: x: expected {expected}, got {x.dtype} of shape {tuple(x.shape)}")
        x = x.detach()
        if self._range is not None:
            return self._kernel[x.dtype](ops.quantize(x, *self._range, bits=self.activation_bits))
        # Kernels are prepared for a zero-point, of which there are 2^bits; scale and bias follow in floats.
        scale, zero_point = _range_of(x, self.activation_bits)
        kernel = self._kernel.get(zero_point)
        if kernel is None:
            kernel = self._kernel[zero_point] = self._prepared(1.0, zero_point, None, torch.float32)
        y = kernel(ops.quantize(x, scale, zero_point, bits=self.activation_bits)).mul_(scale)
        return (y if self.bias is None else y.add_(self.bias[:, None, None])).to(x.dtype)


def _range_of(x: Tensor, bits: int) -> tuple[float, int]:
    """Scale and zero-point over the range of x and 0, as `quantize_rows` finds them."""
    if x.numel() == 0:
        return 1.0, 0
    low, high = (float(each) for each in x.aminmax())
    low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
    if not high - low < float("inf"):
        raise ValueError(f"QConv2d: x: expected finite values, got [{low}, {high}]")
    scale = float(torch.tensor(max((high - low) / most, 2.0**-100), dtype=torch.float32))
    return scale, min(max(round(-low / scale), 0), most)
