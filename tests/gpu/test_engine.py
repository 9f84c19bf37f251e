"""Compiled networks on a GPU: graphs, batches, streams, threads, integers."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import mvit_kernels as mk
from mvit_kernels.engine.device_plan import MOST_GRAPHS, DevicePlan
from mvit_kernels.engine.dynamo import backend
from mvit_kernels.ops.packing import forget_all

Tensor = torch.Tensor
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
SIDE = 64


def model(name: str = "mobilevitv2_050", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mk.create_model(name).eval()


def images(count: int, side: int = SIDE, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def plan_of(compiled: mk.engine.CompiledModel, side: int = SIDE) -> DevicePlan:
    plan = compiled.plan((3, side, side))
    assert isinstance(plan, DevicePlan)
    return plan


@pytest.fixture(scope="module")
def compiled() -> mk.engine.CompiledModel:
    return mk.compile(model().cuda().half(), images(1).cuda())


@pytest.mark.parametrize(("name", "side"), [
    ("mobilevit_xxs", 64), ("mobilevit_s", 96), ("mobilevitv2_050", 64), ("mobilevitv2_100", 96), ("efficientformer_l1", 224),
    ("efficientformerv2_s0", 224), ("mobile_former_26m", 64),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_networks(name: str, side: int, dtype: torch.dtype) -> None:
    network, x = model(name), images(3, side)
    with torch.no_grad():
        right = network(x)
    compiled = mk.compile(network.cuda(), x.cuda(), dtype=dtype)
    y = compiled(x.cuda())
    assert y.dtype == torch.float32
    limit = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 5e-3}[dtype]  # torch's convolutions are TF32
    assert (y.cpu() - right).abs().max() <= limit * right.abs().max()
    assert plan_of(compiled, side).uncaptured is None


def test_where_and_in_which_dtype_it_runs() -> None:
    network = model()
    assert mk.compile(network, images(1), backend="cuda").device == torch.device("cuda", 0)
    assert mk.compile(network, images(1).cuda()).device == torch.device("cuda", 0)
    assert mk.compile(network, images(1)).device == torch.device("cpu")
    on_gpu = mk.compile(network.cuda().bfloat16(), images(1))
    assert plan_of(on_gpu).input.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="x: expected a tensor on cuda:0, got one on cpu"):
        on_gpu(images(1))
    with pytest.raises(ValueError, match="num_threads: expected None on cuda:0, got 2"):
        mk.compile(network, images(1), num_threads=2)
    assert "cuda:0" in repr(on_gpu)


@pytest.mark.parametrize("integers", [False, True])
def test_files(integers: bool, tmp_path: Path) -> None:
    network = model()
    if integers:
        network = mk.quantize(network, [images(4)], mk.QuantConfig(method="minmax"), progress=False)
    x = images(3).cuda()
    compiled = mk.compile(network if integers else network.cuda().half(), x)
    compiled.save(tmp_path / "plan")
    for device in (None, "cuda", torch.device("cuda", 0)):
        loaded = mk.load(tmp_path / "plan", device=device)
        assert loaded.device == torch.device("cuda", 0)
        assert torch.equal(loaded(x), compiled(x))
    assert plan_of(loaded).uncaptured is None


@pytest.mark.parametrize("integers", [False, True])
def test_in_inference_mode_nothing_is_packed_inside_of_the_graph(integers: bool) -> None:
    """Nodes of the graph, by the launches of a profile of one replay: as many as without the mode."""
    launches = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            network = model()
            if integers:
                network = mk.quantize(network, [images(4)], mk.QuantConfig(method="minmax"), progress=False)
            x = images(1).cuda()
            compiled = mk.compile(network if integers else network.cuda().half(), x)
            compiled(x)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                compiled(x)
                torch.cuda.synchronize()
            launches.append(sum(each.device_type == torch.autograd.DeviceType.CUDA for each in seen.events()))
    assert launches[0] == launches[1] > 20


def test_results_stay_what_they_are(compiled) -> None:
    first = compiled(images(2, seed=1).cuda())
    kept = first.clone()
    compiled(images(2, seed=2).cuda())
    assert torch.equal(first, kept)
    assert torch.equal(compiled(images(2, seed=1).cuda()), kept)


def test_batches_formats_and_other_sizes(compiled) -> None:
    whole = compiled(images(5).cuda())
    for count in (0, 1, 3, 5):
        y = compiled(images(5)[:count].cuda())
        assert y.shape == (count, 1000)
        assert count == 0 or (y - whole[:count]).abs().max() <= 0.01 * whole.abs().max()
    last = images(5).cuda().contiguous(memory_format=torch.channels_last)
    assert (compiled(last) - whole).abs().max() <= 0.01 * whole.abs().max()
    assert (compiled(last[:, :, ::1, :].half()).float() - whole).abs().max() <= 0.02 * whole.abs().max()
    assert compiled(images(2, 96).cuda()).shape == (2, 1000)


def test_old_graphs_go(compiled) -> None:
    plan = plan_of(compiled)
    right = compiled(images(2).cuda())
    for count in range(1, MOST_GRAPHS + 4):
        compiled(images(count).cuda())
    assert len(plan._graphs) == MOST_GRAPHS
    assert torch.equal(compiled(images(2).cuda()), right)


def test_what_others_forget_the_graph_keeps(compiled) -> None:
    """After a step of any optimizer, and by `mk.accelerate`, all packed weights are made anew: those of a graph stay."""
    x = images(2).cuda()
    right = compiled(x)
    forget_all()
    filler = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(64)]  # where what was freed lay
    assert torch.equal(compiled(x), right)
    del filler


def test_the_current_stream_is_used(compiled) -> None:
    x = images(2).cuda()
    right = compiled(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        y = compiled(late)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(y, right)


def test_several_threads_and_streams(compiled) -> None:
    inputs = [images(2, seed=seed).cuda() for seed in range(4)]
    right = [compiled(x) for x in inputs]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                y = compiled(inputs[index])
                if not torch.equal(y, right[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_threads_compile_and_capture_at_once() -> None:
    networks = [mk.compile(model(seed=seed).cuda().half(), images(1).cuda()) for seed in range(4)]
    wrong: list[str] = []

    def work(index: int) -> None:
        x = images(index + 1, 64 + 32 * (index % 2)).cuda()
        first = networks[index](x)
        if not torch.equal(first, networks[index](x)) or plan_of(networks[index], x.shape[2]).uncaptured:
            wrong.append(f"{index}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_modes_of_calls_may_differ() -> None:
    compiled = mk.compile(model().cuda().half(), images(1).cuda())
    with torch.inference_mode():
        first = compiled(images(3).cuda()).clone()
    with torch.no_grad():
        assert torch.equal(compiled(images(3).cuda()), first)
    assert torch.equal(compiled(images(3).cuda()), first)


def test_a_requested_backend_has_graphs_of_its_own(compiled) -> None:
    x = images(2).cuda()
    with mk.use_backend("reference"):
        plain = compiled(x)
    assert (compiled(x) - plain).abs().max() <= 0.02 * plain.abs().max()
    assert {key[2] for key in plan_of(compiled)._graphs} >= {"auto", "reference"}


def test_inside_of_the_callers_own_graph(compiled) -> None:
    x = images(2).cuda()
    right = compiled(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = compiled(x)
    y.zero_()
    forget_all()
    filler = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(64)]  # where what was freed would lie
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, right)
    del filler


def test_a_first_call_inside_of_the_callers_own_graph_is_refused() -> None:
    compiled, x = mk.compile(model().cuda().half(), images(1).cuda()), images(2).cuda()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"), torch.cuda.graph(graph):
        compiled(x)
    torch.cuda.synchronize()
    assert compiled(x).isfinite().all()
    assert plan_of(compiled).uncaptured is None


def test_a_plan_that_goes_waits_for_its_last_replay() -> None:
    network, x = model().cuda().half(), images(8).cuda()
    right = mk.compile(network, x)(x)
    side = torch.cuda.Stream()
    for _ in range(4):
        compiled = mk.compile(network, x)
        compiled(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            y = compiled(x)
        del compiled
        gc.collect()
        filler = [torch.full((2**18,), float("nan"), device="cuda") for _ in range(256)]  # where what it held would lie
        torch.cuda.synchronize()
        assert torch.equal(y, right)
        del filler


class Broken(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1])  # in the calls before the capture, and in it
def test_what_fails_in_the_first_call_leaves_no_trace(at: int) -> None:
    compiled, x = mk.compile(model().cuda().half(), images(1).cuda()), images(2).cuda()
    plan = plan_of(compiled)
    calls, runs = plan.calls, []

    def run(*inputs: Tensor) -> object:
        runs.append(1)
        if len(runs) > at:
            raise Broken
        return calls[-1].run(*inputs)

    plan.calls = (*calls[:-1], dataclasses.replace(calls[-1], run=run))
    with pytest.raises(Broken):
        compiled(x)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not torch.cuda.is_current_stream_capturing()
    assert len(plan._graphs) == 0
    plan.calls = calls
    assert torch.equal(compiled(x), compiled(x))
    assert plan.uncaptured is None


def test_inputs_of_any_strides_and_wrong_ones(compiled) -> None:
    x = images(2).cuda()
    right = compiled(x)
    odd = torch.zeros(2, 3, SIDE, 2 * SIDE, device="cuda")
    odd[..., ::2] = x
    assert (compiled(odd[..., ::2]) - right).abs().max() <= 0.01 * right.abs().max()
    assert torch.equal(compiled(x[:1].expand(2, -1, -1, -1))[1], compiled(x[:1].expand(2, -1, -1, -1))[0])
    assert compiled(x.clone().requires_grad_()).requires_grad is False
    for wrong, error in ((x.double(), TypeError), (x[:, :2], ValueError), (x[0], ValueError), (x.cpu(), ValueError)):
        with pytest.raises(error, match="CompiledModel: x: expected"):
            compiled(wrong)
    with pytest.raises(TypeError, match=r"expected save\(path\) and mk\.load\(path\), got pickle or copy"):
        pickle.dumps(compiled)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevit_xxs"])
def test_integers_have_the_bits_of_the_cpu(name: str, bits: int) -> None:
    config = mk.QuantConfig(method="minmax", weight_bits=bits, activation_bits=bits)
    quantized = mk.quantize(model(name), [images(4)], config, progress=False)
    compiled = mk.compile(quantized, images(1).cuda())
    x = images(3, seed=5)
    assert torch.equal(compiled(x.cuda()).cpu(), quantized(x))
    x = images(64, seed=6)  # whose inverted residuals are one launch each
    assert torch.equal(compiled(x.cuda()).cpu(), mk.compile(quantized, images(1))(x))
    assert plan_of(compiled).uncaptured is None
    assert compiled.report().fallbacks == ()


def test_report_and_profile(compiled) -> None:
    report = compiled.report()
    assert report.fallbacks == ()
    assert {name for row in report.rows for name in row.backend.split("+")} <= {"cuda", "triton"}
    with mk.use_backend("reference"):
        assert {row.backend for row in compiled.report().rows} == {"torch"}
    assert torch.cuda.get_device_name() in str(report)
    profile = compiled.profile(images(4).cuda(), repeats=3)
    assert len(profile.rows) == len(report.rows)
    assert profile.seconds > 0
    assert all(row.seconds for row in profile.rows)


@torch.library.custom_op("mvit_kernels_test::waiting", mutates_args=())
def waiting(x: Tensor) -> Tensor:
    """What no graph can hold: a number that the host waits for."""
    return x * float(x.abs().max())


@waiting.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Waiting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return waiting(self.conv(x))


def test_what_cannot_be_captured_runs_call_by_call_and_says_so() -> None:
    network = Waiting().eval()
    x = images(2)
    with torch.no_grad():
        right = network(x)
    compiled = mk.compile(network.cuda(), x.cuda())
    with pytest.warns(UserWarning, match="call by call, not as a CUDA graph"):
        y = compiled(x.cuda())
    assert (y.cpu() - right).abs().max() <= 5e-3 * right.abs().max()
    assert plan_of(compiled).uncaptured
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.randn(4, device="cuda").isfinite().all()  # the generator is not in the capture anymore
    assert torch.equal(compiled(x.cuda()), y)


def test_as_a_backend_of_torch_compile() -> None:
    network, x = model().cuda(), images(2).cuda()
    torch.compiler.reset()
    with torch.no_grad():
        right = network(x)
        y = torch.compile(network, backend=backend)(x)  # its name is known where the package is installed
    assert (y - right).abs().max() <= 5e-3 * right.abs().max()
