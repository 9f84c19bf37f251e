"""`accelerate` on timm's models."""

from __future__ import annotations

import copy

import pytest
import swap_checks as checks
import torch
from marks import slow
from swap_checks import BACKENDS, OPTIONS, SETTINGS, V1_SETTINGS, lively, outputs, reason, replaced
from torch import nn

import mvit_kernels as mk

timm = pytest.importorskip("timm")
from timm.layers import Attention, set_exportable  # noqa: E402
from timm.models._features_fx import create_feature_extractor  # noqa: E402
from timm.models.byobnet import ByobNet  # noqa: E402
from timm.models.mobilevit import LinearSelfAttention, LinearTransformerBlock, MobileVitBlock, MobileVitV2Block, model_cfgs  # noqa: E402

NAMES = ["mobilevit_xxs", "mobilevitv2_050"]


def model(name: str = "mobilevitv2_050", **options: object) -> nn.Module:
    if name in timm.list_models():
        return lively(timm.create_model(name, num_classes=10, **options))
    return lively(ByobNet(model_cfgs[name], num_classes=10, **options))  # a configuration without an entry in the registry


def v2_block(**options: object) -> nn.Module:
    return lively(MobileVitV2Block(24, transformer_dim=16, patch_size=2, **options))


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


@pytest.mark.parametrize(("name", "size"), [("semobilevit_s", (128, 128)), ("mobilevit_xxs", (193, 256)), ("mobilevitv2_050", (224, 224))])
def test_outputs_at_full_size(name, size):
    checks.check_outputs(model(name), image(*size, batch=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilevit_xs", "mobilevit_s", "mobilevitv2_075", "mobilevitv2_100", "mobilevitv2_150", "mobilevitv2_200"]
)
def test_outputs_of_the_other_variants(name):
    checks.check_outputs(model(name), image(224, 224, batch=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_feature_pyramids_channels_last_and_bfloat16(name, dtype):
    network = lively(timm.create_model(name, features_only=True)).to(dtype, memory_format=torch.channels_last)
    checks.check_outputs(network, image(96, 96).to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("options", [{"patch_size": 4}, {"no_fusion": True, "patch_size": (2, 4)}])
def test_other_v1_blocks(options):
    network = nn.Sequential(lively(MobileVitBlock(24, transformer_dim=16, **options)))
    checks.check_outputs(network, torch.randn(2, 24, 10, 9))


@pytest.mark.parametrize("patch_size", [4, (2, 4), 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_v2_patches(patch_size, backend):
    block = lively(MobileVitV2Block(24, transformer_dim=16, patch_size=patch_size)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 24, 10, 9).to(memory_format=torch.channels_last)
    checks.check_outputs(nn.Sequential(block), x, backend=backend)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, training):
    checks.check_gradients(model(name).train(training), image(96, 96, batch=3))


@pytest.mark.parametrize("rates", [{"drop": 0.2}, {"attn_drop": 0.2}, {"drop_path_rate": 0.2}])
def test_active_dropout_of_v2_draws_what_the_original_draws(rates):
    network = nn.Sequential(v2_block(**rates)).train()
    assert reason(mk.accelerate(copy.deepcopy(network)), "0").endswith("is active")
    checks.check_gradients(network, torch.randn(3, 24, 6, 8))
    assert reason(mk.accelerate(network.eval()), "0") is None


def test_active_dropout_of_v1_draws_what_the_original_draws():
    network = nn.Sequential(lively(MobileVitBlock(24, transformer_dim=16, patch_size=2, drop=0.2, drop_path_rate=0.1))).train()
    checks.check_gradients(network, torch.randn(3, 24, 6, 8))
    assert reason(mk.accelerate(network), "0") is None


@pytest.mark.parametrize("name", ["semobilevit_s", *NAMES])
def test_contract(name):
    network = model(name)
    network.stem.requires_grad_(False)
    checks.check_contract(network, image())


@pytest.mark.parametrize("inner", ["stages.3.1.transformer.1.mlp.act", "stages.3.1.transformer.2.attn.attn_drop", "stages.3.1.norm"])
def test_hooks_inside_a_v2_block(inner):
    checks.check_inner_hook(model(), image(), inner, "stages.3.1")


def test_hooks_inside_a_v1_block_see_the_same_tokens():
    plain, seen = model("mobilevit_xxs"), []
    ours = mk.accelerate(copy.deepcopy(plain))
    for each in (plain, ours):
        each.stages[3][1].transformer[2].attn.register_forward_hook(lambda _m, args, _y: seen.append(args[0]))
        with torch.no_grad():
            each(image(80, 96))
    assert seen[0].shape == seen[1].shape == (8, 9, 80)
    assert reason(ours, "stages.3.1") is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ops_of_a_v2_block(options):
    checks.check_v2_ops(v2_block(), torch.randn(1, 24, 8, 8), **options)


def test_ops_of_a_v1_block():
    checks.check_v1_ops(lively(MobileVitBlock(24, transformer_dim=16, patch_size=2)), torch.randn(1, 24, 8, 8), layers=2)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("obstruct", "expected"),
    [
        (checks.put("transformer", nn.Identity), "transformer is a Identity"),
        (checks.put("transformer", lambda: LinearTransformerBlock(16)), "transformer is a LinearTransformerBlock"),
        (checks.put("transformer.0.attn", nn.Identity), "transformer.0.attn is a Identity"),
        (checks.put("transformer.0.attn.out_drop", lambda: nn.GroupNorm(1, 16)), "attn.out_drop is a GroupNorm"),
        (checks.put("transformer.0.attn.attn_drop", nn.SiLU), "attn.attn_drop is a SiLU"),
        (checks.put("transformer.0.drop_path1", nn.SiLU), "drop_path1 is a SiLU"),
        (checks.put("transformer.0.drop_path2", lambda: nn.Conv2d(16, 16, 1)), "drop_path2 is a Conv2d"),
        (checks.put("transformer.0.mlp", lambda: LinearSelfAttention(16)), "mlp is a LinearSelfAttention"),
        (checks.put("norm", lambda: LinearTransformerBlock(16)), "norm is a LinearTransformerBlock"),
        (checks.own("transformer.0.attn", "_forward_self_attn"), "attn has a _forward_self_attn of its own"),
        (checks.own("", "forward"), "it has a forward of its own"),
    ],
)
def test_obstacles(obstruct, expected, late):
    checks.check_obstacle(v2_block(), torch.randn(2, 24, 8, 8), obstruct, expected, late)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.7, nn.Parameter(torch.tensor(0.7))], ids=["number", "parameter"])
@pytest.mark.parametrize("fused", [False, True])
def test_scales_of_v1_attention(scale, fused):
    """timm's attention takes its own where it does not leave that to torch's."""
    network, x = model("mobilevit_xxs"), image()
    ours = mk.accelerate(copy.deepcopy(network))
    for _ in range(3):
        outputs(ours, x)
    for module in (*network.modules(), *ours.modules()):
        if isinstance(module, Attention):
            module.fused_attn, module.scale = fused, scale
    expected = outputs(network, x)[0]
    for _ in range(3):
        torch.testing.assert_close(outputs(ours, x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("late", [False, True])
def test_obstacles_of_an_attention_and_of_a_v1_block(late):
    x = torch.randn(2, 16, 4, 9)
    for obstruct, expected in [
        (checks.put("attn_drop", nn.SiLU), "attn_drop is a SiLU"),
        (checks.own("", "_forward_self_attn"), "it has a _forward_self_attn of its own"),
    ]:
        checks.check_obstacle(lively(LinearSelfAttention(16)), x, obstruct, expected, late)
    block = lively(MobileVitBlock(24, transformer_dim=16, patch_size=2))
    checks.check_obstacle(block, torch.randn(2, 24, 8, 8), checks.own("", "forward"), "it has a forward of its own", late)


def test_cross_attention_runs_the_original_forward():
    attention = LinearSelfAttention(12).eval()
    x, x_prev = torch.randn(2, 12, 4, 5), torch.randn(2, 12, 4, 7)

    def run() -> torch.Tensor | str:
        try:
            return attention(x, x_prev)
        except RuntimeError as error:
            return str(error)

    before = run()
    mk.accelerate(attention)
    assert replaced(attention) == [""]
    after = run()
    assert after == before if isinstance(before, str) else torch.equal(after, before)


def test_a_model_made_for_export_runs_as_written():
    with set_exportable(True):
        network = model()
    mk.accelerate(network)
    assert "set exportable" in reason(network, "stages.3.1")
    assert reason(network, "stages.3.1.transformer.0.attn") is None


def test_gradient_checkpointing():
    network, x = model().train().double(), image(batch=3).double()
    mk.accelerate(network)
    expected = checks.gradients(copy.deepcopy(network), x, buffers=False)
    network.set_grad_checkpointing()
    for actual, plain in zip(checks.gradients(network, x, buffers=False), expected, strict=True):
        torch.testing.assert_close(actual, plain)


@pytest.mark.parametrize("name", [*NAMES, "efficientformer_l1", "efficientformerv2_s0"])
def test_symbolic_tracing(name):
    """torch.fx, by which timm and torchvision take features out of the middle of a network, gets the operations of the original."""
    network, x = model(name), image(224, 224, batch=1)
    nodes = [f"stages.{i}.1" for i in (2, 3)] if name in NAMES else ["stages.2", "stages.3"]
    expected = create_feature_extractor(network, nodes)(x)
    ours = create_feature_extractor(mk.accelerate(network), nodes)
    assert bool(replaced(ours)) == (name in NAMES)  # whose blocks timm lets nobody trace
    with torch.no_grad():
        for y, plain in zip(ours(x).values(), expected.values(), strict=True):
            torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_others_have_quantized(name, late):
    """Tensors of a class of torchao's, which our ops do not know, in the Linear layers: attention of V1, classifiers."""
    quantization = pytest.importorskip("torchao.quantization")
    network, x = model(name), image()
    if late:
        outputs(mk.accelerate(network), x)
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    if not late:
        mk.accelerate(network)
    assert "has a Int8Tensor for a parameter" in (reason(network, "head") or "")
    ours, before = outputs(network, x)[0], outputs(mk.restore(network), x)[0]
    torch.testing.assert_close(ours, before, rtol=1e-4, atol=1e-4)


def test_export():
    checks.check_export(model(), image(batch=1), {"conv2d", "avg_pool", *checks.V2_OPS})


def test_compile():
    v1_block = lively(MobileVitBlock(24, transformer_dim=16, transformer_depth=1, patch_size=2))
    network = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), v2_block(transformer_depth=1), v1_block)
    checks.check_compile(network, image(8, 6), checks.V1_OPS | checks.V2_OPS)
