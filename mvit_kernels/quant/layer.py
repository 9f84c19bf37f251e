"""What quantized linear and convolution modules share: integer weights, how they are saved, and the range of their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from mvit_kernels.messages import shown
from mvit_kernels.ops.pack_weight import MOST
from mvit_kernels.ops.qchecks import scales, zero_points
from mvit_kernels.reference.int6 import pack_int6, unpack_int6

Tensor = torch.Tensor
_FAR = 2.0**30  # a bias in units of the sums that it is added to
_TINY = 2.0**-40  # the scale of a row without weights,
_TINY_SUM = 2.0**-48  # and that of its sums: of an input that is nearly always 0, too, kernels take the ratio to the scale of the result
Layer = TypeVar("Layer", bound="QLayer")


class QLayer(nn.Module):
    """A layer of integer weights with one scale for each output channel, on inputs that are quantized when it is called.

    Buffers, all of the state: `weight` (int8, or for 6 bits uint8 with four values in three bytes), `weight_scale`, `bias`, and for a
    static quantization `input_scale` and `input_zero_point`. What kernels read is made from them after construction, loading and moving;
    after any other change of a buffer call `prepare()`.

    Inputs are quantized with input_scale and input_zero_point or, without these, over the range that they have at the call. There are no
    gradients.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, input_scale: Any, input_zero_point: Any, weight_bits: int,
        activation_bits: int,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        check_bits(name, weight_bits=weight_bits, activation_bits=activation_bits)
        if (input_scale is None) != (input_zero_point is None):
            raise ValueError(
                f"{name}: input_zero_point: expected both input_scale and input_zero_point, or neither, got {shown(input_zero_point)}"
            )
        if weight.dtype != torch.int8:
            raise TypeError(f"{name}: weight: expected int8, got {weight.dtype}")
        if weight.numel() and (most := int(weight.to(torch.int16).abs().max())) > MOST[weight_bits]:
            raise ValueError(f"{name}: weight: expected values in [-{MOST[weight_bits]}, {MOST[weight_bits]}], got one of size {most}")
        self.weight_bits, self.activation_bits, self.weight_shape = weight_bits, activation_bits, tuple(weight.shape)
        rows = weight.detach().flatten(1)
        self.register_buffer("weight", pack_int6(rows) if weight_bits == 6 else weight.detach().clone())
        self.register_buffer("weight_scale", scales(name, "weight_scale", weight_scale, weight.shape[0]).clone())
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        static = input_scale is not None
        self.register_buffer("input_scale", scales(name, "input_scale", input_scale, 1)[0].clone() if static else None)
        zero = zero_points(name, "input_zero_point", input_zero_point, self.input_channels).clone() if static else None
        single = zero is not None and bool((zero == zero[0]).all())
        self.register_buffer("input_zero_point", zero[0].clone() if zero is not None and single else zero)
        self.prepare()

    @property
    def input_channels(self) -> int:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what kernels read from the buffers as they are now."""
        raise NotImplementedError

    def int_weight(self) -> Tensor:
        """The weight as int8, in the shape of the float layer's."""
        if self.weight_bits == 8:
            return self.weight
        depth = 1
        for size in self.weight_shape[1:]:
            depth *= size
        return unpack_int6(self.weight, depth).reshape(self.weight_shape)

    def input_range(self) -> tuple[float, Any]:
        """(scale, zero-point: one or one for each channel) of a static quantization."""
        assert self.input_scale is not None
        assert self.input_zero_point is not None
        zero = self.input_zero_point
        return float(self.input_scale), zero.cpu() if zero.ndim else int(zero)

    def extra_repr(self) -> str:
        static = "dynamic" if self.input_scale is None else "static"
        return f"{'x'.join(map(str, self.weight_shape))}, weight_bits={self.weight_bits}, activation_bits={self.activation_bits}, {static}"

    # What is prepared follows the buffers.

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QLayer:
        floats = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in floats.items():  # half() and the like would round scales, or make them 0
            self._buffers[name] = buffer.to(self.weight.device)
        self.prepare()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("input_scale", "input_zero_point", "bias"):  # a layer may be loaded as static though it was built as dynamic, and back
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and (own is None or own.shape != saved.shape):
                setattr(self, name, torch.empty_like(saved, device=self.weight.device))
            elif saved is None and name != "bias" and prefix + "weight" in state_dict:
                setattr(self, name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kernel", "_packed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.prepare()


def check_bits(name: str, **bits: int) -> None:
    for argument, value in bits.items():
        if value not in MOST:
            raise ValueError(f"{name}: {argument}: expected 8 or 6, got {shown(value)}")


def quantize_weight(
    weight: Tensor, scale: Tensor | None, bits: int, bias: Tensor | None = None, input_scale: float | None = None,
    stretch: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(int8 weight, scale of each output channel): rint(w / scale), clamped to what the bits hold.

    Without a scale it is max |w| / (2^(bits - 1) - 1) of each row times stretch, more where the bias would not fit in int32 beside the sums
    otherwise.
    """
    rows = weight.detach().double().flatten(1)
    if scale is None:
        scale = (rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])) / MOST[bits] * stretch
        least = _TINY
        if input_scale is not None and input_scale > 0:
            least = max(least, _TINY_SUM / input_scale)
            if bias is not None:
                scale = torch.maximum(scale, bias.detach().double().abs() / (input_scale * _FAR))
        scale = scale.clamp_min(least)
    scale = scale.detach().float().reshape(-1).expand(rows.shape[0])
    q = (rows / scale.double()[:, None]).round().clamp(-MOST[bits], MOST[bits])
    return q.to(torch.int8).reshape(weight.shape), scale
