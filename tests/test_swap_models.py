"""`accelerate`, `restore` and `report` themselves, on our own reference models."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import swap_checks as checks
import torch
from marks import slow
from swap_checks import OPTIONS, SETTINGS, V1_SETTINGS, lively, outputs, reason, replaced
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mvit_kernels as mk
from mvit_kernels.models import MobileViTBlock, MobileViTv2Block, SeparableAttention, create_model
from mvit_kernels.models.layers import ConvNormAct, InvertedResidual
from mvit_kernels.models.mobilevitv2 import SeparableTransformerLayer

NAMES = ["mobilevit_xxs", "mobilevitv2_050"]
OPS = [("mobilevitv2_050", {"conv2d", *checks.V2_OPS}), ("mobilevit_xxs", {"inverted_residual", *checks.V1_OPS})]
BLOCKS = ["stages.2.1", "stages.3.1", "stages.4.1"]


def model(name: str = "mobilevitv2_050", **options: object) -> nn.Module:
    return lively(create_model(name, num_classes=10, **options))


def v2_block(**options: object) -> nn.Module:
    return lively(MobileViTv2Block(24, 16, 2, **options))


def image(height: int = 64, width: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width)


@pytest.mark.parametrize("size", [(128, 64), slow((97, 97))])
@pytest.mark.parametrize(
    ("name", "options"),
    [*(("mobilevit_xxs", options) for options in V1_SETTINGS), *(("mobilevitv2_050", options) for options in SETTINGS)],
    ids=str,
)
def test_outputs(name, options, size):
    checks.check_outputs(model(name), image(*size), **options)


@pytest.mark.parametrize("odd_maps", ["resize", "drop"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_odd_maps(options, size, odd_maps):
    parent = nn.Sequential(v2_block(odd_maps=odd_maps))
    checks.check_outputs(parent, torch.randn(2, 24, *size), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_bfloat16(name, dtype):
    network = model(name, features_only=True).to(dtype, memory_format=torch.channels_last)
    checks.check_outputs(network, image(96, 96).to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, training):
    checks.check_gradients(model(name).train(training), image(96, 96, batch=3))


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    network = model(name)
    network.stem.requires_grad_(False)
    checks.check_contract(network, image())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ops_of_a_v2_block(options):
    checks.check_v2_ops(v2_block(), torch.randn(1, 24, 8, 8), **options)


def test_ops_of_a_v1_block():
    checks.check_v1_ops(lively(MobileViTBlock(24, 16, 1)), torch.randn(1, 24, 8, 8))


def test_tokens_of_v1_are_a_view_of_the_patches():
    block = mk.accelerate(lively(MobileViTBlock(8, 16, 1)))
    seen = []
    block.transformer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        block(torch.randn(2, 8, 6, 4))
    (tokens,) = seen
    assert tokens.shape == (8, 6, 16)
    assert tokens.is_contiguous()
    assert tokens._base is not None
    assert tokens._base.shape == (2, 16, 4, 6)


def test_backend_is_asked_of_every_op_or_left_to_use_backend():
    x = image()
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .*got 'gpu'"):
        mk.accelerate(model(), backend="gpu")
    if not mk.backends()["triton"].usable:
        with pytest.raises(ValueError, match="'triton' cannot be used here: "):
            mk.accelerate(model(), backend="triton")
    for options in OPTIONS:
        network = mk.accelerate(model(), **options)
        with torch.no_grad(), mk.use_backend("cuda"), pytest.raises(ValueError, match="backend 'cuda' was requested"):
            network(x)
        mk.accelerate(network, backend="reference", **options)
        with torch.no_grad(), mk.use_backend("cuda"):
            network(x)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_transforms_of_functions(name):
    """Forward-mode derivatives and vmap, as torch.func takes them of the model as it was."""
    plain = mk.create_model(name, num_classes=5).eval()
    swapped = mk.accelerate(copy.deepcopy(plain))
    x, tangent = torch.randn(2, 1, 3, 32, 32)
    with sdpa_kernel(SDPBackend.MATH):  # torch's other attentions have no forward-mode derivative
        expected, actual = torch.func.jvp(plain, (x,), (tangent,)), torch.func.jvp(swapped, (x,), (tangent,))
    both = torch.stack([x, tangent])
    expected, actual = (*expected, torch.vmap(plain)(both)), (*actual, torch.vmap(swapped)(both))
    for y, right in zip(actual, expected, strict=True):
        assert (y - right).abs().max() <= 1e-4 * right.abs().max()


def test_bad_arguments():
    for function in (mk.accelerate, mk.restore, mk.report):
        with pytest.raises(TypeError, match=f"{function.__name__}: model: expected a torch.nn.Module, got dict"):
            function({})
    network = model()
    for exclude in ("stages.*", nn.Conv2d, [3], None):
        with pytest.raises(TypeError, match="accelerate: exclude: expected a sequence of module names and classes"):
            mk.accelerate(network, exclude=exclude)
    with pytest.raises(ValueError, match=r"exclude: expected names of modules .*got 'stage.\*', which none matches"):
        mk.accelerate(network, exclude=["stages.2", "stage.*"])
    assert replaced(network) == []


@pytest.mark.parametrize("function", [mk.accelerate, mk.restore])
def test_a_class_derived_from_a_replacement_is_refused(function):
    """As torch's fully_shard derives one."""
    network = mk.accelerate(model())
    block = network.get_submodule(BLOCKS[1])
    block.__class__ = type("FSDPBlock", (type(block),), {})
    before = [type(module) for module in network.modules()]
    with pytest.raises(ValueError, match=rf"{function.__name__}: model: .*{BLOCKS[1]}, got FSDPBlock"):
        function(network)
    assert [type(module) for module in network.modules()] == before
    assert mk.report(network).summary.startswith("20 of 20")
    with torch.no_grad():
        network(image())


def test_a_library_that_misses_something(monkeypatch):
    timm = pytest.importorskip("timm")
    from timm.models import mobilevit

    block, network = nn.Sequential(mobilevit.MobileVitBlock(24, transformer_dim=16)), model()
    monkeypatch.delitem(sys.modules, "mvit_kernels.swap.timm", raising=False)
    monkeypatch.delattr(mobilevit, "LinearTransformerBlock")
    monkeypatch.setattr(timm, "__version__", "0.0.1")
    with pytest.raises(ImportError, match=r"cannot replace the modules of timm 0\.0\.1: .*LinearTransformerBlock"):
        mk.accelerate(block)
    assert replaced(mk.accelerate(network)) != []


def test_report_of_a_model_without_parameters():
    block = mk.accelerate(v2_block())
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    assert mk.report(block).rows[0].backend == ("cpu" if mk.backends()["cpu"].usable else "reference")
    assert {row.backend for row in mk.report(block.double()).rows} == {"reference"}


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["stages.3.1"], ["stages.3.1"]),
        (["stages.3"], ["stages.3.0", "stages.3.1"]),
        (["stages.[34].*"], ["stages.3.0", "stages.3.1", "stages.4.0", "stages.4.1"]),
        ([MobileViTv2Block], BLOCKS),
        ([nn.Linear, "stages.2.*"], ["stages.2.0", "stages.2.1"]),
    ],
)
def test_exclude(exclude, left):
    network = mk.accelerate(model(), exclude=exclude)
    rows = mk.report(network).rows
    for row in rows:
        inside = any(row.module == name or row.module.startswith(f"{name}.") for name in left)
        assert (row.reason == "excluded") == inside
        assert (row.replacement is None) == inside
    assert replaced(mk.accelerate(network)) == [row.module for row in rows]


@torch.no_grad()
def test_containers():
    """Of replaced modules only; what is taken out of them or put into them runs."""
    network, x = model(), image()
    plain = copy.deepcopy(network)
    kinds = [type(mk.accelerate(copy.deepcopy(network), **options).stages) for options in ({}, {"conv": False}, {"attention": False})]
    assert [kind is nn.Sequential for kind in kinds] == [False, True, True]
    assert type(mk.accelerate(copy.deepcopy(network), exclude=["stages.3.1"]).stages) is nn.Sequential
    stages = mk.accelerate(network).stages
    y = network.stem(x)
    for _ in range(3):
        expected = plain.stages(y)
        torch.testing.assert_close(stages(y), expected, rtol=1e-4, atol=1e-4)
    assert type(stages[:2]) is nn.Sequential
    torch.testing.assert_close(stages[2:](stages[:2](y)), expected, rtol=1e-4, atol=1e-4)
    seen: list[torch.Tensor] = []
    handle = stages[1].register_forward_hook(lambda _module, _args, y: seen.append(y))
    stages(y)
    torch.testing.assert_close(seen[0], plain.stages[:2](y), rtol=1e-4, atol=1e-4)
    handle.remove()
    for _ in range(3):
        stages(y)
    stages.append(nn.ReLU())
    for _ in range(3):
        torch.testing.assert_close(stages(y), expected.relu(), rtol=1e-4, atol=1e-4)
    assert len(seen) == 1


class Tap(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.factor, self.seen = 1, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x * self.factor


def a_block_of(network: nn.Module) -> nn.Module:
    return network.stages[1][1]


def derived(kind: type[nn.Module]) -> type[nn.Module]:
    return type("Derived", (kind,), {"forward": lambda self, x: 2 * x})


CONTAINER_CHANGES = {
    "appended": lambda m: m.stages[1].append(nn.Tanh()),
    "inserted": lambda m: m.stages[1].insert(1, nn.Tanh()),
    "wrapped": lambda m: m.stages[2].__setitem__(0, nn.Sequential(m.stages[2][0], nn.Tanh())),
    "taken out": lambda m: m.stages[1].pop(1),
    "twice": lambda m: m.stages[1].append(m.stages[1][1]),
    "replaced by a derived class": lambda m: setattr(a_block_of(m), "__class__", derived(type(a_block_of(m)))),
    "a forward in the place of another attribute": lambda m: (delattr(a_block_of(m), "tag"), setattr(a_block_of(m), "forward", torch.relu)),
    "filters transposed where they lie": lambda m: [
        setattr(c.weight, "data", c.weight.data.transpose(2, 3)) for c in m.modules() if isinstance(c, nn.Conv2d)
    ],
}  # fmt: skip


@pytest.mark.parametrize("change", CONTAINER_CHANGES)
@torch.no_grad()
def test_changed_containers(change):
    """They run what stands in them, however it came there; with weights in channels_last."""
    network, x = model().to(memory_format=torch.channels_last), image()
    a_block_of(network).tag = []
    ours, plain = mk.accelerate(copy.deepcopy(network)), copy.deepcopy(network)
    for _ in range(3):
        before = ours(x)
    if change == "replaced by a derived class":
        CONTAINER_CHANGES[change](ours)
        a_block_of(plain).forward = lambda x: 2 * x
    else:
        for each in (ours, plain):
            CONTAINER_CHANGES[change](each)
    expected = plain(x)
    assert not torch.allclose(expected, before, rtol=1e-3, atol=1e-3)
    for _ in range(3):
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_module_of_another_maker_in_a_container_is_called():
    network, tap, x = mk.accelerate(model()), Tap(), image()
    for _ in range(3):
        network(x)
    network.stages[1].append(tap)
    for _ in range(3):
        expected = network(x)
    tap.factor = 2
    assert not torch.allclose(network(x), expected, rtol=1e-3)
    assert tap.seen == 4


@torch.no_grad()
@pytest.mark.slow
def test_nothing_outlives_a_network_that_its_parts_know():
    def hooked(network: nn.Module) -> None:
        network.stages[3].register_forward_hook(lambda *_, network=network: None)

    def owned(network: nn.Module) -> None:
        network.stages[3][0].__dict__["owner"] = network

    def owned_by_a_leaf(network: nn.Module) -> None:
        network.stages[3][0].conv1_1x1.conv.owners = [network]

    for knows in (hooked, owned, owned_by_a_leaf):
        for early in (True, False):
            network = mk.accelerate(model())
            for step in range(4):
                if step == 3 * (not early):
                    knows(network)
                network(image())
            alive = weakref.ref(network)
            del network
            gc.collect()
            assert alive() is None, (knows, early)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_containers_merge_what_lies_between(dtype):
    """The last convolution of a module and the first of the next, where nothing is added to what is between and that is not narrow."""

    def residual(first: int, last: int, ratio: int) -> nn.Module:
        return InvertedResidual(first, last, stride=1 + (first != last), expand_ratio=ratio)

    block = MobileViTv2Block(32, 16, 1)
    wide = [residual(8, 32, 2), residual(32, 40, 1), residual(40, 24, 2)]  # widths between: 16 -> 32 -> 32, 32 -> 40 -> 80
    network = lively(
        nn.Sequential(*wide, nn.Sequential(residual(24, 24, 2), residual(24, 32, 3)), block, nn.Identity(), residual(32, 16, 1))
    )
    x = torch.randn(2, 8, 64, 96)
    if dtype == torch.float32:
        checks.check_outputs(network, x)
    layers = ["separable_attention_block", "feed_forward"]
    calls = checks.recorded(network.to(dtype), x.to(dtype), {})
    assert [name for name, *_ in calls.ours] == [
        "conv2d", "depthwise_conv2d", "conv2d", "depthwise_conv2d", "inverted_residual", "inverted_residual", "inverted_residual",
        "inverted_residual", *layers, "gemm", "inverted_residual",
    ]  # fmt: skip
    assert [shape[1] for _, shape, _ in calls.ours] == [8, 16, 16, 32, 32, 24, 24, 32, 16, 16, 16, 32]


def test_a_block_with_an_excluded_attention_runs_as_written():
    network = nn.Sequential(v2_block())
    x = torch.randn(2, 24, 8, 8)
    with torch.no_grad():
        before = network(x)
        mk.accelerate(network, exclude=["*.transformer.1.attn"])
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
    assert reason(network, "0") == "original forward: transformer.1.attn is not replaced"
    assert reason(network, "0.transformer.0.attn") is None


class Child(MobileViTv2Block):
    def forward(self, x):
        return super().forward(x) + 1


def test_unknown_subclasses_are_left_alone():
    network = nn.Sequential(lively(Child(24, 16, 1)), v2_block())
    mk.accelerate(network)
    assert type(network[0]) is Child
    assert reason(network, "0") == "subclass of mvit_kernels.MobileViTv2Block, left alone"
    assert reason(network, "1") is None


def test_options_of_the_last_call_hold():
    network = model()
    mk.accelerate(network, attention=False)
    rows = {row.module: row for row in mk.report(network).rows}
    assert rows["stages.2.1"].replacement == "unfold_patches, fold_patches"
    assert rows["stages.2.1.transformer.0.attn"].reason == "attention=False"
    mk.accelerate(network, patches=False)
    rows = {row.module: row for row in mk.report(network).rows}
    assert rows["stages.2.1"].reason == "patches=False"
    assert rows["stages.2.1.transformer.0.attn"].replacement == "separable_attention"
    assert rows["stages.2.1.conv_kxk"].replacement == "depthwise_conv2d"  # a part of the block before
    mk.accelerate(network, patches=False, attention=False, conv=False)
    assert replaced(network) == []
    mk.accelerate(network, conv=False)
    rows = {row.module: row for row in mk.report(network).rows}
    assert rows["stages.1.0"].reason == rows["stem"].reason == "conv=False"
    assert rows["stages.2.1"].replacement == "separable_attention_block, feed_forward"
    mk.accelerate(network, norm=False)
    rows = {row.module: row for row in mk.report(network).rows}
    assert rows["stages.2.1"].replacement == "separable_attention"
    assert rows["stages.1.0"].replacement == "inverted_residual"


@pytest.mark.parametrize("inner", ["1.transformer.0.mlp.fc1", "1.transformer.1.attn", "1.transformer", "1.norm"])
def test_hooks_inside_a_block(inner):
    network = nn.Sequential(nn.Identity(), v2_block())
    checks.check_inner_hook(network, torch.randn(2, 24, 8, 8), inner, "1")


def test_hooks_on_a_block_work_as_on_any_module():
    block = mk.accelerate(v2_block())
    calls = []
    block.register_forward_pre_hook(lambda _m, args: calls.append("pre") or (args[0] + 1,))
    block.register_forward_hook(lambda _m, args, y: calls.append("forward") or y * 2)
    block.register_full_backward_hook(lambda *_: calls.append("backward"))
    x = torch.randn(2, 24, 8, 8)
    y = block(x.requires_grad_())
    y.sum().backward()
    assert calls == ["pre", "forward", "backward"]
    assert mk.report(block).rows[0].reason is None
    torch.testing.assert_close(y, 2 * mk.restore(copy.deepcopy(block)).forward(x + 1), rtol=1e-4, atol=1e-4)


def obstruct_with_backward_hook(block):
    block.transformer[0].norm2.register_full_backward_hook(lambda *_: None)


def obstruct_with_parametrization(block):
    nn.utils.parametrizations.weight_norm(block.transformer[0].mlp.fc1)


def obstruct_with_another_module(block):
    block.transformer[0].mlp.fc1 = nn.Sequential(block.transformer[0].mlp.fc1)


def obstruct_with_another_layer(block):
    block.transformer.append(nn.Identity())


def obstruct_with_forward(block):
    block.transformer[0].norm1.forward = block.transformer[0].norm1.forward


def obstruct_with_kernel(block):
    block.transformer[0].mlp.fc2 = nn.Conv2d(32, 16, 3, padding=1)


def obstruct_with_padding(block):
    block.transformer[0].mlp.fc1 = nn.Conv2d(16, 32, 1, padding=1)
    block.transformer[0].mlp.fc2 = nn.Conv2d(32, 16, 3)


def obstruct_with_stride(block):
    block.transformer[0].mlp.fc1 = nn.Conv2d(16, 32, 1, stride=2)
    block.transformer[0].mlp.fc2 = nn.Sequential(nn.Conv2d(32, 16, 1), nn.Upsample(scale_factor=2))


@pytest.mark.parametrize(
    ("obstruct", "expected"),
    [
        (obstruct_with_backward_hook, "transformer.0.norm2 has hooks"),
        (obstruct_with_parametrization, "transformer.0.mlp.fc1 is a ParametrizedConv2d"),
        (obstruct_with_another_module, "transformer.0.mlp.fc1 is a Sequential"),
        (obstruct_with_another_layer, "transformer.2 is a Identity"),
        (obstruct_with_forward, "transformer.0.norm1 has a forward of its own"),
        (obstruct_with_kernel, "transformer.0.mlp.fc2 is no plain 1x1 convolution"),
        (obstruct_with_padding, "transformer.0.mlp.fc1 is no plain 1x1 convolution"),
        (obstruct_with_stride, "transformer.0.mlp.fc1 is no plain 1x1 convolution"),
        (checks.put("transformer", nn.Identity), "transformer is a Identity"),
        (checks.put("transformer", lambda: SeparableTransformerLayer(16)), "transformer is a SeparableTransformerLayer"),
        (checks.put("transformer.0.attn", nn.Identity), "transformer.0.attn is a Identity"),
        (checks.put("transformer.0.mlp", lambda: SeparableAttention(16)), "transformer.0.mlp is a SeparableAttention"),
        (checks.put("norm", lambda: SeparableTransformerLayer(16)), "norm is a SeparableTransformerLayer"),
        (checks.own("", "global_representation"), "it has a global_representation of its own"),
        (checks.own("transformer.0.mlp.fc1", "_conv_forward"), "transformer.0.mlp.fc1 has a _conv_forward of its own"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_obstacles(obstruct, expected, late):
    checks.check_obstacle(v2_block(), torch.randn(2, 24, 8, 8), obstruct, expected, late)


@pytest.mark.parametrize("late", [False, True])
def test_a_v1_block_with_a_method_of_its_own(late):
    block = lively(MobileViTBlock(24, 16, 1))
    checks.check_obstacle(block, torch.randn(2, 24, 8, 8), checks.own("", "global_representation"), "global_representation", late)


def test_hooks_on_all_modules():
    block = mk.accelerate(v2_block())
    names = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__))
    try:
        block(torch.randn(1, 24, 8, 8))
        assert "SeparableTransformerLayer" in names
        assert "hooks on all modules" in mk.report(block).rows[0].reason
    finally:
        handle.remove()
    assert mk.report(block).rows[0].reason is None


def test_attention_outside_of_a_block():
    attention = lively(SeparableAttention(12))
    for options in ({}, {"patches": False}):
        checks.check_outputs(nn.Sequential(attention), torch.randn(2, 12, 4, 9), **options)


@pytest.mark.slow
def test_pickles_are_read_by_a_process_that_imported_nothing(tmp_path):
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps(mk.accelerate(model())))
    code = f"import pickle; m = pickle.load(open({str(path)!r}, 'rb')); print(type(m.stages[2][1]).__module__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "mvit_kernels.swap.models\n"


@pytest.mark.slow
def test_accelerate_imports_no_other_library():
    code = (
        "import sys, mvit_kernels as mk; m = mk.accelerate(mk.create_model('mobilevitv2_050')); mk.report(m)\n"
        "print(sorted({'timm', 'transformers', 'cvnets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_report():
    network = model()
    assert {row.reason for row in mk.report(network).rows} == {"not accelerated"}
    report = mk.report(mk.accelerate(network))
    assert [row.module for row in report.rows if row.kind == "mvit_kernels.MobileViTv2Block"] == BLOCKS
    usable = "cpu" if mk.backends()["cpu"].usable else "reference"
    assert {row.backend for row in report.rows} == {usable}
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.rows)
    assert lines[0].split() == ["module", "class", "replacement", "backend", "reason"]
    starts = {line.index(f" {row.replacement} ") for line, row in zip(lines[1:-1], report.rows, strict=True)}
    assert len(starts) == 1
    assert lines[-1] == "20 of 20 MobileViT modules run on mvit_kernels"
    as_dict = report.to_dict()
    assert as_dict["summary"] == lines[-1]
    assert next(row for row in as_dict["rows"] if row["module"] == "stages.2.1") == {
        "module": "stages.2.1",
        "class": "mvit_kernels.MobileViTv2Block",
        "replacement": "inverted_residual, separable_attention_block, feed_forward, gemm",
        "backend": usable,
        "reason": None,
    }

    assert {row.backend for row in mk.report(network.double()).rows} == {"reference"}
    with mk.use_backend("reference"):
        assert {row.backend for row in mk.report(network.float()).rows} == {"reference"}


@pytest.mark.skipif(not mk.backends()["cpu"].usable, reason="the native kernels are not built")
def test_report_says_where_the_backend_cannot_run():
    report = mk.report(mk.accelerate(v2_block().double(), backend="cpu"))
    assert report.rows[0].backend is None
    assert "no kernel for torch.float64" in report.rows[0].reason


def test_an_attribute_of_the_user_stays():
    network = model()
    block = network.get_submodule(BLOCKS[0])
    block._setting = "mine"
    mk.restore(mk.accelerate(network))
    assert block._setting == "mine"


def test_nothing_to_replace():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    assert mk.accelerate(network) is network
    assert [type(m) for m in network] == [nn.Conv2d, nn.Linear]
    report = mk.report(network)
    assert report.rows == ()
    assert str(report).startswith("no MobileViT block found, nothing to replace")
    assert report.to_dict() == {"summary": str(report), "rows": []}


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network, x = model().train(), image(batch=3)
        expected = checks.gradients(mk.accelerate(copy.deepcopy(network)), x)
        wrapped = nn.parallel.DistributedDataParallel(mk.accelerate(network))
        for actual, single in zip(checks.gradients(wrapped, x), expected, strict=True):
            torch.testing.assert_close(actual, single)
        assert len(replaced(wrapped)) == 20
        assert replaced(mk.restore(wrapped)) == []
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("name", "ops"), OPS)
@pytest.mark.slow
def test_export(name, ops):
    checks.check_export(model(name, depths=(1, 1, 1)), image(batch=1), {"avg_pool", *ops})


def test_compile():
    network = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), lively(MobileViTv2Block(24, 16, 1)), lively(MobileViTBlock(24, 16, 1)))
    checks.check_compile(network, image(8, 6), checks.V1_OPS | checks.V2_OPS)


@pytest.mark.slow
def test_compile_a_whole_model_to_code():
    torch.manual_seed(2)  # no input of a ReLU nearer to 0 than 1e-4: rounding decides on a gradient where one is 6e-7, as with seed 0
    checks.check_compile(model(), image(), {"conv2d", "avg_pool", *checks.V2_OPS}, backend="inductor")


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    """The fused ops round less often than what they replace: nearer to float32 than PyTorch's autocast."""
    network, x = model(name), image(96, 96)
    with torch.no_grad():
        exact = outputs(network, x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            before = outputs(network, x)[0]
            after = outputs(mk.accelerate(network), x)[0]
    assert after.dtype == before.dtype
    assert (after - exact).norm() <= (before - exact).norm()


# --- what is kept from call to call ---


def fresh(network: nn.Module, x: torch.Tensor) -> None:
    """The accelerated network computes what a copy of it that is restored does."""
    with torch.no_grad():
        expected = outputs(mk.restore(copy.deepcopy(network)), x)[0]
        torch.testing.assert_close(outputs(network, x)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.max() - expected.min()))


@torch.no_grad()
def scale_a_weight(network):
    network.stages[1][0].conv2_kxk.conv.weight[3] *= 3


@torch.no_grad()
def run_in_training(network):
    network.train()
    network(image() * 3 + 1)  # BatchNorm's statistics move, by a kernel that torch does not count
    network.eval()


def set_heads(network):
    for module in network.modules():
        if hasattr(module, "num_heads"):
            module.num_heads = 2


def add_an_activation(network):
    network.stages[2][1].conv_proj.act = nn.ReLU()


def set_eps(network):
    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            module.eps = 0.1


def dilate(network):
    conv = network.stages[1][0].conv2_kxk.conv
    conv.dilation, conv.padding = (2, 2), (2, 2)


def replace_parameters(network):
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 1.1))


def replace_a_convolution(network):
    block = network.stages[1][0]
    channels = block.conv2_kxk.conv.in_channels
    block.conv2_kxk = lively(ConvNormAct(channels, channels, 3, stride=2, groups=channels))
    block.conv2_kxk.act = nn.ReLU()


CHANGES = [
    scale_a_weight,
    run_in_training,
    set_heads,
    add_an_activation,
    set_eps,
    dilate,
    replace_parameters,
    lambda network: network.load_state_dict({name: value * 1.1 for name, value in network.state_dict().items()}),
    lambda network: network.load_state_dict({name: value * 1.1 for name, value in network.state_dict().items()}, assign=True),
    lambda network: network.half().float(),
    lambda network: network.stages[3][1].norm.register_forward_hook(lambda _m, _a, y: y * 2),
    replace_a_convolution,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_changes_between_calls_are_seen(name, change):
    network, x = mk.accelerate(model(name, depths=(1, 1, 1))), image()
    fresh(network, x)
    change(network)
    fresh(network, x)
    with torch.inference_mode():
        fresh(network, x)


@torch.inference_mode()
def test_a_network_made_in_inference_mode():
    network, x = mk.accelerate(model()), image()
    before = outputs(network, x)[0]
    network.stages[2][1].transformer[0].mlp.fc1.weight.view(-1)[2050] += 5
    after = outputs(network, x)[0]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, outputs(mk.restore(network), x)[0], rtol=1e-4, atol=1e-5)


def test_accelerated_networks_are_freed():
    network = mk.accelerate(model())
    with torch.no_grad():
        network(image())
    kept = [weakref.ref(module) for module in network.modules()] + [weakref.ref(p) for p in network.parameters()]
    del network
    gc.collect()
    assert [each() for each in kept if each() is not None] == []


def test_gradients_of_an_evaluation_whose_backward_comes_later():
    """In another mode, with frozen parameters, with hooks on parameters, outside autocast and use_backend."""
    torch.manual_seed(2)  # with seed 0, one thread rounds an input of a ReLU to the other side of 0 than two do
    network, x = model(), image()
    ours = mk.accelerate(copy.deepcopy(network))
    found = []
    for each in (network, ours):
        for p in each.parameters():
            p.register_hook(lambda grad: grad * 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            low = each(x).float().sum()
        low.backward()
        each.zero_grad()
        with mk.use_backend("reference"):
            y = each(x)
        each.train()
        y.square().sum().backward()
        found.append([p.grad for p in each.parameters()] + list(each.buffers()))
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_functional_call():
    network, x = model(), image()
    ours = mk.accelerate(copy.deepcopy(network))
    parameters = {name: (p * 1.1).detach().requires_grad_() for name, p in network.named_parameters()}
    gradients = []
    for each in (network, ours):
        y = torch.func.functional_call(each, parameters, (x,))
        gradients.append(torch.autograd.grad(y.square().sum(), list(parameters.values())))
        with torch.no_grad():
            again = torch.func.functional_call(each, parameters, (x,))
        torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-4)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.slow
@torch.no_grad()
def test_code_of_inductor_that_uses_memory_of_weights_again():
    """Folded weights of one size in a graph: those of a block whose layers are alike."""
    block = lively(mk.create_model("mobilevit_xxs").stages[3][1])
    x = torch.randn(2, 64, 4, 4)
    expected = block(x)
    torch.compiler.reset()
    compiled = torch.compile(mk.accelerate(block), fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
