"""`accelerate` on modules built as ml-cvnets builds them (tests/cvnets)."""

from __future__ import annotations

import copy

import pytest
import swap_checks as checks
import torch
from cvnets.layers import LinearSelfAttention, MultiHeadAttention
from cvnets.modules.mobilevit_block import MobileViTBlock, MobileViTBlockv2
from cvnets.modules.transformer import LinearAttnFFN
from swap_checks import OPTIONS, SETTINGS, lively, outputs, reason, replaced
from torch import nn

import mvit_kernels as mk


def v1_model(**options: object) -> nn.Module:
    return lively(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), MobileViTBlock(12, 16, 32, **options)))


def v2_model(**options: object) -> nn.Module:
    return lively(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), MobileViTBlockv2(12, 16, **options)))


MODELS = [v1_model, v2_model]


def image(height: int = 8, width: int = 6, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(16, 16), (9, 6), (7, 11)])
@pytest.mark.parametrize("make", MODELS)
def test_outputs(make, size, options):
    checks.check_outputs(make(), image(*size), **options)


@pytest.mark.parametrize("make", MODELS)
def test_other_patches(make):
    checks.check_outputs(make(patch_h=2, patch_w=4), image(9, 10))


def test_no_fusion():
    checks.check_outputs(v1_model(no_fusion=True), image(9, 10))


@pytest.mark.parametrize("make", MODELS)
def test_channels_last_and_bfloat16(make):
    for dtype in (torch.float32, torch.bfloat16):
        network = make().to(dtype, memory_format=torch.channels_last)
        checks.check_outputs(network, image(9, 8).to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", MODELS)
def test_gradients(make, training):
    rounding = 1e-6 if make is v1_model else 1e-9  # the original's softmax is float32 in a float64 model, too
    checks.check_gradients(make().train(training), image(9, 8, batch=3), rounding)


@pytest.mark.parametrize("rates", [{"dropout": 0.2}, {"attn_dropout": 0.2}])
def test_active_dropout_of_v2_draws_what_the_original_draws(rates):
    network = v2_model(**rates).train()
    checks.check_gradients(network, image(batch=3))
    assert reason(mk.accelerate(network), "1").endswith("is active")


@pytest.mark.parametrize("make", MODELS)
def test_contract(make):
    checks.check_contract(make(), image())


@pytest.mark.parametrize("inner", ["global_rep.0.pre_norm_ffn.1.block.act", "global_rep.1.pre_norm_attn.1", "global_rep"])
def test_hooks_inside_a_v2_block(inner):
    checks.check_inner_hook(v2_model(), image(), f"1.{inner}", "1")


def test_a_hook_on_the_softmax_of_v1():
    attention = "1.global_rep.1.pre_norm_mha.1"
    checks.check_inner_hook(v1_model(), image(), f"{attention}.softmax", attention)


@pytest.mark.parametrize("make", MODELS)
def test_video_runs_the_original_forward(make):
    block = make()[1]
    x, length = torch.randn(2, 12, 4, 6), 9
    x_prev = torch.randn(2, 16, 4, length) if make is v2_model else torch.randn(8, length, 16)
    with torch.no_grad():
        before = block((x, x_prev))
        after = mk.accelerate(block)((x, x_prev))
    assert len(replaced(block)) == 3
    for y, expected in zip(after, before, strict=True):
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("argument", ["x_kv", "attn_mask", "key_padding_mask"])
def test_masked_and_cross_attention_run_the_original_forward(argument):
    attention = lively(MultiHeadAttention(16, 4))
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0]).expand(2, 5)
    value = {"x_kv": torch.randn(2, 7, 16), "attn_mask": torch.randn(2, 5, 5), "key_padding_mask": mask}[argument]
    with torch.no_grad():
        before = attention(x, **{argument: value})
        mk.accelerate(attention)
        torch.testing.assert_close(attention(x, **{argument: value}), before, rtol=0, atol=0)
        assert not torch.allclose(attention(x), before)


def test_attention_outside_of_a_block():
    checks.check_outputs(nn.Sequential(lively(LinearSelfAttention(16))), torch.randn(2, 16, 4, 9))
    checks.check_outputs(nn.Sequential(lively(MultiHeadAttention(16, 4))), torch.randn(3, 9, 16))


@torch.no_grad()
def test_a_scale_of_ones_own():
    for module, x in ((lively(MultiHeadAttention(16, 4)), torch.randn(3, 9, 16)), (v1_model(), image())):
        outputs(mk.accelerate(module), x)
        for each in module.modules():
            if isinstance(each, MultiHeadAttention):
                each.scaling *= 3
        ours, expected = outputs(module, x)[0], outputs(mk.restore(module), x)[0]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_modules_for_coreml_run_as_written():
    network, x = v2_model(coreml_compatible=True), image()
    before = outputs(network, x)[0]
    mk.accelerate(network)
    assert reason(network, "1") == "original forward: it was made for CoreML"
    torch.testing.assert_close(outputs(network, x)[0], before)


def test_nested_layers_run_as_written():
    network, x = v2_model(), image()
    block = network[1]
    block.global_rep = nn.Sequential(nn.Sequential(*block.global_rep[:-1]), block.global_rep[-1]).eval()
    before = copy.deepcopy(network)(x)
    mk.accelerate(network)
    assert isinstance(block.global_rep[0][0], LinearAttnFFN)
    assert reason(network, "1") == "original forward: global_rep.0 is a Sequential"
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ops_of_a_v2_block(options):
    checks.check_v2_ops(v2_model()[1], torch.randn(1, 12, 8, 8), **options)


def test_ops_of_a_v1_block():
    checks.check_v1_ops(v1_model()[1], torch.randn(1, 12, 8, 12), layers=2)


def test_as_many_tokens_as_channels():
    """cvnets' LayerNorm takes them for channels first, so the block is not run on the map."""
    calls = checks.recorded(v1_model()[1], torch.randn(1, 12, 8, 8), {})
    assert [name for name, *_ in calls.ours] == ["unfold_patches", "fold_patches"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("obstruct", "expected"),
    [
        (checks.put("global_rep", nn.Identity), "global_rep is a Identity"),
        (checks.put("global_rep", lambda: LinearAttnFFN(16, 32)), "global_rep is a LinearAttnFFN"),
        (lambda block: block.global_rep.insert(1, lively(LinearSelfAttention(16))), "global_rep.1 is a LinearSelfAttention"),
        (checks.put("global_rep.0.pre_norm_attn", nn.Identity), "pre_norm_attn is a Identity"),
        (checks.put("global_rep.0.pre_norm_ffn.1", lambda: LinearSelfAttention(16)), "pre_norm_ffn.1 is a LinearSelfAttention"),
        (checks.put("global_rep.0.pre_norm_attn.1.attn_dropout", nn.SiLU), "attn_dropout is a SiLU"),
        (checks.own("", "forward_spatial"), "it has a forward_spatial of its own"),
        (checks.own("", "unfolding_pytorch"), "it has a unfolding_pytorch of its own"),
    ],
)
def test_obstacles(obstruct, expected, late):
    if "pre_norm_ffn" in expected:  # the ffn's second convolution takes 32 channels
        first = obstruct

        def obstruct(block):
            first(block)
            block.global_rep[0].pre_norm_ffn[3] = nn.Identity()

    checks.check_obstacle(v2_model()[1], torch.randn(2, 12, 8, 8), obstruct, expected, late)


@pytest.mark.parametrize("late", [False, True])
def test_obstacles_of_v1(late):
    checks.check_obstacle(v1_model()[1], torch.randn(2, 12, 8, 8), checks.own("", "unfolding"), "a unfolding of its own", late)
    for obstruct, expected in [
        (checks.put("softmax", lambda: nn.Softmax(dim=1)), "softmax is not over the last dimension"),
        (checks.put("attn_dropout", nn.SiLU), "attn_dropout is a SiLU"),
    ]:
        checks.check_obstacle(lively(MultiHeadAttention(16, 4)), torch.randn(3, 9, 16), obstruct, expected, late)


def test_compile():
    network = nn.Sequential(*v1_model(n_transformer_blocks=1), v2_model(n_attn_blocks=1)[1])
    checks.check_compile(network, image(), checks.V1_OPS | checks.V2_OPS)


@pytest.mark.parametrize("name", ["conv_proj", "global_rep.0.pre_norm_ffn.3", "global_rep.0.pre_norm_attn.1.qkv_proj"])
def test_modules_where_mobilevitv2_has_none(name):
    for place in ("act", "extra"):
        network = v2_model()
        network[1].get_submodule(name).block.add_module(place, nn.ReLU())
        checks.check_outputs(network, image())


def test_another_last_norm():
    for network in (v1_model(), v2_model()):
        network[1].global_rep[-1] = nn.Identity()
        checks.check_outputs(network, image())
