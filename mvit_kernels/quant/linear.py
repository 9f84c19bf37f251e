"""nn.Linear on integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mvit_kernels import ops

from .layer import QLayer, check_bits, quantize_weight

Tensor = torch.Tensor


class QLinear(QLayer):
    """Stands in for an `nn.Linear`: floats in and floats out, int8 or int6 weights and a product of bytes between.

    Its input is quantized with input_scale and input_zero_point (static: a number each, or a zero-point for each channel) or, without
    these, row by row over the range of the row (dynamic). `state_dict` holds all of it.
    """

    @classmethod
    def from_float(
        cls, linear: nn.Linear, *, input_scale: float | None = None, input_zero_point: Any = None, weight_scale: Tensor | None = None,
        weight_bits: int = 8, activation_bits: int = 8,
    ) -> QLinear:  # fmt: skip
        """weight_scale (N,): that of the largest weight of each row, if None."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"QLinear: linear: expected an nn.Linear, got {type(linear).__name__}")
        check_bits("QLinear", weight_bits=weight_bits)
        weight, scale = quantize_weight(linear.weight, weight_scale, weight_bits, linear.bias, input_scale)
        return cls(weight, scale, linear.bias, input_scale, input_zero_point, weight_bits, activation_bits)

    @property
    def input_channels(self) -> int:
        return self.weight_shape[1]

    def prepare(self) -> None:
        packed = ops.pack_weight(self.int_weight(), bits=self.weight_bits)
        self._range = None if self.input_scale is None else self.input_range()
        scale, zero_point = self._range or (None, None)
        settings: dict[str, Any] = {"w_scale": self.weight_scale, "bias": self.bias, "a_bits": self.activation_bits}
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        self._kernel = {dtype: ops.prepare_qgemm(packed, scale, zero_point, out_dtype=dtype, **settings) for dtype in dtypes}

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), of the dtype of x: float32, bfloat16 or float16."""
        if not isinstance(x, Tensor):
            raise TypeError(f"QLinear: x: expected a tensor, got {type(x).__name__}")
        if x.dtype not in self._kernel or x.shape[-1] != self.input_channels:
            expected = f"float32, bfloat16 or float16 of shape (..., {self.input_channels})"
            raise ValueError(f"QLinear: x: expected {expected}, got {x.dtype} of shape {tuple(x.shape)}")
        rows = x.detach().reshape(-1, x.shape[-1])
        if self._range is None:
            q, scale, zero_point = ops.quantize_rows(rows, bits=self.activation_bits)
            y = self._kernel[x.dtype](q, a_scale=scale, a_zero_point=zero_point)
        else:
            q = ops.quantize(rows, *self._range, bits=self.activation_bits)
            y = self._kernel[x.dtype](q)
        return y.reshape(*x.shape[:-1], self.weight_shape[0])
