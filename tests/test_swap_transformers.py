"""`accelerate` on transformers' models."""

from __future__ import annotations

import copy

import pytest
import swap_checks as checks
import torch
from marks import slow
from swap_checks import OPTIONS, SETTINGS, lively, reason, replaced
from torch import nn

import mvit_kernels as mk

transformers = pytest.importorskip("transformers")
from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer, MobileViTSelfAttention  # noqa: E402
from transformers.models.mobilevitv2.modeling_mobilevitv2 import (  # noqa: E402
    MobileViTV2Layer,
    MobileViTV2LinearSelfAttention,
    MobileViTV2TransformerLayer,
)


def v1_model(segmentation: bool = False, **options: object) -> nn.Module:
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 16, 16, 20, 40], num_labels=6, aspp_out_channels=16, **options
    )
    torch.manual_seed(0)
    kind = transformers.MobileViTForSemanticSegmentation if segmentation else transformers.MobileViTForImageClassification
    return lively(kind(config))


def v2_model(segmentation: bool = False, **options: object) -> nn.Module:
    config = transformers.MobileViTV2Config(width_multiplier=0.25, num_labels=6, aspp_out_channels=16, **options)
    torch.manual_seed(0)
    kind = transformers.MobileViTV2ForSemanticSegmentation if segmentation else transformers.MobileViTV2ForImageClassification
    return lively(kind(config))


V2 = transformers.MobileViTV2Config()


def v1_block() -> nn.Module:
    return lively(MobileViTLayer(transformers.MobileViTConfig(), 24, 24, stride=1, hidden_size=16, num_stages=1))


def v2_block() -> nn.Module:
    return lively(MobileViTV2Layer(V2, 24, 24, attn_unit_dim=16, n_attn_blocks=2, stride=1))


MODELS = [v1_model, v2_model]


def image(height: int = 64, width: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(128, 64), slow((97, 97))])
@pytest.mark.parametrize("make", MODELS)
def test_outputs(make, size, options):
    checks.check_outputs(make(), image(*size), **options)


@pytest.mark.parametrize("output_stride", [8, slow(16), slow(32)])
@pytest.mark.parametrize("make", MODELS)
def test_segmentation(make, output_stride):
    checks.check_outputs(make(segmentation=True, output_stride=output_stride), image(96, 64))


@pytest.mark.parametrize("make", MODELS)
def test_hidden_states(make):
    network, x = make(), image(96, 96)
    with torch.no_grad():
        before = network(x, output_hidden_states=True).hidden_states
        after = mk.accelerate(network)(x, output_hidden_states=True).hidden_states
    assert len(before) == len(after) == 5
    for y, expected in zip(after, before, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", MODELS)
def test_channels_last_and_bfloat16(make):
    for dtype in (torch.float32, torch.bfloat16):
        network = make().to(dtype, memory_format=torch.channels_last)
        checks.check_outputs(network, image(96, 96).to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", MODELS)
def test_gradients(make, training):
    checks.check_gradients(make().train(training), image(96, 96, batch=3))


@pytest.mark.parametrize(
    ("network", "block"),
    [
        (v1_model(attention_probs_dropout_prob=0.2), "mobilevit.encoder.layer.3.transformer.layer.0.attention.attention"),
        (v2_model(attn_dropout=0.2), "mobilevitv2.encoder.layer.3"),
        (v2_model(ffn_dropout=0.2), "mobilevitv2.encoder.layer.3"),
    ],
)
def test_active_dropout_draws_what_the_original_draws(network, block):
    network = copy.deepcopy(network).train()
    checks.check_gradients(network, image(96, 96, batch=3))
    mk.accelerate(network)
    assert "is active" in reason(network, block)
    assert reason(network.eval(), block) is None


@pytest.mark.parametrize("make", MODELS)
def test_contract(make):
    network = make()
    network.classifier.requires_grad_(False)
    checks.check_contract(network, image())


@pytest.mark.parametrize("inner", ["transformer.layer.1.ffn.conv1.activation", "transformer.layer.0.attention", "layernorm"])
def test_hooks_inside_a_v2_block(inner):
    block = "mobilevitv2.encoder.layer.3"
    checks.check_inner_hook(v2_model(), image(), f"{block}.{inner}", block)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ops_of_a_v2_block(options):
    checks.check_v2_ops(v2_block(), torch.randn(1, 24, 8, 8), **options)


def test_ops_of_a_v1_block():
    checks.check_v1_ops(v1_block(), torch.randn(1, 24, 8, 8))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("obstruct", "expected"),
    [
        (checks.put("transformer", nn.Identity), "transformer is a Identity"),
        (checks.put("transformer", lambda: MobileViTV2TransformerLayer(V2, 16, 32)), "transformer is a MobileViTV2TransformerLayer"),
        (checks.put("transformer.layer.0.attention", nn.Identity), "attention is a Identity"),
        (checks.put("transformer.layer.0.attention.attn_dropout", nn.SiLU), "attn_dropout is a SiLU"),
        (checks.put("transformer.layer.0.ffn", lambda: MobileViTV2LinearSelfAttention(V2, 16)), "ffn is a MobileViTV2LinearSelfAttention"),
        (checks.put("layernorm", lambda: MobileViTV2TransformerLayer(V2, 16, 32)), "layernorm is a MobileViTV2TransformerLayer"),
        (checks.own("", "unfolding"), "it has a unfolding of its own"),
    ],
)
def test_obstacles(obstruct, expected, late):
    checks.check_obstacle(v2_block(), torch.randn(2, 24, 8, 8), obstruct, expected, late)


@pytest.mark.parametrize("late", [False, True])
def test_obstacles_of_v1(late):
    checks.check_obstacle(v1_block(), torch.randn(2, 24, 8, 8), checks.own("", "forward"), "it has a forward of its own", late)
    attention = lively(MobileViTSelfAttention(transformers.MobileViTConfig(), 16))
    checks.check_obstacle(attention, torch.randn(3, 9, 16), checks.put("dropout", nn.SiLU), "dropout is a SiLU", late)


def test_hooks_inside_a_v1_attention():
    attention = "mobilevit.encoder.layer.3.transformer.layer.1.attention.attention"
    checks.check_inner_hook(v1_model(), image(), f"{attention}.dropout", attention)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its name in all versions
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(make, use_reentrant):
    network, x = make().double(), image(batch=3).double()
    mk.accelerate(network)
    expected = checks.gradients(copy.deepcopy(network), x)
    network.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    block, calls = network.base_model.encoder.layer[3], []
    block.training = True  # checkpoints in training only; what it holds stays in evaluation
    block.conv_kxk.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    for ours, plain in zip(checks.gradients(network, x), expected, strict=True):
        torch.testing.assert_close(ours, plain)
    assert len(calls) == 2


def test_saving_and_loading(tmp_path):
    network, x = mk.accelerate(v2_model()), image()
    network.save_pretrained(tmp_path)
    loaded = type(mk.restore(network)).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).logits, network(x).logits, rtol=0, atol=0)
    assert replaced(loaded) == []


def test_export():
    checks.check_export(v2_model(n_attn_blocks=[1, 1, 1]), image(batch=1), {"conv2d", *checks.V2_OPS})


@pytest.mark.slow
def test_export_of_v1():
    checks.check_export(v1_model(), image(batch=1), {"inverted_residual", *checks.V1_OPS})


@pytest.mark.slow
@pytest.mark.parametrize(("make", "ops"), [(v2_model, {"conv2d", *checks.V2_OPS}), (v1_model, {"inverted_residual", *checks.V1_OPS})])
def test_compile(make, ops):
    checks.check_compile(make(), image(), ops)


def test_activations_where_mobilevitv2_has_none():
    for name in ("ffn.conv2", "attention.qkv_proj", "attention.out_proj"):
        block = v2_block()
        block.transformer.layer[0].get_submodule(name).activation = nn.ReLU()
        checks.check_outputs(nn.Sequential(block), torch.randn(2, 24, 8, 8))
