"""Packed weights are never stale, whatever happens to the weights, and never outlive them."""

from __future__ import annotations

import contextvars
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_native

import mvit_kernels as mk
from mvit_kernels.ops import packing

pytestmark = needs_native

A = torch.linspace(-1, 1, 5 * 32).reshape(5, 32)


class Layer(torch.nn.Module):
    def __init__(self, columns: int = 32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(columns, 32))
        self.bias = torch.nn.Parameter(torch.randn(columns))

    def forward(self, a: torch.Tensor = A) -> torch.Tensor:
        return mk.ops.gemm(a, self.weight, self.bias, backend="cpu")


def assert_fresh(layer: Layer) -> None:
    for _ in range(2):  # made, and found again
        expected = F.linear(A, layer.weight.detach(), layer.bias.detach())
        assert torch.allclose(layer(), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            assert torch.allclose(layer(), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def layer() -> Layer:
    layer = Layer()
    assert_fresh(layer)
    return layer


def test_one_copy_for_all_calls(layer: Layer) -> None:
    before = len(packing._entries)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            layer(), layer()
    layer().sum().backward()
    assert len(packing._entries) == before


def test_changed_in_place(layer: Layer) -> None:
    with torch.no_grad():
        layer.weight.add_(1)
        assert_fresh(layer)
        layer.bias[3] = 7
        assert_fresh(layer)
        layer.weight.view(-1)[:5].zero_()
        assert_fresh(layer)
        layer.weight.detach().mul_(2)
        assert_fresh(layer)
        layer.weight.t_()
        assert_fresh(layer)
    with torch.inference_mode():
        layer.weight.add_(1)
    assert_fresh(layer)
    torch.nn.init.normal_(layer.weight)
    assert_fresh(layer)


@pytest.mark.parametrize("settings", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_changed_by_an_optimizer(settings, layer: Layer) -> None:
    for optimizer in (torch.optim.SGD(layer.parameters(), 0.1, **settings), torch.optim.AdamW(layer.parameters(), 0.1, **settings)):
        for _ in range(3):
            optimizer.zero_grad()
            layer().square().sum().backward()
            optimizer.step()
            assert_fresh(layer)


def test_changed_by_an_optimizer_that_changes_data(layer: Layer) -> None:
    class Old(torch.optim.Optimizer):
        def step(self) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad)

    optimizer = Old(layer.parameters(), {})
    layer().square().sum().backward()
    optimizer.step()
    assert_fresh(layer)


def test_changed_by_load_state_dict(layer: Layer) -> None:
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    for assign in (False, True):
        layer.load_state_dict(state, assign=assign)
        assert_fresh(layer)
        state = {name: value + 1 for name, value in state.items()}


def test_data_assigned(layer: Layer) -> None:
    layer.weight.data = torch.randn(32, 32)
    assert_fresh(layer)
    layer.weight.data = layer.weight.data.t()  # the same memory, read another way
    assert_fresh(layer)
    layer.weight.data, layer.bias.data = torch.randn(48, 32), torch.randn(48)
    assert_fresh(layer)
    layer.weight.data, layer.bias.data = layer.weight.data[:40], layer.bias.data[:40]
    assert_fresh(layer)


def test_data_assigned_back_to_where_it_was(layer: Layer) -> None:
    """The allocator gives the freed memory of the first data to the third: its address alone tells nothing."""
    for _ in range(5):
        layer.weight.data = layer.weight.data.bfloat16()
        layer.weight.data = layer.weight.data.float() + 1
        assert_fresh(layer)
        layer.half()
        layer.float()
        assert_fresh(layer)
        layer.to("meta")
        layer.to_empty(device="cpu")
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        assert_fresh(layer)


def test_replaced_at_the_same_id() -> None:
    seen = set()
    for i in range(50):
        weight = torch.full((32, 32), float(i))
        seen.add(id(weight))
        assert torch.allclose(mk.ops.gemm(A, weight, backend="cpu"), F.linear(A, weight), atol=1e-3)
        del weight
    assert len(seen) < 50  # ids and addresses were used again


def test_made_in_inference_mode() -> None:
    with torch.inference_mode():
        weight = torch.randn(32, 32)
        for _ in range(2):
            assert torch.allclose(mk.ops.gemm(A, weight, backend="cpu"), F.linear(A, weight), atol=1e-4)
            weight.add_(1)
    assert torch.allclose(mk.ops.gemm(A, weight, backend="cpu"), F.linear(A, weight), atol=1e-4)


def test_packed_in_inference_mode_and_used_for_training() -> None:
    layer = Layer()
    with torch.inference_mode():
        layer()
    layer().sum().backward()
    assert torch.allclose(layer.weight.grad, A.sum(0).expand(32, 32), atol=1e-5)
    assert_fresh(layer)


def test_copied_modules_have_their_own(layer: Layer) -> None:
    other = copy.deepcopy(layer)
    assert_fresh(other)
    with torch.no_grad():
        other.weight.zero_()
    assert_fresh(other)
    assert_fresh(layer)


def test_goes_with_its_weights() -> None:
    gc.collect()
    before = len(packing._entries)
    layers = [Layer(columns) for columns in (1, 32, 33)]
    for each in layers:
        each()
        each().sum().backward()
    assert len(packing._entries) == before + 3
    layers[0].bias = torch.nn.Parameter(torch.zeros(1))
    gc.collect()
    assert len(packing._entries) == before + 2  # one of two sources is enough
    del layers, each
    gc.collect()
    assert len(packing._entries) == before


def test_weights_of_one_call_leave_nothing_behind() -> None:
    before = len(packing._entries)
    scale = torch.nn.Parameter(torch.ones(32, 32))
    for _ in range(20):
        mk.ops.gemm(A, scale * 2, backend="cpu").sum().backward()
    gc.collect()
    assert len(packing._entries) == before


def test_several_threads_pack_at_once() -> None:
    for _ in range(20):
        layer = Layer(257)
        expected = F.linear(A, layer.weight, layer.bias)
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda _, layer=layer: layer(), range(8)):
                assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_blocks_see_a_change_of_any_of_their_weights() -> None:
    x = torch.randn(1, 6, 4, 4)
    feed = [torch.rand(n) for n in ((6,), (6,), (9, 6), (9,), (6, 9), (6,))]
    attention = [torch.rand(n) for n in ((6,), (6,), (13, 6), (13,), (6, 6), (6,))]
    residual = [torch.rand(n) for n in ((9, 6, 1, 1), (9,), (9, 1, 3, 3), (9,), (6, 9, 1, 1), (6,))]
    for op, parameters in (
        (mk.ops.feed_forward, feed),
        (mk.ops.separable_attention_block, attention),
        (mk.ops.inverted_residual, residual),
    ):
        for parameter in parameters:
            op(x, *parameters, backend="cpu")
            parameter.mul_(0.5)
            actual, expected = (op(x, *parameters, backend=backend) for backend in ("cpu", "reference"))
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_of_weights_that_compiled_code_has_on_its_way_nothing_is_kept() -> None:
    """Inductor writes the next weight into the memory of the last one, and gives the same object."""
    weight, gemm = torch.randn(32, 32), torch.ops.mvit_kernels.gemm
    before = len(packing._entries)
    for _ in range(2):
        assert torch.allclose(gemm(A, weight, backend="cpu")[0], F.linear(A, weight), atol=1e-4)
        weight.numpy()[:] += 1  # which torch does not count
    assert len(packing._entries) == before
    parameter = torch.nn.Parameter(weight)
    for _ in range(2):
        gemm(A, parameter, backend="cpu")
        mk.ops.gemm(A, parameter, backend="cpu")  # by the dispatcher, too: there is a gradient
    assert len(packing._entries) == before + 1


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What has been packed, in a CUDA graph that is being captured, for which the CPU stands in."""
    made, packed = [], packing._made
    monkeypatch.setattr(packing, "_made", lambda recipe, sources: made.append(recipe) or packed(recipe, sources))
    monkeypatch.setattr(packing, "_on_gpu", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return made


def test_a_graph_of_a_step_of_training_packs_at_every_replay(layer: Layer, packs: list[object]) -> None:
    entries = dict(packing._entries)
    for _ in range(2):
        layer().sum().backward()
    assert len(packs) == 2  # of the forward; this gradient needs nothing packed
    torch.compile(layer, backend="aot_eager", fullgraph=True)().sum().backward()
    assert len(packs) == 3
    with torch.no_grad():
        torch.ops.mvit_kernels.gemm(A, layer.weight, layer.bias, backend="cpu")  # as compiled code calls it
    assert len(packs) == 4
    assert packing._entries == entries


def test_a_graph_of_a_gradient_packs_at_every_replay(packs: list[object]) -> None:
    layer = Layer()
    with packing.passing_weights():  # in which gradients of ops are found
        for _ in range(2):
            packing.packed(packing.pack_matrix, layer.weight, layer.bias)
    assert len(packs) == 2


def test_a_graph_of_training_packs_frozen_weights_that_were_forgotten(packs: list[object]) -> None:
    """By a step of an optimizer, as the last one of a warm-up."""
    layer, entries = Layer().requires_grad_(False), dict(packing._entries)
    for a in (A, A.clone().requires_grad_()):
        for _ in range(2):
            layer(a)
    assert len(packs) == 4
    assert packing._entries == entries


def test_a_graph_of_compiled_code_packs_frozen_weights_at_every_replay(layer: Layer, packs: list[object]) -> None:
    """They may change, and nobody captures it again. Who keeps what a graph reads knows when to."""
    layer.requires_grad_(False)

    def call() -> None:
        torch.ops.mvit_kernels.gemm(A, layer.weight, layer.bias, backend="cpu")

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            call()
    assert len(packs) == 2
    with packing.holding() as held:
        call()
    assert len(packs) == 2
    assert len(held) == 1


def test_a_graph_of_evaluation_reads_what_was_packed(layer: Layer, packs: list[object]) -> None:
    with torch.no_grad():
        layer()
    layer.requires_grad_(False)
    layer(A.clone().requires_grad_()).sum().backward()
    assert packs == []


class Made:
    """Stands in for that of a GPU."""

    def __init__(self, *_: object) -> None:
        pass

    def take(self) -> None:
        pass


@pytest.mark.parametrize("first", [True, False])  # what is before it wants no gradient
def test_a_graph_of_training_keeps_what_it_reads_of_frozen_weights(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, a = Layer().requires_grad_(False), A.clone().requires_grad_(not first)
    monkeypatch.setattr(packing, "_on_gpu", lambda _: True)
    monkeypatch.setattr(packing.cuda_support, "Made", Made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    layer(a)
    (entry,) = [each for each in packing._entries.values() if each.sources[0]() is layer.weight]
    copy = weakref.ref(entry.value.weight)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    layer(a)
    del entry
    packing.forget_all()  # as the step of the optimizer does, at its capture
    gc.collect()
    assert copy() is not None
    del layer
    gc.collect()
    assert copy() is None


@pytest.mark.parametrize("stream", [0, 7])  # the default one; that on which torch.compile runs code before it captures it
def test_what_stays_is_made_by_another_thread_where_memory_may_be_a_pool_s(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    entered = []
    monkeypatch.setattr(packing.cuda_support, "_current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda on: entered.append((on, threading.get_ident())))
    variable.set(3)
    device, here = torch.device("cuda", 0), threading.get_ident()
    thread, value = packing.cuda_support.made_to_stay(lambda: (threading.get_ident(), variable.get()), device)
    assert value == 3
    assert (thread == here) == (stream == 0)
    assert entered == ([] if stream == 0 else [(7, thread)])
    with pytest.raises(ZeroDivisionError):
        packing.cuda_support.made_to_stay(lambda: 1 // 0, device)
    assert packing.cuda_support.made_to_stay(threading.get_ident, torch.device("cpu")) == here
