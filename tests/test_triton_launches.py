"""Calls that launch again what they launched before give the same bits, and never what they gave before something changed. Here addresses
are those of the CPU, and kernels run in the interpreter; tests/gpu has the calls of networks."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import importlib

import pytest
import torch
from op_checks import needs_native
from torch.utils._python_dispatch import _disable_current_modes
from triton_checks import DEVICE, randn

from mvit_kernels.ops import backend, launches, packing

pytestmark = [needs_native, pytest.mark.skipif(DEVICE != "cpu", reason="addresses of the CPU are for the interpreter")]
Tensor = torch.Tensor
TRITON = {"backend": "triton"}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches by address, as on a GPU, of kernels that the interpreter runs."""
    from mvit_kernels.triton_kernels import launch

    def again(kernel, compiled, programs, arguments, settings):
        dtypes = [each.dtype if isinstance(each, Tensor) else None for each in arguments]

        def run(*given):
            tensors = [each if dtype is None else at(each, dtype) for each, dtype in zip(given, dtypes, strict=True)]
            kernel[(programs,)](*tensors, **settings)

        addresses = [i for i, dtype in enumerate(dtypes) if dtype is not None]
        return run, [each.data_ptr() if isinstance(each, Tensor) else each for each in arguments], addresses

    monkeypatch.setattr(launch, "_again", again)
    monkeypatch.setattr(launches, "_stream", lambda _: 7)
    monkeypatch.setattr(launches, "_device", lambda: -1)
    monkeypatch.setattr(launches, "_is_capturing", lambda: False)


def at(address: int, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer((ctypes.c_byte * dtype.itemsize).from_address(address), dtype=dtype) if address else torch.empty(0, dtype=dtype)


def image(*size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return randn(*size).to(dtype).contiguous(memory_format=torch.channels_last)


def of_block(x: Tensor) -> list[Tensor]:
    dim = x.shape[1]
    return [randn(*size) / dim**0.5 for size in ((dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,))]


def of_layer(x: Tensor) -> list[Tensor]:
    dim = x.shape[1]
    return [randn(*size) / dim**0.5 for size in ((dim,), (dim,), (2 * dim, dim), (2 * dim,), (dim, 2 * dim), (dim,))]


def of_residual(x: Tensor) -> list[Tensor]:
    dim = x.shape[1]
    sizes = (2 * dim, dim, 1, 1), (2 * dim,), (2 * dim, 1, 3, 3), (2 * dim,), (dim, 2 * dim, 1, 1), (dim,)
    return [randn(*size) / 4 for size in sizes]


def calls():
    """By name: the op, how many tensors it takes, which of them are inputs, its arguments."""
    x = image(2, 16, 4, 4)
    block, layer, residual = of_block(x), of_layer(x), of_residual(x)
    known = torch.stack([x.double().mean((1, 2, 3)), x.double().var((1, 2, 3), unbiased=False)], 1)
    rows, wide = randn(24, 16).half(), randn(32, 16) / 4
    q, k = randn(2, 8, 16).half(), randn(2, 8, 16).half()
    return {
        "block": ("separable_attention_block", 8, (0, 7), [x, *block, None, 1e-5, (2, 2), False]),
        "block collects": ("separable_attention_block", 8, (0, 7), [x, *block, known, 1e-5, [2, 2], True]),
        "feed-forward": ("feed_forward", 8, (0, 7), [x, *layer, known, 1e-5, "group", "silu", True]),
        "feed-forward of layers": ("feed_forward", 8, (0, 7), [x, *layer, None, 1e-5, "layer", "gelu", False]),
        "inverted residual": ("inverted_residual", 7, (0,), [x, *residual, 1, True, "silu", False]),
        "inverted residual collects": ("inverted_residual", 7, (0,), [x, *residual, 2, False, "silu", True]),
        "gemm": ("gemm", 6, (0, 3, 4, 5), [rows, wide, wide[:, 0].contiguous(), None, None, None, True, 1e-5, "silu"]),
        "conv2d": ("conv2d", 5, (0, 3, 4), [x, randn(16, 16, 3, 3) / 12, None, None, x, 1, "none"]),
        "depthwise": ("depthwise_conv2d", 3, (0,), [x, randn(16, 1, 3, 3), None, 2, "silu"]),
        "layer norm": ("layer_norm", 3, (0,), [rows, randn(16), randn(16), 1e-5]),
        "patch attention": ("patch_attention", 1, (0,), [image(2, 48, 4, 4), 2, [2, 2], None]),
        "attention": ("attention", 8, (0, 1, 2, 7), [q, k, k, None, None, None, None, None, 2, None, "none"]),
        "avg_pool": ("avg_pool", 2, (0, 1), [x, known, 1e-5, "none"]),
    }  # fmt: skip


NAMES = tuple(calls())


def made(name: str):
    op, tensors, inputs, args = calls()[name]
    forward = importlib.import_module(f"mvit_kernels.ops.{op}")._forward
    return launches.Launches(forward, tensors, inputs), forward, inputs, args


def renewed(args: list, inputs: tuple[int, ...]) -> list:
    """The same call on other values; what was the same tensor twice is it again."""
    new: dict[int, Tensor] = {}
    for i in inputs:
        if i < len(args) and isinstance(args[i], Tensor):
            new.setdefault(id(args[i]), (args[i] * 0.5).abs() if args[i].dtype == torch.float64 else args[i] * 0.5 - 0.25)
    return [new[id(each)] if i in inputs and isinstance(each, Tensor) else each for i, each in enumerate(args)]


def parts(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def same(result, wanted) -> None:
    assert type(result) is type(wanted)
    for ours, theirs in zip(parts(result), parts(wanted), strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        assert torch.equal(ours, theirs)


def recorded(calls_: launches.Launches, args: list) -> None:
    with torch.no_grad():
        assert calls_.again(tuple(args), TRITON) is None  # seen once
        assert calls_.again(tuple(args), TRITON) is not None


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_call(name: str, poison) -> None:
    calls_, run, inputs, args = made(name)
    with torch.no_grad():
        assert calls_.again(tuple(args), TRITON) is None
        same(calls_.again(tuple(args), TRITON), run(*args, **TRITON))
        (kept,) = calls_._kept.values()
        assert [type(each) for each in kept.by_form.values()] == [launches._Again]
        for _ in range(2):
            args = renewed(args, inputs)
            same(calls_.again(tuple(args), TRITON), run(*args, **TRITON))


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_kernels_of_cuda_beside_those_of_triton(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them writes the other reads; none is left out. blocks: of the kernel that is one launch, of an image."""
    from test_cuda_calls import StandIn

    from mvit_kernels.ops import cuda_support, moments

    class Unseen(StandIn):
        def separable_attention_block(self, *arguments):
            with _disable_current_modes():  # as of a kernel, nobody sees what it does
                super().separable_attention_block(*arguments)

        def separable_attention_image(self, *arguments):
            with _disable_current_modes():
                super().separable_attention_image(*arguments)

        def separable_attention_image_blocks(self, *_):
            return blocks

    op = importlib.import_module("mvit_kernels.ops.separable_attention_block")
    monkeypatch.setattr(cuda_support, "native", Unseen())
    monkeypatch.setattr(cuda_support, "place", lambda _: (-1, 0))
    monkeypatch.setattr(moments, "_on_gpu", lambda _: True)
    monkeypatch.setitem(op.choose.implementations, "cuda", dataclasses.replace(op.choose.implementations["cuda"], refuse=lambda *_: None))
    calls_, run, inputs, args = made("block")
    args[-1], cuda = True, {"backend": "cuda"}
    with torch.no_grad():
        assert calls_.again(tuple(args), cuda) is None
        for _ in range(3):
            args = renewed(args, inputs)
            same(calls_.again(tuple(args), cuda), run(*args, **cuda))
        (kept,) = calls_._kept.values()
        assert [type(each) for each in kept.by_form.values()] == [launches._Again]


def test_results_are_new_tensors() -> None:
    calls_, _, _, args = made("block")
    recorded(calls_, args)
    with torch.no_grad():
        first, second = (calls_.again(tuple(args), TRITON)[0] for _ in range(2))
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("change", ["in place", "an optimizer's step"])
def test_weights_that_change(change: str) -> None:
    calls_, run, _, args = made("feed-forward")
    recorded(calls_, args)
    if change == "in place":
        args[3].mul_(2)
    else:
        packing.forget_all()
    with torch.no_grad():
        assert calls_.again(tuple(args), TRITON) is None
    recorded_again = [calls_.again(tuple(args), TRITON) for _ in range(3)][-1]
    same(recorded_again, run(*args, **TRITON))


def test_weights_that_go() -> None:
    calls_, _, _, args = made("feed-forward")
    recorded(calls_, args)
    del args
    gc.collect()
    assert not calls_._kept


def test_settings_without_end_take_no_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_MOST_CALLS", 3)
    calls_, run, _, args = made("layer norm")
    with torch.no_grad():
        for i in range(10):
            calls_.again((*args[:3], 1e-5 * (i + 1)), TRITON)
            assert len(calls_._kept) <= 3
        same([calls_.again(tuple(args), TRITON) for _ in range(3)][-1], run(*args, **TRITON))


def test_inputs_of_other_forms() -> None:
    calls_, run, _, args = made("gemm")
    recorded(calls_, args)
    with torch.no_grad():
        for other in (randn(25, 16).half(), randn(24, 16).bfloat16()):
            assert calls_.again((other, *args[1:]), TRITON) is None
        same(calls_.again(tuple(args), TRITON), run(*args, **TRITON))
        unaligned = randn(24 * 16 + 1).half()[1:].view(24, 16)
        for _ in range(3):
            assert calls_.again((unaligned, *args[1:]), TRITON) is None


def test_another_device_has_launches_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its stream has the same number, as the default one has on all."""
    calls_, _, _, args = made("attention")  # no weight tells them apart
    recorded(calls_, args)
    (kept,) = calls_._kept.values()
    monkeypatch.setattr(launches, "_device", lambda: 1)
    monkeypatch.setattr(Tensor, "get_device", lambda _: 1)
    monkeypatch.setattr(launches._Again, "__call__", lambda again, addresses: pytest.fail(f"on {again._device}"))
    with torch.no_grad():
        assert calls_.again(tuple(args), TRITON) is None
        assert calls_.again(tuple(args), TRITON) is not None
    assert len(kept.by_form) == 2


def test_inputs_that_are_the_same_tensor_and_then_are_not() -> None:
    calls_, run, _, args = made("attention")
    recorded(calls_, args)
    apart = [*args[:2], args[2].clone() + 1, *args[3:]]
    with torch.no_grad():
        assert calls_.again(tuple(apart), TRITON) is None
        for _ in range(2):
            result = calls_.again(tuple(apart), TRITON)
        same(result, run(*apart, **TRITON))


def test_what_torch_computes_in_between_is_never_left_out() -> None:
    calls_, _, _, args = made("feed-forward of layers")
    args[0] = args[0].contiguous()  # which the op copies to channels_last
    with torch.no_grad():
        assert calls_.again(tuple(args), TRITON) is None
        assert calls_.again(tuple(args), TRITON) is not None  # by the call itself
        for _ in range(3):
            assert calls_.again(tuple(args), TRITON) is None


@pytest.mark.parametrize("who", ["hears", "keeps", "keeps parts", "captures", "chooses tiles"])
def test_somebody_who_wants_to_see_calls_sees_them(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvit_kernels.triton_kernels import tuning
    from mvit_kernels.triton_kernels.moments import keeping_parts

    calls_, _, _, args = made("feed-forward")
    recorded(calls_, args)
    watching = {
        "hears": lambda: backend.hearing(lambda _: None), "keeps": packing.holding, "keeps parts": keeping_parts,
        "chooses tiles": lambda: tuning.watched(lambda key, guess, candidates: guess),
    }  # fmt: skip
    if who == "captures":
        monkeypatch.setattr(launches, "_is_capturing", lambda: True)
    with torch.no_grad(), watching.get(who, contextlib.nullcontext)():
        assert calls_.again(tuple(args), TRITON) is None


def test_weights_of_inference_mode_whose_changes_nobody_counts() -> None:
    with torch.inference_mode():
        calls_, _, _, args = made("layer norm")
        for _ in range(4):
            assert calls_.again(tuple(args), TRITON) is None


def test_inference_mode_takes_what_was_recorded_outside() -> None:
    calls_, run, _, args = made("block collects")
    recorded(calls_, args)
    with torch.inference_mode():
        result = calls_.again(tuple(args), TRITON)
        same(result, run(*args, **TRITON))
        assert all(each.is_inference() for each in result)
