"""Calls that are run again give what they would give op by op, bit for bit, and never what they gave before something changed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_checks import needs_native
from swap_checks import lively
from test_dispatch import DispatchMode, FunctionMode
from torch import nn

import mvit_kernels as mk
from mvit_kernels.models import layers, mobilevit, mobilevitv2
from mvit_kernels.ops import library, packing, replay

pytestmark = needs_native
Tensor = torch.Tensor


@pytest.fixture
def again(monkeypatch) -> list[str]:
    """Grows with every call that is run again."""
    calls: list[str] = []
    run = replay._Replay.__call__

    def counted(self, addresses):
        calls.append(self._op)
        return run(self, addresses)

    monkeypatch.setattr(replay._Replay, "__call__", counted)
    init = replay.Replays.__init__

    def with_counted_forms(self, op, weights=0):
        init(self, op, weights)
        find = self.again

        def again(*inputs):
            y = find(*inputs)
            if y is not None:
                calls.append(op)
            return y

        self.again = again

    monkeypatch.setattr(replay.Replays, "__init__", with_counted_forms)
    return calls


def op_by_op(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Where something watches, nothing is run again."""
    with DispatchMode() as mode:
        y = function(*inputs)
    assert any("mvit_kernels" in name for name in mode.seen)
    return y


def warm(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    for _ in range(2):
        function(*inputs)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


def conv() -> nn.Module:
    return mk.accelerate(lively(layers.ConvNormAct(8, 24, 3, stride=2)))


def residual() -> nn.Module:
    return mk.accelerate(lively(layers.InvertedResidual(16, 16, stride=1, expand_ratio=2)))


def v1() -> nn.Module:
    return mk.accelerate(lively(mk.create_model("mobilevit_xxs").stages[2][1]))


def v2() -> nn.Module:
    return mk.accelerate(lively(mk.create_model("mobilevitv2_050").stages[2][1]))


def chain() -> nn.Module:
    block = mk.create_model("mobilevit_xxs").stages[2][1]
    first = layers.InvertedResidual(48, 40, stride=1, expand_ratio=1)  # whose end is one with the beginning of the second
    second = layers.InvertedResidual(40, 48, stride=1, expand_ratio=2)
    return mk.accelerate(lively(nn.Sequential(first, nn.Identity(), nn.Sequential(second, block))))


def head() -> nn.Module:
    return mk.accelerate(lively(layers.ClassifierHead(16, 10, drop_rate=0.1)))


MODULES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "conv": (conv, 8), "residual": (residual, 16), "v1": (v1, 48), "v2": (v2, 128), "chain": (chain, 48), "head": (head, 16),
}  # fmt: skip


@pytest.fixture(params=MODULES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def module(kind) -> nn.Module:
    return MODULES[kind][0]()


def image(kind: str, batch: int = 1, size: tuple[int, int] = (8, 12), dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(batch, MODULES[kind][1], *size).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def test_the_modules_are_what_they_are_called():
    assert isinstance(v1(), mobilevit.MobileViTBlock)
    assert isinstance(v2(), mobilevitv2.MobileViTv2Block)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modules(kind, module, again, threads, dtype):
    module.to(dtype)
    for batch, size, number in ((1, (8, 12), 1), (3, (8, 12), 2), (2, (16, 6), 1), (1, (8, 12), 2)):
        x = image(kind, batch, size, dtype)
        threads(number)
        warm(module, x)
        before, other = len(again), torch.randn_like(x)
        for each in (x, other, other.clone()):
            assert same(module(each), op_by_op(module, each))
        assert len(again) == before + 3
    with torch.inference_mode():
        assert module(x).is_inference()
    assert not module(x).is_inference()


@torch.no_grad()
def test_results_are_the_callers(kind, module, again):
    x = image(kind)
    warm(module, x)
    first = module(x)
    kept = first.clone()
    second = module(torch.randn_like(x))
    assert torch.equal(first, kept)
    assert first.data_ptr() != second.data_ptr()
    first.zero_()
    assert same(module(x), kept)
    assert len(again) == 3


@torch.no_grad()
def test_empty_strided_and_nan(kind, module):
    x = image(kind, batch=4)
    for each in (x[:0], x[::2], x[:, :, :, ::2], x[:, :, 4:, 2:], x.contiguous(), torch.full_like(x, float("nan"))):
        results = [module(each) for _ in range(3)]
        expected = op_by_op(module, each)
        for y in results:
            assert y.shape == expected.shape
            assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))


def _transpose_in_place_of_memory(weight: Tensor) -> None:
    weight.data = weight.data.flatten(1).t().reshape(weight.shape) if weight.shape[0] != weight[0].numel() else weight.data.transpose(0, 1)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda m: [p.mul_(1.5) for p in m.parameters()],
    "one weight": lambda m: list(m.parameters())[-1].add_(1),
    "part of one": lambda m: next(m.parameters()).view(-1)[3].fill_(9),
    "data assigned": lambda m: [setattr(p, "data", p.data * 1.5) for p in m.parameters()],
    "data assigned, same memory": lambda m: [setattr(p, "data", p.data.flip(0).copy_(p.data)) for p in m.parameters()],
    "data transposed where it lies": lambda m: [_transpose_in_place_of_memory(p) for p in m.parameters() if p.ndim > 1],
    "parameter replaced": lambda m: [setattr(c, "weight", nn.Parameter(c.weight * 1.5)) for c in m.modules() if isinstance(c, nn.Conv2d)],
    "bias of the norm": lambda m: [c.bias.add_(1) for c in m.modules() if isinstance(c, nn.BatchNorm2d)],
    "statistics, uncounted": lambda m: [c.running_mean.data.add_(1) for c in m.modules() if isinstance(c, nn.BatchNorm2d)],
    "statistics replaced": lambda m: [
        setattr(c, "running_var", c.running_var * 3) for c in m.modules() if isinstance(c, nn.BatchNorm2d)
    ],
    "eps": lambda m: [setattr(c, "eps", 0.5) for c in m.modules() if hasattr(c, "eps")],
    "state_dict": lambda m: m.load_state_dict({name: x * 2 if x.is_floating_point() else x for name, x in m.state_dict().items()}),
    "state_dict assigned": lambda m: m.load_state_dict(
        {name: x * 2 if x.is_floating_point() else x for name, x in m.state_dict().items()}, assign=True
    ),
    "another activation": lambda m: [
        setattr(c, "act", nn.ReLU()) for c in m.modules() if isinstance(getattr(c, "act", None), nn.SiLU)
    ],
    "bfloat16 weights": lambda m: [setattr(p, "data", p.data.bfloat16().float()) for p in m.parameters()],
}  # fmt: skip
OF_CONVOLUTIONS = ("parameter replaced", "bias of the norm", "statistics, uncounted", "statistics replaced", "eps", "another activation")


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(kind, module, again, change):
    if kind == "head" and change in OF_CONVOLUTIONS:
        pytest.skip("it has none of these")
    x = image(kind)
    warm(module, x)
    before = module(x)
    assert len(again) == 1
    CHANGES[change](module)
    expected = op_by_op(module, x)
    for _ in range(3):
        assert same(module(x), expected)
    if change not in ("data assigned, same memory", "data transposed where it lies"):
        assert not torch.allclose(before, expected)


def test_changed_by_training(kind, module, again):
    x = image(kind, batch=4)
    for _ in range(2):
        module.eval()
        with torch.no_grad():
            warm(module, x)
            before, y = len(again), module(x)
            assert len(again) == before + 1
        module.train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
        module(x).square().sum().backward()
        optimizer.step()
        module.eval()
        with torch.no_grad():
            assert same(module(x), op_by_op(module, x))
            assert not torch.allclose(module(x), y)


@torch.no_grad()
def test_a_gradient_is_never_lost(kind, module, again):
    x = image(kind)
    warm(module, x)
    assert module(x).grad_fn is None
    with torch.enable_grad():
        assert module(x).grad_fn is not None
        module.requires_grad_(False)
        assert module(x).grad_fn is None
        assert module(x.requires_grad_()).grad_fn is not None
    assert len(again) == 2


@torch.no_grad()
def test_hooks_and_watchers_see_the_call(kind, module, again):
    x = image(kind)
    warm(module, x)
    expected, before = module(x), len(again)
    seen: list[object] = []
    leaf = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear)][-1]
    handle = leaf.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)
    handle.remove()
    assert seen
    for mode in (DispatchMode(), FunctionMode()):
        with mode:
            assert same(module(x), expected)
        assert any("mvit_kernels" in name for name in mode.seen)
    with torch.autograd.profiler.profile() as profiled:
        module(x)
    assert any("mvit_kernels" in event.name for event in profiled.function_events)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    assert len(again) == before
    assert same(module(x), expected)
    assert len(again) == before + 1


@torch.no_grad()
def test_the_backend_is_that_of_the_call(kind, module, again):
    x = image(kind)
    warm(module, x)
    with mk.use_backend("reference"):
        expected = op_by_op(module, x)
        results = [module(x) for _ in range(3)]
    assert all(same(y, expected) for y in results)
    assert not again
    module(x)
    assert len(again) == 1
    with mk.use_backend("cpu"):
        assert same([module(x) for _ in range(3)][-1], module(x))
    mk.accelerate(module, backend="reference")
    assert same([module(x) for _ in range(3)][-1], expected)


@torch.no_grad()
def test_copies_have_their_own_weights(kind, module, again):
    x = image(kind)
    warm(module, x)
    expected = module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for p in copied.parameters():
            p.mul_(2)
        warm(copied, x)
        assert same(copied(x), op_by_op(copied, x))
        assert not torch.allclose(copied(x), expected)
    assert same(module(x), expected)


def test_nothing_outlives_the_module(kind):
    module = MODULES[kind][0]()
    with torch.no_grad():
        for _ in range(3):
            module(image(kind))
    references = [weakref.ref(each) for each in (module, *module.parameters())]
    del module
    gc.collect()
    assert not any(reference() is not None for reference in references)


@torch.no_grad()
def test_a_hook_that_knows_the_module_keeps_it_no_longer(kind):
    module, x = MODULES[kind][0](), image(kind)

    class Keeps:
        def __init__(self, module: nn.Module) -> None:
            self.module = module
            module.register_forward_hook(self.hook)

        def hook(self, *_: object) -> None:
            pass

    Keeps(module)
    for _ in range(3):
        module(x)
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


@torch.no_grad()
def test_what_was_packed_is_freed_when_weights_change(kind, module):
    x = image(kind)
    for _ in range(3):
        module(x)
    (form,) = module._mvit_kernels_setting.kept.prepared.replays._by_form.values()
    packed = [weakref.ref(each) for each in form._held]
    del form
    assert packed
    packing.forget_all()
    gc.collect()
    assert not any(each() is not None for each in packed)
    module(x)
    module.train()
    module(x)
    assert module._mvit_kernels_setting.kept.prepared is None


@torch.no_grad()
def test_a_dropout_that_begins_to_drop(again):
    module, x = v1(), image("v1")
    dropouts = [each for each in module.modules() if isinstance(each, nn.Dropout)]
    assert dropouts
    for each in dropouts:
        each.train()
        each.p = 0.0
    warm(module, x)
    module(x)
    before = len(again)
    assert before
    for each in dropouts:
        each.p = 0.9
    module(x)
    assert len(again) == before


@torch.no_grad()
def test_hooks_in_other_dicts_are_seen(again):
    module, x, called = v2(), image("v2"), []
    warm(module, x)
    module(x)
    for each in module.modules():
        each._forward_hooks = OrderedDict()
    norm = next(each for each in module.modules() if isinstance(each, nn.GroupNorm))
    norm.register_forward_hook(lambda *_: called.append(1))
    before = len(again)
    module(x)
    assert called
    assert len(again) == before


@torch.no_grad()
def test_threads_at_once(kind, module, again, one_thread):
    inputs = [image(kind, batch) for batch in (1, 2) for _ in range(12)]
    expected = [op_by_op(module, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for y, wanted in zip(pool.map(torch.no_grad()(module), inputs), expected, strict=True):
                assert same(y, wanted)
    assert len(again) > 24


@torch.no_grad()
def test_maps_of_odd_sizes_are_resized_every_time(again):
    module = v1()
    x, other = image("v1", size=(7, 9)), image("v1", size=(7, 9))
    warm(module, x)
    assert same(module(other), op_by_op(module, other))
    assert not again  # torch resizes in between


def test_compiled_functions_run_ops():
    module, x = v2(), image("v2")
    with torch.no_grad():
        warm(module, x)
        expected = module(x)
        torch._dynamo.reset()
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        for _ in range(3):
            assert same(compiled(x), expected)


# --- any function ---


def test_what_torch_computes_between_is_computed_every_time(again):
    replays = replay.Replays("test")
    x, weight = torch.randn(4, 8), torch.randn(8, 8)

    def function(x: Tensor) -> Tensor:
        return mk.ops.gemm(mk.ops.gemm(x, weight) + 1, weight)

    for _ in range(4):
        x = torch.randn(4, 8)
        assert same(replays(function, (x,), known=(weight,)), function(x))
    assert not again


@pytest.mark.parametrize(
    "unknown",
    [
        lambda x, w: mk.ops.gemm(x, w * 2),  # a weight that is gone behind the call
        lambda x, w: mk.ops.gemm(x, w).t(),  # other memory than what the op has made, in another order
        lambda x, w: mk.ops.gemm(x, w)[:2],
        lambda x, w: mk.ops.gemm(x, w).clone(),
        lambda x, w: (mk.ops.gemm(x, w),),
        lambda x, w: mk.ops.fold_patches(mk.ops.unfold_patches(mk.ops.gemm(x, w)[None, None]), (4, 8)),  # no steps of plans
        lambda x, w: x,
        lambda x, w: mk.ops.gemm(x, w, residual=torch.ones(4, 8)),
        lambda x, w: mk.ops.gemm(mk.ops.gemm(x, w).relu_(), w),
        lambda x, w: mk.ops.gemm(x * 2, w, residual=mk.ops.gemm(x, w)),  # what is gone has the address of what came behind
        lambda x, w: mk.ops.gemm(x.t(), w[:, :4]),  # copies, gone as well
    ],
)
def test_what_is_not_known_is_not_run_again(again, unknown):
    replays, weight = replay.Replays("test"), torch.randn(8, 8)
    for _ in range(4):
        x = torch.randn(4, 8)
        y, expected = replays(unknown, (x, weight)), unknown(x, weight)
        for a, b in zip(y, expected, strict=True):
            assert torch.equal(a, b)
    assert len(again) in (0, 2)  # in another order: the result is dense all the same


def test_a_weight_that_is_unknown_could_change(again):
    replays, weight = replay.Replays("test"), torch.randn(8, 8)
    for _ in range(4):
        x = torch.randn(4, 8)
        assert torch.equal(replays(lambda x: mk.ops.gemm(x, weight), (x,)), mk.ops.gemm(x, weight))
        weight.mul_(2)
    assert not again


def test_inputs_that_overlap_are_not_told_apart(again):
    replays, weight = replay.Replays("test"), torch.randn(8, 8)

    def function(x: Tensor, residual: Tensor) -> Tensor:
        return mk.ops.gemm(x, weight, residual=residual)

    both = torch.randn(5, 8)
    for x, residual in ((both[:4], both[:4]), (both[:4], both[1:]), (torch.randn(4, 8), torch.randn(4, 8)), (both[1:], both[:4])):
        assert torch.equal(replays(function, (x, residual), known=(weight,)), function(x, residual))


def test_an_error_leaves_nothing_behind(again):
    replays, weight = replay.Replays("test"), torch.randn(8, 8)
    x, fails = torch.randn(4, 8), [False, True, False, False, False]

    def function(x: Tensor) -> Tensor:
        y = mk.ops.gemm(x, weight)
        if fails.pop(0):
            raise KeyError("on the way")
        return y

    replays(function, (x,), known=(weight,))
    with pytest.raises(KeyError):
        replays(function, (x,), known=(weight,))
    assert library.made.get() is None
    for _ in range(3):
        assert torch.equal(replays(function, (x,), known=(weight,)), mk.ops.gemm(x, weight))
    assert len(again) == 2


def test_many_forms(again):
    replays, weight = replay.Replays("test"), torch.randn(8, 8)
    for rows in [*range(1, 40)] * 2:
        for _ in range(3):
            x = torch.randn(rows, 8)
            assert torch.equal(replays(mk.ops.gemm, (x,), (weight,), known=(weight,)), mk.ops.gemm(x, weight))
    assert len(again) == 78
    assert len(replays._by_form) <= replay._MOST_FORMS


# --- prepared integer ops ---


@pytest.fixture(params=["one native function", "Python"])
def way(request, monkeypatch) -> str:
    """By which calls of prepared ops are found: from torch 2.10 on by a native function."""
    if request.param == "Python":
        monkeypatch.setattr(replay, "_torch", None)
    elif replay._torch is None:
        pytest.skip("torch has no tables of DLPack")
    return request.param


def product(out_dtype: torch.dtype = torch.uint8, **options: object) -> mk.ops.QGemm:
    weight = mk.ops.pack_weight(torch.randint(-127, 128, (20, 24), dtype=torch.int8))
    out = {} if out_dtype.is_floating_point else {"out_scale": 0.7}
    if out_dtype == torch.uint8:
        out["out_zero_point"] = 12
    return mk.ops.prepare_qgemm(weight, 0.02, 113, 0.01, torch.randn(20), out_dtype=out_dtype, **out, **options)


def random_bytes(*size: int) -> Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("out_dtype", [torch.uint8, torch.int16, torch.float32, torch.bfloat16], ids=str)
def test_products_of_bytes(way, again, out_dtype, activation):
    if out_dtype == torch.int16 and activation is not None:
        pytest.skip("a stream has no activation")
    handle = product(out_dtype, activation=activation)
    for rows in (1, 7, 64):
        for _ in range(4):
            a = random_bytes(rows, 24)
            assert same(handle(a), op_by_op(handle, a))
    assert len(again) == 6


def test_products_with_residuals_strides_and_nothing(way, again):
    handle = product(residual_scale=0.5, residual_zero_point=3)
    for _ in range(4):
        a, residual = random_bytes(9, 24), random_bytes(9, 20)
        assert same(handle(a, residual), op_by_op(handle, a, residual))
        assert same(handle(a), op_by_op(handle, a))
        wide = random_bytes(9, 40)[:, 5:29]
        assert same(handle(wide), op_by_op(handle, wide))
        assert handle(a[:0]).shape == (0, 20)
        square = random_bytes(24, 24)
        assert same(handle(square.t()), op_by_op(handle, square.t()))
    assert len(again) == 6


def test_arguments_are_checked_as_at_the_first_call(way, again):
    handle, a = product(), random_bytes(3, 24)
    for _ in range(3):
        handle(a)
        with pytest.raises(ValueError, match=r"a: expected shape \(M, 24\), got \(3, 23\)"):
            handle(a[:, 1:])
        with pytest.raises(TypeError, match="dtype uint8"):
            handle(a.to(torch.int8))
        with pytest.raises(TypeError, match="expected a dense tensor"):
            handle(a.to_sparse())
        with pytest.raises(ValueError, match="expected a residual_scale"):
            handle(a, a[:, :20])
    assert len(again) == 1


@pytest.mark.parametrize("residual", [False, True])
def test_convolutions_of_bytes(way, again, residual):
    weight = mk.ops.pack_weight(torch.randint(-127, 128, (20, 9 * 24), dtype=torch.int8))
    handle = mk.ops.prepare_qconv2d(
        weight, 0.02, 300, 0.01, torch.randn(20), kernel_size=3, residual_scale=0.5, residual_zero_point=3, out_dtype=torch.uint8,
        out_scale=0.7, out_zero_point=12,
    )  # fmt: skip
    for size in ((8, 8), (32, 36)):
        for _ in range(4):
            x = random_bytes(1, *size, 24).permute(0, 3, 1, 2)
            inputs = (x, None, random_bytes(1, *size, 20).permute(0, 3, 1, 2)) if residual else (x,)
            assert same(handle(*inputs), op_by_op(handle, *inputs))
            assert same(handle(x.contiguous()), op_by_op(handle, x))
    assert len(again) == 4


def test_depthwise_convolutions_of_bytes(way, again):
    weight = torch.randint(-127, 128, (24, 1, 3, 3), dtype=torch.int8)
    handle = mk.ops.prepare_qdepthwise_conv2d(
        weight, a_scale=0.02, a_zero_point=100, w_scale=0.01, bias=torch.randn(24), out_dtype=torch.uint8, out_scale=0.1, out_zero_point=12
    )
    for _ in range(4):
        x = random_bytes(2, 9, 7, 24).permute(0, 3, 1, 2)
        assert same(handle(x), op_by_op(handle, x))
    assert len(again) == 2


def test_copies_of_prepared_ops(way, again):
    handle, a = product(activation="gelu"), random_bytes(3, 24)
    warm(handle, a)
    expected = handle(a)
    for copied in (copy.deepcopy(handle), copy.copy(handle)):
        for _ in range(3):
            assert same(copied(a), expected)
    assert len(again) >= 2


def test_prepared_ops_are_found_by_the_native_function_alone(again, monkeypatch):
    if replay._torch is None:
        pytest.skip("torch has no tables of DLPack")
    handle, a = product(residual_scale=0.5, residual_zero_point=3), random_bytes(9, 24)
    warm(handle, a)
    monkeypatch.setattr(replay.Replays, "__call__", None)
    assert same(handle(a), op_by_op(handle._run, a, None))
    with pytest.raises(TypeError, match="NoneType"):
        handle(a[:3])
    assert len(again) == 1


def test_watchers_see_prepared_ops(way, again):
    handle, a = product(), random_bytes(9, 24)
    warm(handle, a)
    expected, before = handle(a), len(again)
    for mode in (DispatchMode(), FunctionMode()):
        with mode:
            assert same(handle(a), expected)
        assert any("mvit_kernels" in name for name in mode.seen)
    with torch.autograd.profiler.profile() as profiled:
        handle(a)
    assert any("mvit_kernels" in event.name for event in profiled.function_events)
    traced = torch.jit.trace(lambda x: handle(x), (a,), check_trace=False)
    assert "mvit_kernels" in str(traced.graph)
    assert same(torch.compile(lambda x: handle(x), backend="eager", fullgraph=True)(a), expected)
    assert same(torch.vmap(lambda x: handle(x))(a[None])[0], expected)
    with torch.autograd.forward_ad.dual_level():
        handle(a)
    with mk.use_backend("reference"):
        assert same(handle(a), expected)
    assert len(again) == before
    assert same(handle(torch.nn.Parameter(a, requires_grad=False)), expected)
    assert len(again) == before + 1


def test_tensors_that_are_not_what_their_memory_holds(way, again):
    handle, a = product(residual_scale=0.5, residual_zero_point=3), random_bytes(9, 24)
    residual = torch.zeros(9, 20, dtype=torch.uint8)
    warm(handle, a, residual)
    expected, before = handle(a, residual), len(again)
    assert same(handle(a, torch._efficientzerotensor((9, 20), dtype=torch.uint8)), expected)
    assert same(handle(torch._neg_view(torch._neg_view(a).clone()), residual), op_by_op(handle, a, residual))
    assert torch.equal(handle(torch._neg_view(a), residual), handle((-a.int()).to(torch.uint8), residual))
    with pytest.raises(ValueError, match="qgemm: residual: expected device meta, got cpu"):
        handle(a.to("meta"), residual)
    assert len(again) <= before + 2


def test_prepared_ops_in_every_mode_and_on_threads_at_once(way, again):
    handle, a = product(), random_bytes(64, 24)
    warm(handle, a)
    expected = handle(a)
    with torch.inference_mode():
        y = handle(a)
        assert same(y, expected)
        assert y.is_inference()
    assert not handle(a).is_inference()

    def work(number: int) -> bool:
        right = True
        for i in range(50):
            if i % 10 == number:
                packing.forget_all()  # while others run
            right &= same(handle(a), expected)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(again) > 50
    packing.forget_all()
    before = len(again)
    for _ in range(3):
        handle(a)
    assert len(again) == before + 1


# --- ops on weights ---


def block_weights(d: int = 12) -> list[Tensor]:
    sizes = ((d,), (d,), (1 + 2 * d, d), (1 + 2 * d,), (d, d), (d,))
    return [torch.randn(size) / d**0.5 for size in sizes]


def block(x: Tensor, *weights: Tensor, **settings: object) -> Tensor:
    return mk.ops.separable_attention_block(x, *weights, **settings)


def block_map(batch: int = 2, d: int = 12) -> Tensor:
    return torch.randn(batch, d, 4, 6).contiguous(memory_format=torch.channels_last)


SETTINGS = [{}, {"patch_size": (2, 2)}, {"eps": 0.25}, {"backend": "cpu"}, {"patch_size": (4, 3), "eps": 0.5}]


def test_ops_on_weights(way, again, threads):
    weights = [block_weights(), block_weights()]
    inputs = [block_map(), block_map(3), block_map().contiguous(), block_map().bfloat16()]
    for _ in range(2):
        for settings in SETTINGS:
            for x in inputs:
                moments = mk.reference.moments_of(x, x.shape[0])
                for own in weights:
                    for given in (None, moments):
                        expected = op_by_op(lambda t, o=own, s=settings, m=given: block(t, *o, moments=m, **s), x)
                        for _ in range(3):
                            assert same(block(x, *own, moments=given, **settings), expected)
    assert len(again) > 150  # all but those of maps that are copied first
    y, collected = block(inputs[0], *weights[0], collect=True)
    assert same(y, block(inputs[0], *weights[0]))
    assert torch.allclose(collected, mk.reference.moments_of(y, 2))


BLOCK_CHANGES: dict[str, Callable[[list[Tensor]], object]] = {
    "in place": lambda w: [each.mul_(1.5) for each in w],
    "one weight": lambda w: w[5].add_(1),
    "part of one": lambda w: w[4].view(-1)[3].fill_(9),
    "data assigned": lambda w: [setattr(each, "data", each.data * 1.5) for each in w],
    "data transposed where it lies": lambda w: setattr(w[4], "data", w[4].data.t()),
    "one replaced": lambda w: w.__setitem__(2, w[2] * 1.5),
    "all replaced": lambda w: w.__setitem__(slice(None), block_weights()),
    "of another dtype": lambda w: setattr(w[4], "data", w[4].data.double().float() * 2),
}


@pytest.mark.parametrize("change", BLOCK_CHANGES)
def test_changed_weights_of_ops_are_seen(way, again, change):
    x, weights = block_map(), block_weights()
    for _ in range(3):
        before = block(x, *weights)
    assert len(again) == 1
    BLOCK_CHANGES[change](weights)
    expected = op_by_op(lambda t: block(t, *weights), x)
    assert not torch.allclose(before, expected)
    for _ in range(4):
        assert same(block(x, *weights), expected)
    assert len(again) > 1


def test_weights_of_ops_change_in_training(way, again):
    x, weights = block_map(), [nn.Parameter(each) for each in block_weights()]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    for _ in range(2):
        with torch.no_grad():
            for _ in range(3):
                assert same(block(x, *weights), op_by_op(lambda t: block(t, *weights), x))
        y = block(x, *weights)
        assert y.grad_fn is not None
        y.square().sum().backward()
        optimizer.step()
        assert block(x.clone().requires_grad_(), *(each.detach() for each in weights)).grad_fn is not None
    assert len(again) == 2


def test_weights_of_inference_mode(way, again):
    with torch.inference_mode():
        x, weights = block_map(), block_weights()
        for _ in range(3):
            before = block(x, *weights)
        weights[4].mul_(2)
        expected = op_by_op(lambda t: block(t, *weights), x)
        for _ in range(3):
            assert same(block(x, *weights), expected)
        assert not torch.allclose(before, expected)
        assert before.is_inference()


def test_nothing_outlives_the_weights_of_ops(way):
    kept = mk.ops.separable_attention_block.__globals__["_replays"]._kept
    gc.collect()
    before = len(kept)
    x = block_map()
    for _ in range(20):
        weights = block_weights()
        for _ in range(3):
            y = block(x, *weights)
        assert same(y, op_by_op(lambda t, own=weights: block(t, *own), x))
        assert len(kept) == before + 1
    memory = weakref.ref(weights[4].untyped_storage())
    del weights
    gc.collect()
    assert len(kept) == before
    assert memory() is None


def test_who_watches_sees_ops_on_weights(way, again):
    x, weights = block_map(), block_weights()
    for _ in range(3):
        expected = block(x, *weights)
    before = len(again)
    for mode in (DispatchMode(), FunctionMode()):
        with mode:
            assert same(block(x, *weights), expected)
        assert any("mvit_kernels" in name for name in mode.seen)
    assert same(torch.compile(lambda t: block(t, *weights), backend="eager", fullgraph=True)(x), expected)
    with mk.use_backend("reference"):
        assert torch.allclose(block(x, *weights), expected, atol=1e-5)
    assert len(again) == before
    assert same(block(x, *weights), expected)
    assert len(again) == before + 1
    assert same(block(x, *(nn.Parameter(each, requires_grad=False) for each in weights)), expected)
    for index in range(6):  # of the right type at the places of others
        wrong = [*weights]
        wrong[index] = weights[index].double()
        with pytest.raises(TypeError, match="expected dtype"):
            block(x, *wrong)
    with pytest.raises(TypeError, match="x: expected a tensor, got NoneType"):
        block(None, *weights)
    with pytest.raises(ValueError, match="norm_w: expected shape"):
        block(block_map(d=13), *weights)


def test_ops_on_weights_are_part_of_what_calls_them(way, again):
    x, weights = block_map(), block_weights()
    for _ in range(3):
        block(x, *weights)
    both = replay.Replays("both")
    expected = block(block(x, *weights), *weights)
    before = len(again)
    for _ in range(4):
        assert same(both(lambda t: block(block(t, *weights), *weights), (x,), (), weights), expected)
    assert again[before:].count("both") == 2
    assert again[-1] == "both"


def test_ops_on_weights_on_threads_at_once(way, again, one_thread):
    x, weights = block_map(), block_weights()
    for _ in range(3):
        expected = block(x, *weights)

    def work(number: int) -> bool:
        right = True
        for i in range(50):
            if i % 10 == number:
                packing.forget_all()  # while others run
            right &= same(block(x, *weights), expected)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert len(again) > 50
