"""What accelerated models do off the CPU.

Fake tensors say that they are on a GPU and hold nothing: ops are called on them as on a GPU, without kernels. A torch without CUDA has no
convolutions and no gradients of them: of training, these show what stands between the convolutions of a block. That values are right
shows the CPU, taken for another device (`devices.off_cpu`); tests/gpu/test_training.py has all of it on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from swap_checks import check_gradients, lively
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mvit_kernels as mk
from mvit_kernels.models.mobilevit import MobileViTBlock
from mvit_kernels.models.mobilevitv2 import MobileViTv2Block
from mvit_kernels.ops import cuda_support, fastest, triton_support
from mvit_kernels.swap import devices, weights
from mvit_kernels.swap.weights import Convolution

GPU = torch.device("cuda", 0)
OLD = "expected a GPU of compute capability 8.0 or more, got 7.5"


def v1_block() -> nn.Module:
    return MobileViTBlock(16, 16, 1)


def v2_block() -> nn.Module:
    return MobileViTv2Block(16, 16, 2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """A fake one with Triton's kernels."""
    monkeypatch.setattr(triton_support, "installed", lambda: None)
    monkeypatch.setattr(triton_support, "interpreted", lambda: False)
    monkeypatch.setattr(triton_support, "too_old", lambda _: None)
    monkeypatch.setattr(cuda_support, "processors", lambda _: 132)
    monkeypatch.setattr(cuda_support, "there", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(fastest, "_tuning", SimpleNamespace(choose=lambda op, x, sizes, own, others: own))
    monkeypatch.setattr(cuda_support, "native", None)  # whose `refuse` asks a GPU that is there, if torch is built with CUDA
    monkeypatch.setattr(cuda_support, "REASON", "this GPU has Triton's kernels")
    monkeypatch.setattr(weights, "packed", lambda recipe, *sources, **_: recipe(*sources))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class Ops(TorchDispatchMode):
    """Counts ours, and torch's that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()
        self.torchs: set[str] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        namespace, _, name = str(op).removesuffix(".default").partition(".")
        if namespace == "mvit_kernels":
            self.ours[name] += 1
        elif any(word in name for word in ("conv", "mm", "linear", "norm", "attention", "softmax", "pool", "silu", "gelu")):
            self.torchs.add(name)
        return op(*args, **(kwargs or {}))


def on_gpu(make, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.device("meta"):
        model = make()
    for module in model.modules():
        for name, each in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(each.shape, dtype=dtype, device=GPU)))
        for name, each in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(each.shape, dtype=each.dtype, device=GPU))
    return model


@torch.no_grad()
def called(function, *size: int) -> Ops:
    with Ops() as ops:
        y = function(torch.empty(2, *size, device=GPU, memory_format=torch.channels_last))
    assert y.device == GPU
    assert y.ndim == 2 or y.is_contiguous(memory_format=torch.channels_last)  # nothing is copied back
    return ops


V2 = {"conv2d": 1, "inverted_residual": 9, "separable_attention_block": 9, "feed_forward": 9, "gemm": 4, "avg_pool": 1}
V1 = {"conv2d": 11, "inverted_residual": 7, "patch_attention": 9, "feed_forward": 9, "gemm": 22, "avg_pool": 1}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # which copy.deepcopy does
@pytest.mark.parametrize(("name", "expected"), [("mobilevitv2_050", V2), ("mobilevit_xxs", V1)])
def test_evaluation_runs_on_our_ops_alone(gpu, name: str, expected: dict[str, int]) -> None:
    model = mk.accelerate(on_gpu(lambda: mk.create_model(name)).eval())
    for each in (model, copy.deepcopy(model)):
        for _ in range(3):  # nothing is run again as on the CPU
            ops = called(each, 3, 64, 64)
            assert ops.ours == expected
            assert ops.torchs == set()
    rows = mk.report(model).rows
    assert {row.backend for row in rows} == {"triton"}
    assert {row.reason for row in rows} == {None}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (v2_block, {"separable_attention_block": 2, "feed_forward": 2, "group_norm": 1}),
        (v1_block, {"gemm": 2, "patch_attention": 1, "feed_forward": 1}),
    ],
)
def test_training_between_the_convolutions(gpu, block, expected: dict[str, int]) -> None:
    assert called(mk.accelerate(on_gpu(block).train()).global_representation, 16, 8, 8).ours == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("training", [False, True])
def test_reports_of_any_dtype(gpu, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_support, "refuse", lambda x: None)
    native = {"inverted_residual_shared": lambda *_: 1024, "separable_attention_image_blocks": lambda *_: 66}
    monkeypatch.setattr(cuda_support, "native", type("Native", (), native))
    monkeypatch.setattr(cuda_support, "refuse_shared", lambda *_: None)
    model = on_gpu(lambda: mk.create_model("mobilevitv2_050"), dtype).train(training)
    rows = {row.module: row for row in mk.report(mk.accelerate(model)).rows}
    # The inverted residual is without an expansion; the attention half of so many blocks is one launch.
    expected = {"triton"} | ({"cuda, triton"} if dtype == torch.float16 else set())
    assert {row.backend for row in rows.values() if "stages.2.1" in row.module} == expected
    residual = rows["stages.0.0"]
    if training:
        assert residual.reason == "original forward: conv1_1x1.bn is training"
    else:
        assert residual.backend == ("cuda" if dtype == torch.float16 else "triton")


def test_a_gpu_without_kernels_runs_torch_and_says_so(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "too_old", lambda _: OLD)
    ops = called(mk.accelerate(on_gpu(v1_block).train()).global_representation, 16, 8, 8)
    assert ops.ours == {"unfold_patches": 1, "fold_patches": 1}
    for make, expected in ((v1_block, "unfold_patches, fold_patches"), (v2_block, "separable_attention")):
        row = mk.report(mk.accelerate(on_gpu(make).eval())).rows[0]
        assert (row.replacement, row.backend, row.reason) == (expected, "reference", OLD)
    rows = mk.report(mk.accelerate(on_gpu(lambda: mk.create_model("mobilevitv2_050")).eval())).rows
    assert {row.reason for row in rows if row.replacement is None} == {f"original forward: {OLD}"}
    assert {row.replacement for row in rows} == {None, "separable_attention"}


def test_other_devices_run_torch() -> None:
    with torch.device("meta"):
        model, x = mk.accelerate(mk.create_model("mobilevitv2_050").eval()), torch.empty(1, 3, 64, 64)
    with torch.no_grad(), Ops() as ops:
        model(x)
    assert ops.ours == {"separable_attention": 9}
    assert {row.reason for row in mk.report(model).rows} == {
        "there are no kernels for meta",
        "original forward: there are no kernels for meta",
    }
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.compile(model, fullgraph=True, backend="eager")(x).shape == (1, 1000)  # asked of a device, not of a tensor


# --- values, of the CPU as if it were none ---


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "off_cpu", lambda _: True)


@pytest.mark.parametrize("make", [v1_block, v2_block])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_gradients(elsewhere: None, make, size: tuple[int, int]) -> None:
    check_gradients(lively(make()).train(), torch.randn(2, 16, *size))


OTHERS = {
    "efficientformer_l1": (224, {"pool_mixer", "attention", "conv2d", "gemm"}),
    "efficientformerv2_s0": (224, {"inverted_residual", "attention", "conv2d", "depthwise_conv2d"}),
    "mobile_former_26m": (64, {"attention", "dynamic_relu", "hard_gate", "layer_norm", "conv2d", "depthwise_conv2d", "gemm"}),
}


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_families(elsewhere: None, name: str) -> None:
    side, expected = OTHERS[name]
    model, x = mk.create_model(name, num_classes=3).eval(), torch.randn(1, 3, side, side)
    right = model(x)
    mk.accelerate(model)
    with Ops() as ops:
        y = model(x)
    assert set(ops.ours) == expected
    assert (y - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
@torch.no_grad()
def test_nothing_is_run_again(elsewhere: None, name: str) -> None:
    model = lively(mk.create_model(name, num_classes=3))
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    mk.accelerate(model)
    for _ in range(4):
        assert (model(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
    prepared = [module._mvit_kernels_setting.kept.prepared for module in model.modules() if hasattr(module, "_mvit_kernels_setting")]
    assert not any(each.replays._by_form for each in prepared if each is not None and each.replays is not None)
    model.head.fc.bias.add_(1.0)
    assert (model(x) - expected - 1.0).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_a_hooked_norm_is_called(elsewhere: None) -> None:
    block, seen = mk.accelerate(lively(v2_block()).train()), []
    block.norm.register_forward_hook(lambda *_: seen.append(1))
    block(torch.randn(1, 16, 8, 8))
    assert seen == [1]


@torch.no_grad()
def test_statistics_that_nobody_can_read_are_followed_by_their_count(elsewhere: None) -> None:
    """What batch_norm does to them in training is not counted."""
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    part = Convolution(conv, norm.eval(), "none")
    x = torch.randn(2, 4, 3, 3)

    def folded() -> torch.Tensor:
        ((weight, bias),) = weights.convolutions(part)
        return torch.nn.functional.conv2d(x, weight, bias)

    torch.testing.assert_close(folded(), norm(conv(x)))
    assert weights.convolutions(part)[0][0] is weights.convolutions(part)[0][0]
    norm.train()
    norm(torch.randn(2, 4, 3, 3) + 5)
    norm.eval()
    torch.testing.assert_close(folded(), norm(conv(x)))
    norm.num_batches_tracked = None  # as in what was saved by an early torch: folded at every call
    norm.running_mean.copy_(torch.randn(4))
    torch.testing.assert_close(folded(), norm(conv(x)))
    assert weights.convolutions(part)[0][0] is not weights.convolutions(part)[0][0]
