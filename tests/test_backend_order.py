"""Which backend a call on a GPU takes where several could."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mvit_kernels.ops import cuda_support, triton_support
from mvit_kernels.ops.backend import Choice, Chosen, Implementation, hearing, use_backend
from mvit_kernels.ops.inverted_residual import _order, one_launch_pays
from mvit_kernels.ops.qinverted_residual import MAP_RATE
from mvit_kernels.ops.qpair import attention_pays, feed_forward_pays


@pytest.fixture(autouse=True)
def _an_h100(monkeypatch) -> None:
    monkeypatch.setattr(cuda_support, "processors", lambda device: 132)


def first(batch: int, channels: int, hidden: int, columns: int, side: int, stride: int) -> str:
    x = torch.empty(batch, channels, side, side, dtype=torch.float16, device="meta")
    expand, depthwise, reduce = ((torch.empty(*size, 1, 1, device="meta")) for size in ((hidden, channels), (hidden, 1), (columns, hidden)))
    return _order(x, expand, None, depthwise, None, reduce, None, stride, False, "silu")[0]


@pytest.mark.parametrize(("size", "fastest"), [
    ((256, 32, 64, 64, 128, 1), "cuda"), ((256, 64, 128, 128, 128, 2), "cuda"), ((256, 128, 256, 128, 64, 1), "cuda"),
    ((256, 128, 256, 256, 64, 2), "triton"), ((256, 128, 512, 160, 16, 2), "triton"),
    ((1, 32, 64, 64, 128, 1), "cuda"), ((1, 128, 256, 128, 64, 1), "triton"), ((1, 256, 512, 384, 32, 2), "triton"),
])  # fmt: skip
def test_inverted_residuals_are_one_launch_where_that_was_faster(size: tuple[int, ...], fastest: str) -> None:
    assert first(*size) == fastest


@pytest.mark.parametrize(("size", "pays"), [
    ((128, 128, 64, 64, 1), False), ((128, 128, 128, 128, 2), False), ((128, 64, 256, 128, 1), False), ((128, 64, 256, 256, 2), False),
    ((1, 128, 64, 64, 1), True), ((1, 64, 256, 256, 2), False),
])  # fmt: skip
def test_so_are_those_of_bytes(size: tuple[int, ...], pays: bool) -> None:
    batch, side, hidden, columns, stride = size
    x = torch.empty(batch, 32, side, side, dtype=torch.uint8, device="meta")
    assert one_launch_pays(x, hidden, columns, stride, MAP_RATE) is pays


@pytest.mark.parametrize(("channels", "side"), [(128, 32), (192, 16), (256, 8)])
def test_halves_of_a_layer_in_integers_go_in_parts_where_those_were_faster(channels: int, side: int) -> None:
    """With one image; with 128 the kernels were, and near both either will do."""
    for images, in_parts in ((0, False), (1, True), (128, False), (1024, False)):
        x = torch.empty(images, channels, side, side, dtype=torch.int16, device="meta")
        for collect in (False, True):
            assert feed_forward_pays(x, 2 * channels, collect) is not in_parts
            assert attention_pays(x, 4, collect) is not in_parts


@pytest.mark.parametrize(("channels", "side", "most"), [(128, 32, 8), (192, 16, 16), (256, 8, 64)])
def test_more_images_change_that_once(channels: int, side: int, most: int) -> None:
    for pays in (lambda x: feed_forward_pays(x, 2 * channels, True), lambda x: attention_pays(x, 4, True)):
        ways = [pays(torch.empty(images, channels, side, side, dtype=torch.int16, device="meta")) for images in range(1, 130)]
        assert ways == sorted(ways)
        assert 1 < ways.index(True) <= most


def test_halves_in_parts_need_the_kernels_of_all_parts(monkeypatch) -> None:
    size = torch.Size((1, 192, 16, 16))
    x: Any = SimpleNamespace(shape=size, numel=size.numel, dtype=torch.int16, device=torch.device("cuda", 0), is_cuda=True, is_cpu=False)
    for reason, collect, in_one, in_three in ((None, True, False, False), ("none", True, True, True), ("none", False, False, True)):
        monkeypatch.setattr(triton_support, "refuse_gpu", lambda device, reason=reason: reason)
        assert feed_forward_pays(x, 384, collect) is in_one
        assert attention_pays(x, 4, collect) is in_three


def test_the_order_is_asked_on_gpus_alone() -> None:
    made = {name: Implementation(lambda *_, name=name: name) for name in ("cuda", "triton", "cpu", "reference")}
    try:
        choose = Choice("op", order=lambda x, wanted: (wanted, "reference"), **made)
        off_cpu: Any = SimpleNamespace(is_cpu=False, is_cuda=True)
        assert choose(None, off_cpu, "triton").forward() == "triton"
        assert choose(None, off_cpu, "cuda").forward() == "cuda"
        assert choose(None, torch.empty(1), "cuda").forward() == "cpu"
        assert choose("cuda", off_cpu, "triton").forward() == "cuda"
        assert choose(None, torch.empty(1, device="meta"), "triton").forward() == "cuda"  # as on devices of others: all by turns
    finally:
        Choice.every.pop()


def test_who_hears_learns_what_runs_and_why_plain_torch_does() -> None:
    def of(name: str) -> Implementation:
        return Implementation(lambda *_: name, None, lambda x, takers: None if name in takers else f"{name} is not asked for")

    on_gpu: Any = SimpleNamespace(is_cpu=False, is_cuda=True)
    on_cpu = torch.empty(1)
    heard: list[Chosen] = []
    try:
        choose = Choice("op", **{name: of(name) for name in ("cuda", "triton", "cpu", "reference")})
        alone = Choice("alone", reference=of("reference"))
        with hearing(heard.append):
            choose(None, on_gpu, ("triton", "cpu", "reference"))
            choose(None, on_gpu, ("reference",))
            choose(None, on_cpu, ("cuda", "reference"))
            choose("cuda", on_gpu, ("cuda", "reference"))
            with use_backend("reference"):
                choose(None, on_gpu, ("cuda", "reference"))
            alone(None, on_gpu, ("reference",))
            alone(None, on_cpu, ("reference",))
        choose(None, on_gpu, ("cuda",))
    finally:
        del Choice.every[-2:]
    assert heard == [
        ("op", "triton", None),
        ("op", "reference", "cuda: cuda is not asked for; triton: triton is not asked for"),
        ("op", "reference", "cpu: cpu is not asked for"),
        ("op", "cuda", None),
        ("op", "reference", "requested"),
        ("alone", "reference", "no kernel for GPUs"),
        ("alone", "reference", "no kernel for the CPU"),
    ]
