"""Unfold and fold of pixel phases (MobileViT, arXiv 2110.02178, section 3.1): schemas, checks, fakes, backwards and backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mvit_kernels import reference

from . import checks, triton_support
from .backend import NATIVE_REASON, Choice, Implementation, native
from .library import dense, empty_in_format, is_channels_last, raise_status, register, register_autograd

_kernels = triton_support.Kernels("patches")
_SIZES = (1, 2, 4, 8)  # bytes of an element


def unfold_patches(x: torch.Tensor, patch_size: tuple[int, int] = (2, 2), *, backend: str | None = None) -> torch.Tensor:
    """Gather the pixel phases of a map: (B, C, H, W) -> (B, C, P, N) with P = ph * pw and N = H * W / P.

    Pixel (y, x) becomes position n = (y // ph) * (W // pw) + x // pw of phase p = (y % ph) * pw + x % pw.

    Args:
        x: (B, C, H, W) of any dtype and strides; H and W multiples of the patch.
        patch_size: (ph, pw).
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, P, N) in the memory format of x: from channels_last memory, (B, P, N, C) is dense and a free view.

    Raises:
        TypeError, ValueError: x is no 4-D tensor of whole patches, or the requested backend cannot take it.

    Source: MobileViT, arXiv 2110.02178, section 3.1.
    """
    if type(x) is not torch.Tensor:
        checks.is_tensor("unfold_patches", "x", x)
    checks.pair("unfold_patches", "patch_size", patch_size)
    if backend is None:
        return _call_unfold(x, patch_size)
    checks.backend("unfold_patches", backend)
    return _call_unfold(x, patch_size, backend=backend)


def fold_patches(
    p: torch.Tensor, output_size: tuple[int, int], patch_size: tuple[int, int] = (2, 2), *, backend: str | None = None
) -> torch.Tensor:
    """Put pixel phases back in place: (B, C, P, N) -> (B, C, H, W), the inverse of `unfold_patches`.

    Args:
        p: (B, C, P, N) of any dtype and strides, with P = ph * pw and P * N = H * W.
        output_size: (H, W), multiples of the patch.
        patch_size: (ph, pw).
        backend: None for automatic choice, or the name of one.

    Returns:
        (B, C, H, W) in the memory format of p.

    Raises:
        TypeError, ValueError: as `unfold_patches`, and where P, N and output_size do not fit together.
    """
    if type(p) is not torch.Tensor:
        checks.is_tensor("fold_patches", "p", p)
    checks.pair("fold_patches", "output_size", output_size)
    checks.pair("fold_patches", "patch_size", patch_size)
    if backend is None:
        return _call_fold(p, output_size, patch_size)
    checks.backend("fold_patches", backend)
    return _call_fold(p, output_size, patch_size, backend=backend)


def _check_unfold(x: torch.Tensor, patch_size: Sequence[int]) -> tuple[int, int]:
    checks.tensor("unfold_patches", "x", x, 4)
    patch = checks.patch_size("unfold_patches", patch_size)
    checks.whole_patches("unfold_patches", "x", x.shape[2], x.shape[3], patch)
    return patch


def _check_fold(p: torch.Tensor, output_size: list[int], patch_size: list[int]) -> tuple[int, int]:
    checks.tensor("fold_patches", "p", p, 4)
    patch = checks.patch_size("fold_patches", patch_size)
    height, width = output_size
    checks.whole_patches("fold_patches", "output_size", height, width, patch)
    phases, positions = patch[0] * patch[1], (height // patch[0]) * (width // patch[1])
    if p.shape[2] != phases or p.shape[3] != positions:
        raise ValueError(
            f"fold_patches: p: expected shape (B, C, {phases}, {positions}) for output_size {(height, width)} and patch_size {patch}, "
            f"got {tuple(p.shape)}"
        )
    return patch


def _unfolded_size(size: Sequence[int], patch: tuple[int, int]) -> tuple[int, ...]:
    batch, channels, height, width = size
    return batch, channels, patch[0] * patch[1], (height // patch[0]) * (width // patch[1])


# --- backends ---


def _cpu_refuse(x: torch.Tensor, *_: object) -> str | None:
    if native is None:
        return NATIVE_REASON
    if not x.is_cpu:
        return f"the tensor is on {x.device}"
    if x.element_size() > 8:
        return f"it has no kernel for {x.dtype}"
    return None


def _cpu_unfold(x: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    channels_last, size = is_channels_last(x), x.shape
    if not x.is_contiguous():
        x = dense(x, channels_last)
    p = empty_in_format(x, _unfolded_size(size, patch), channels_last)
    status = native.unfold_patches(x.element_size(), size, patch, channels_last, x.data_ptr(), p.data_ptr(), torch.get_num_threads())
    if status:
        raise_status("unfold_patches", status)
    return p


def _cpu_fold(p: torch.Tensor, output_size: Sequence[int], patch: tuple[int, int]) -> torch.Tensor:
    channels_last, size = is_channels_last(p), (p.shape[0], p.shape[1], *output_size)
    p = dense(p, channels_last)
    x = empty_in_format(p, size, channels_last)
    status = native.fold_patches(p.element_size(), size, patch, channels_last, p.data_ptr(), x.data_ptr(), torch.get_num_threads())
    if status:
        raise_status("fold_patches", status)
    return x


def _triton_refuse(x: torch.Tensor, *_: object) -> str | None:
    if x.element_size() not in _SIZES or x.is_conj() or x.is_neg():
        return f"it has no kernel for {x.dtype}"
    return triton_support.refuse_rows(x, (x.dtype,))


def _triton_unfold(x: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    p = empty_in_format(x, _unfolded_size(x.shape, patch), is_channels_last(x))
    _kernels.unfold(x, p, patch)
    return p


def _triton_fold(p: torch.Tensor, output_size: Sequence[int], patch: tuple[int, int]) -> torch.Tensor:
    x = empty_in_format(p, (p.shape[0], p.shape[1], *output_size), is_channels_last(p))
    _kernels.fold(p, x, patch)
    return x


def _reference_unfold(x: torch.Tensor, patch: tuple[int, int]) -> torch.Tensor:
    return _copy_of(reference.unfold_patches(x, patch), x)


def _reference_fold(p: torch.Tensor, output_size: Sequence[int], patch: tuple[int, int]) -> torch.Tensor:
    return _copy_of(reference.fold_patches(p, (output_size[0], output_size[1]), patch), p)


def _copy_of(result: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The result in the memory format of its source; an op may not return a view, which plain torch does where nothing moves."""
    if torch._C._are_functorch_transforms_active():  # tensors without memory of their own
        return result.clone()
    result = dense(result, is_channels_last(source))
    return result.clone() if result.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() else result


choose_unfold = Choice(
    "unfold_patches",
    triton=Implementation(_triton_unfold, refuse=_triton_refuse),
    cpu=Implementation(_cpu_unfold, refuse=_cpu_refuse),
    reference=Implementation(_reference_unfold),
)
choose_fold = Choice(
    "fold_patches",
    triton=Implementation(_triton_fold, refuse=_triton_refuse),
    cpu=Implementation(_cpu_fold, refuse=_cpu_refuse),
    reference=Implementation(_reference_fold),
)


# --- registration ---


def _unfold(x: torch.Tensor, patch_size: Sequence[int] = (2, 2), *, backend: str | None = None) -> torch.Tensor:
    patch = _check_unfold(x, patch_size)
    return choose_unfold(backend, x).forward(x, patch)


def _unfold_fake(x: torch.Tensor, patch_size: Sequence[int] = (2, 2), *, backend: str | None = None) -> torch.Tensor:
    return empty_in_format(x, _unfolded_size(x.shape, _check_unfold(x, patch_size)), is_channels_last(x))


def _fold(p: torch.Tensor, output_size: list[int], patch_size: list[int], *, backend: str | None = None) -> torch.Tensor:
    patch = _check_fold(p, output_size, patch_size)
    return choose_fold(backend, p).forward(p, output_size, patch)


def _fold_fake(p: torch.Tensor, output_size: list[int], patch_size: list[int], *, backend: str | None = None) -> torch.Tensor:
    _check_fold(p, output_size, patch_size)
    return empty_in_format(p, (p.shape[0], p.shape[1], *output_size), is_channels_last(p))


_unfold_op = register("unfold_patches", "(Tensor x, int[] patch_size=[2, 2], *, str? backend=None) -> Tensor", _unfold, _unfold_fake)
_fold_op = register("fold_patches", "(Tensor p, SymInt[] output_size, int[] patch_size, *, str? backend=None) -> Tensor", _fold, _fold_fake)


# Each is the other's gradient, so gradients of gradients come for free.


def _setup_unfold(ctx: Any, x: torch.Tensor, patch_size: Sequence[int] = (2, 2), *, backend: str | None = None) -> None:
    ctx.size, ctx.patch_size = tuple(x.shape[2:]), patch_size
    ctx.backend = choose_unfold.backend(backend, x)


def _unfold_gradient(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _fold_op(grad, ctx.size, ctx.patch_size, backend=ctx.backend), None


def _setup_fold(ctx: Any, p: torch.Tensor, output_size: list[int], patch_size: list[int], *, backend: str | None = None) -> None:
    ctx.patch_size = patch_size
    ctx.backend = choose_fold.backend(backend, p)


def _fold_gradient(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _unfold_op(grad, ctx.patch_size, backend=ctx.backend), None, None


_call_unfold = register_autograd(_unfold_op, _unfold, _setup_unfold, _unfold_gradient)
_call_fold = register_autograd(_fold_op, _fold, _setup_fold, _fold_gradient)
