"""The feed-forward half of a transformer layer in integers, on an int16 stream: schema, checks, fake, backends, what is prepared once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mvit_kernels.messages import shown

from . import checks, counts, cuda_support
from .backend import Choice, Implementation, refuse_off_cpu
from .library import dense, direct, empty_in_format, register
from .moments import collected_sums
from .pack_weight import check_packed
from .packing import packed
from .placed import Placed
from .qchannels import check_channels
from .qconv2d import QConv2d, check_pointwise
from .qconv2d import choose as choose_qconv2d
from .qcurve import step_curve
from .qgemm import cuda_epilogue, refuse_depth
from .qnorm import NORMS, QNorm, check_known, combined_sums, cuda_norm, pieces_of_sums
from .qnorm_gemm import choose as choose_qnorm_gemm
from .qpair import PackPair, check_images, feed_forward_pays, no_sums, pointwise, rows_of

OP = "qfeed_forward"
Tensor = torch.Tensor
Optional = torch.Tensor | None


class QFeedForward:
    """The half of a layer whose quantization is computed: call it with a stream x (B, C, H, W) int16."""

    def __init__(self, norm: QNorm, first: QConv2d, second: QConv2d, backend: str | None) -> None:
        self.norm, self.first, self.second, self.backend = norm, first, second, backend
        self._placed = Placed(first.channels, first.table, second.channels)
        forms = ((each.weight.columns, each.weight.depth, each.weight.bits) for each in (first, second))
        self._settings = *forms, norm.kind, *norm.norm, first.settings.activation, first.settings.plain

    def __call__(self, x: Tensor, sums: Optional = None, *, collect: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """y like x, in channels_last memory; with `collect`, (y, sums (B, 2) int64 of its images).

        sums: of the images of x, if they are known and the norm is one of images: (B, 2) or (B, pieces, 2) int64, sum and sum of squares.
        What was prepared is copied to the device of x by the first call there."""
        checks.all_tensors(OP, x=x)
        checks.tensors(OP, sums=sums)
        first, second = (each.weight.on(x.device) for each in (self.first, self.second))
        channels, table, second_channels = self._placed.on(x.device)
        y, collected = _call(
            x, sums, first, channels, table, second, second_channels, *self._settings, collect, backend=self.backend
        )  # fmt: skip
        return (y, collected) if collect else y


def prepare_qfeed_forward(norm: QNorm, first: QConv2d, second: QConv2d, *, backend: str | None = None) -> QFeedForward:
    """second(first(norm(x)), residual=x), bit for bit; on a GPU in one launch, in which what lies between stays in registers, where first
    ends in a curve (`table` of `prepare_qconv2d`) that can be looked up, as nearly all can, and x has up to 256 channels and more than a
    few pixels; else in two.

    Args:
        norm: of `prepare_qnorm`, without weight and bias, which belong in `first`.
        first, second: 1x1 convolutions of stride 1 and one input, of `prepare_qconv2d`; first to uint8, second to int16.
        backend: None for automatic choice, or the name of one.

    Raises:
        TypeError, ValueError: other layers, or layers that do not fit each other.

    Source: MobileViT, arXiv 2110.02178, section 3.1; MobileViTv2, arXiv 2206.02680, section 3.
    """
    checks.layers(OP, norm=(norm, QNorm), first=(first, QConv2d), second=(second, QConv2d))
    checks.backend(OP, backend)
    if norm.affine:
        raise ValueError(f"{OP}: norm: expected one without weight and bias, got one with them")
    for name, layer, dtype in (("first", first, torch.uint8), ("second", second, torch.int16)):
        check_pointwise(OP, name, layer)
        checks.layer_gives(OP, name, layer.settings.out_dtype, dtype)
    _check_forms([first.weight.columns, first.weight.depth, 8], [second.weight.columns, second.weight.depth, 8])
    return QFeedForward(norm, first, second, backend)


# --- checks ---


def _check_forms(first_form: list[int], second_form: list[int]) -> None:
    for name, form in (("first_form", first_form), ("second_form", second_form)):
        if len(form) != 3:
            raise ValueError(f"{OP}: {name}: expected columns, depth and bits, got {form}")
    if second_form[:2] != first_form[1::-1]:
        expected = f"a layer from {first_form[0]} to {first_form[1]} channels behind one from {first_form[1]} to {first_form[0]}"
        raise ValueError(f"{OP}: second: expected {expected}, got one from {second_form[1]} to {second_form[0]}")


def _check_prepared(
    x: Tensor, sums: Optional, first_weight: Tensor, first_channels: Tensor, first_table: Optional, second_weight: Tensor,
    second_channels: Tensor, first_form: list[int], second_form: list[int], norm: str, scale: float, out_scale: float, out_zero_point: int,
    eps: float, bits: int, activation: str, *_: object, **__: object,
) -> None:  # fmt: skip
    _check_forms(first_form, second_form)
    if norm not in NORMS:
        raise ValueError(f"{OP}: norm: expected one of {', '.join(NORMS)}, got {shown(norm)}")
    for name, weight, (columns, depth, own_bits) in (("first", first_weight, first_form), ("second", second_weight, second_form)):
        check_packed(f"{OP}: {name}", weight, columns, depth, own_bits, x.device)
    check_channels(f"{OP}: first", first_channels, first_table, first_form[0], torch.uint8, activation, x.device)
    check_channels(f"{OP}: second", second_channels, None, second_form[0], torch.int16, "none", x.device)


def _check(x: Tensor, sums: Optional, first_form: list[int], norm: str) -> None:
    check_known(OP, sums, norm)
    check_images(OP, x, first_form[1], sums)


# --- backends ---


def _one_by_one(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The norm with the first layer, and the second, as the backend has them."""
    product = choose_qconv2d.implementations[backend].forward

    def forward(
        x: Tensor, sums: Optional, first_weight: Tensor, first_channels: Tensor, first_table: Optional, second_weight: Tensor,
        second_channels: Tensor, first_form: list[int], second_form: list[int], norm: str, scale: float, out_scale: float,
        out_zero_point: int, eps: float, bits: int, activation: str, plain: bool, collect: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows = rows_of(x)
        if norm == "group" and sums is None:
            sums = pieces_of_sums(rows, x.shape[0])
        # Not every layer is one of those that the CUDA kernel has.
        wanted = "auto" if backend == "cuda" else backend
        normed = choose_qnorm_gemm(wanted, rows, *first_form[1:], torch.uint8, plain, first_table).forward
        hidden = normed(
            rows, first_weight, first_channels, sums, first_table, scale, out_scale, out_zero_point, eps, bits, *first_form, torch.uint8,
            activation, plain,
        )  # fmt: skip
        pixels = hidden.reshape(x.shape[0], *x.shape[2:], hidden.shape[1]).permute(0, 3, 1, 2)
        y = pointwise(product, pixels, second_weight, second_channels, second_form, torch.int16, residual=x)
        return y, collected_sums(pieces_of_sums(rows_of(y), y.shape[0])) if collect else no_sums(x)

    return forward


def _cuda_refuse(x: Tensor, first_form: list[int], second_form: list[int]) -> str | None:
    if (reason := cuda_support.refuse(x) or counts.refuse(counts.rows(x))) is not None:
        return reason
    return cuda_support.refuse_deep_int6(*first_form[1:]) or cuda_support.refuse_deep_int6(*second_form[1:])


def _is_one_launch(x: Tensor, table: Optional, hidden: int, collect: bool) -> bool:
    """Whether there is a kernel, and it pays."""
    if table is None or table.dtype != torch.int16 or packed(step_curve, table).entries == 0:
        return False
    return cuda_support.native.qfeed_forward_pieces(x.shape[1], 1) > 0 and feed_forward_pays(x, hidden, collect)


_by_cuda_kernels = _one_by_one("cuda")


def _cuda_forward(
    x: Tensor, sums: Optional, first_weight: Tensor, first_channels: Tensor, first_table: Optional, second_weight: Tensor,
    second_channels: Tensor, first_form: list[int], second_form: list[int], norm: str, scale: float, out_scale: float, out_zero_point: int,
    eps: float, bits: int, activation: str, plain: bool, collect: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if first_table is None or not _is_one_launch(x, first_table, first_form[0], collect):
        return _by_cuda_kernels(
            x, sums, first_weight, first_channels, first_table, second_weight, second_channels, first_form, second_form, norm, scale,
            out_scale, out_zero_point, eps, bits, activation, plain, collect,
        )  # fmt: skip
    x = dense(x, channels_last=True)
    (batch, channels), pixels = x.shape[:2], x.shape[2] * x.shape[3]
    if norm == "group" and sums is None:
        sums = pieces_of_sums(rows_of(x), batch)
    sums = combined_sums(sums)
    y = empty_in_format(x, tuple(x.shape), channels_last=True)
    pieces = cuda_support.native.qfeed_forward_pieces(channels, pixels)
    parts = x.new_empty(batch, pieces, 2, dtype=torch.int64) if collect else None
    slices = packed(PackPair(tuple(first_form), tuple(second_form)), first_weight, first_channels, second_weight)
    epilogue = cuda_epilogue(OP, second_channels, torch.int16, True, "none", None, x, channels, 0.0, 0, y, channels)
    cuda_support.native.qfeed_forward(
        *cuda_support.place(x), batch, pixels, channels, first_form[0], x.data_ptr(),
        cuda_norm(sums, scale, out_scale, out_zero_point, eps, bits), slices.data_ptr(),
        packed(step_curve, first_table).numbers.data_ptr(), epilogue, 0 if parts is None else parts.data_ptr(),
    )  # fmt: skip
    return y, no_sums(x) if parts is None else collected_sums(parts)


def _triton_refuse(x: Tensor, first_form: list[int], second_form: list[int]) -> str | None:
    return choose_qnorm_gemm.implementations["triton"].refuse(x, *first_form[1:]) or refuse_depth(*second_form[1:])


choose = Choice(
    OP,
    cuda=Implementation(_cuda_forward, refuse=_cuda_refuse),
    triton=Implementation(_one_by_one("triton"), refuse=_triton_refuse),
    cpu=Implementation(_one_by_one("cpu"), refuse=refuse_off_cpu),
    reference=Implementation(_one_by_one("reference")),
)


# --- registration ---


def _forward(
    x: Tensor, sums: Optional, first_weight: Tensor, first_channels: Tensor, first_table: Optional, second_weight: Tensor,
    second_channels: Tensor, first_form: list[int], second_form: list[int], norm: str, scale: float, out_scale: float, out_zero_point: int,
    eps: float, bits: int, activation: str, plain: bool, collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, sums, first_form, norm)
    return choose(backend, x, first_form, second_form).forward(
        x, sums, first_weight, first_channels, first_table, second_weight, second_channels, first_form, second_form, norm, scale,
        out_scale, out_zero_point, eps, bits, activation, plain, collect,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, sums: Optional, first_weight: Tensor, first_channels: Tensor, first_table: Optional, second_weight: Tensor,
    second_channels: Tensor, first_form: list[int], second_form: list[int], norm: str, scale: float, out_scale: float, out_zero_point: int,
    eps: float, bits: int, activation: str, plain: bool, collect: bool = False, *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check(x, sums, first_form, norm)
    return empty_in_format(x, tuple(x.shape), channels_last=True), x.new_empty(x.shape[0] if collect else 0, 2, dtype=torch.int64)


_op = register(
    OP,
    "(Tensor x, Tensor? sums, Tensor first_weight, Tensor first_channels, Tensor? first_table, Tensor second_weight,"
    " Tensor second_channels, int[] first_form, int[] second_form, str norm, float scale, float out_scale, int out_zero_point, float eps,"
    " int bits, str activation, bool plain, bool collect=False, *, str? backend=None) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _check_prepared,
)
_call = direct(_op, _forward, tensors=7)
