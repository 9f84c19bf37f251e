"""Accelerated models on a GPU: they run on the kernels, in evaluation and between the convolutions in training, and their losses are those
of the plain model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mvit_kernels as mk
from mvit_kernels.ops.packing import packed

Tensor = torch.Tensor
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
STEPS = 12

# Ops of a call, and of a step of training (stages of 2, 4 and 3 layers).
EVALUATION = {
    "mobilevitv2_050": {
        "conv2d": 1, "inverted_residual": 9, "separable_attention_block": 9, "feed_forward": 9, "gemm": 4, "avg_pool": 1
    },
    "mobilevit_xxs": {"conv2d": 11, "inverted_residual": 7, "patch_attention": 9, "feed_forward": 9, "gemm": 22, "avg_pool": 1},
}  # fmt: skip
TRAINING = {
    "mobilevitv2_050": {"separable_attention_block": 9, "feed_forward": 9, "group_norm": 3},
    "mobilevit_xxs": {"patch_attention": 9, "feed_forward": 9, "gemm": 18},
}
NAMES = list(EVALUATION)


class Ops(TorchDispatchMode):
    """Counts ours, and torch's convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()
        self.convolutions = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        namespace, _, name = str(op).removesuffix(".default").partition(".")
        self.convolutions += "conv" in name and namespace == "aten"
        if namespace == "mvit_kernels":
            self.ours[name] += 1
        return op(*args, **(kwargs or {}))


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A plain model and an accelerated one with the same weights."""
    torch.manual_seed(0)
    plain = mk.create_model(name, num_classes=10).cuda()
    return plain, mk.accelerate(copy.deepcopy(plain))


def images(count: int = 16, side: int = 64) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).cuda()


def losses(model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype | None) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for step in range(STEPS):
        torch.manual_seed(step)  # for dropout
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss))
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "limit"), [(None, 0.01), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_losses_are_those_of_the_plain_model(name: str, dtype: torch.dtype | None, limit: float, compiled: bool) -> None:
    plain, fast = pair(name)
    assert any(row.backend in ("cuda", "triton") for row in mk.report(fast).rows)
    torch.compiler.reset()
    used = torch.compile(fast, fullgraph=True, backend="aot_eager") if compiled else fast  # which draws the same random numbers
    x, labels = images(), torch.arange(16).cuda() % 10
    right, ours = losses(plain, x, labels, dtype), losses(used, x, labels, dtype)
    assert right[-1] < right[0]
    for a, b in zip(ours, right, strict=True):
        assert abs(a - b) <= limit * max(abs(b), 0.5), (ours, right)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_step_of_training_sees_its_own_weights(name: str) -> None:
    """A whole step, the optimizer's too, as one CUDA graph: losses of replays are those of the same steps one by one."""
    plain, fast = pair(name)
    for module in (*plain.modules(), *fast.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a graph draws other random numbers
    x, labels = images(), torch.arange(16).cuda() % 10
    right = losses(plain, x, labels, None)
    fast.train()
    start = copy.deepcopy(fast.state_dict())
    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-3, capturable=True)

    def step() -> Tensor:
        loss = F.cross_entropy(fast(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        loss = step()
    with torch.no_grad():
        for key, value in fast.state_dict().items():
            value.copy_(start[key])
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    ours = []
    for _ in range(STEPS):
        graph.replay()
        ours.append(float(loss))
    assert right[-1] < right[0]
    for a, b in zip(ours, right, strict=True):
        assert abs(a - b) <= 0.02 * max(abs(b), 0.5), (ours, right)


def stage_of(model: nn.Module) -> tuple[nn.Sequential, Tensor]:
    """One with attention, and what it takes: of a whole network Inductor compiles ten times as much."""
    stage = model.stages[2]
    for module in stage.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # Inductor draws other random numbers
    return stage, torch.randn(8, stage[0].conv1_1x1.conv.in_channels, 16, 16, generator=torch.Generator().manual_seed(1)).cuda()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [False, True])  # the transformer
def test_graphs_of_torch_compile_see_new_weights(name: str, frozen: bool) -> None:
    """mode="reduce-overhead" runs a model, captures it, and replays it from then on: steps of training with evaluation between them. That
    of the optimizer forgets what was packed, also between the run and the capture."""
    stage, x = stage_of(pair(name)[1])
    stage[1].transformer.requires_grad_(not frozen)
    weights, others = ([each for each in stage.parameters() if each.requires_grad is kind] for kind in (True, False))
    torch.compiler.reset()
    replayed, optimizer = torch.compile(stage, mode="reduce-overhead"), torch.optim.AdamW(weights, lr=1e-2)

    def gradients(called: Callable[[Tensor], Tensor], dy: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return [each.clone() for each in torch.autograd.grad(called(x), weights, dy)]

    for _ in range(4):
        stage.eval()
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            ours, right = replayed(x).clone(), stage(x)
        assert (ours - right).abs().max() <= 5e-3 * right.abs().max()
        stage.train()
        dy = torch.randn_like(right)
        of_graphs, of_calls = gradients(replayed, dy), gradients(stage, dy)
        most = max(each.abs().max() for each in of_calls)
        for weight, a, b in zip(weights, of_graphs, of_calls, strict=True):
            assert (a - b).abs().max() <= 0.02 * b.abs().max() + 1e-3 * most
            weight.grad = b
        optimizer.step()
        with torch.no_grad():
            for each in others:
                each *= 0.9


@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_graphs_of_torch_compile_pack_nothing_into_their_memory(frozen: bool) -> None:
    """Weights that are packed in the run before the capture outlive it, and the graph's memory is its results' alone."""
    stage, x = stage_of(pair("mobilevitv2_050")[1].eval().requires_grad_(not frozen))
    torch.compiler.reset()
    replayed = torch.compile(stage, mode="reduce-overhead")
    results = [replayed(x).clone() for _ in range(4)]
    right = stage(x)  # after them, or it would have packed the weights
    assert all((each - right).abs().max() <= 5e-3 * right.abs().max() for each in results)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_step_of_training_calls_the_ops(name: str, dtype: torch.dtype | None) -> None:
    _, fast = pair(name)
    fast.train()
    for module in fast.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # blocks with dropout that is active run less on our ops
    with Ops() as ops:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            loss = fast(images()).float().square().mean()
        loss.backward()
    forward = {op: count for op, count in ops.ours.items() if not op.endswith("_backward")}
    assert forward == TRAINING[name]
    assert {op.removesuffix("_backward"): count for op, count in ops.ours.items() if op.endswith("_backward")} == forward
    assert all(each.grad is not None and each.grad.isfinite().all() for each in fast.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_evaluation_runs_on_our_ops_alone(name: str, dtype: torch.dtype) -> None:
    plain, fast = (each.eval() for each in pair(name))
    x = images()
    expected = plain(x)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32), Ops() as ops:
        ours = fast(x)
    assert (ops.ours, ops.convolutions) == (EVALUATION[name], 0)
    limit = 0.03 if dtype == torch.float16 else 5e-3  # torch's convolutions are TF32
    assert (ours - expected).abs().max() <= limit * expected.abs().max()
    low = copy.deepcopy(fast).to(dtype)
    torch.compiler.reset()
    for each in (low, torch.compile(low, fullgraph=True)):
        assert (each(x.to(dtype)) - expected).abs().max() <= limit * expected.abs().max()
    program = torch.export.export(fast, (x,))
    assert (program.module()(x) - expected).abs().max() <= 5e-3 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_report(name: str, dtype: torch.dtype, training: bool) -> None:
    _, fast = pair(name)
    rows = mk.report(fast.to(dtype).train(training)).rows
    backends = {row.backend for row in rows if row.replacement is not None}
    if dtype == torch.float64:  # of which Triton's kernels move values, and compute none
        assert backends in ({"reference"}, {"triton"} if training else {})
    else:
        assert backends
        assert backends <= {"triton", "cuda", "cuda, triton"}
    if not training:
        assert {row.reason for row in rows} == {None}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_evaluation_after_training_sees_the_new_statistics(name: str) -> None:
    plain, fast = pair(name)
    x = images()
    fast.eval()(x)  # whose weights are folded with the statistics of now
    for each in (plain, fast):
        each.train()
        for _ in range(3):
            each(x * 2 + 1)
        each.eval()
    expected = plain(x)
    assert (fast(x) - expected).abs().max() <= 0.03 * expected.abs().max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@torch.no_grad()
def test_the_second_gpu() -> None:
    plain, fast = (each.eval() for each in pair("mobilevitv2_050"))
    x = images()
    expected, there = plain(x), copy.deepcopy(fast).to("cuda:1")
    assert (there(x.to("cuda:1")).cpu() - expected.cpu()).abs().max() <= 5e-3 * expected.abs().max()
    assert (fast(x) - expected).abs().max() <= 5e-3 * expected.abs().max()


def test_another_stream_waits_for_what_is_being_packed() -> None:
    """And the host does not: the first stream is still busy when the second one has its work."""
    weight, sides = torch.ones(2**20, device="cuda"), [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()

    def slow(x: Tensor) -> Tensor:
        torch.cuda._sleep(200_000_000)
        return x * 2

    with torch.cuda.stream(sides[0]):
        packed(slow, weight)
        done = torch.cuda.Event()
        done.record()
    with torch.cuda.stream(sides[1]):
        y = packed(slow, weight) + 1
    assert not done.query()
    torch.cuda.synchronize()
    assert torch.equal(y, torch.full_like(y, 3.0))


def test_a_step_waits_for_nothing() -> None:
    """Whatever an optimizer made the packed weights forget."""
    _, fast = pair("mobilevitv2_050")
    optimizer, x = torch.optim.AdamW(fast.train().parameters(), lr=1e-3, fused=True), images()
    for each in range(3):
        torch.cuda.set_sync_debug_mode("error" if each == 2 else "default")
        try:
            fast(x).square().mean().backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
