"""The reference models of MobileViT v1 and v2 against the paper, timm and transformers."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from model_checks import assert_same, images, randomise, timm_model
from torch import nn

from mvit_kernels.models import (
    MobileViTBlock,
    MobileViTConfig,
    MobileViTv2,
    MobileViTv2Block,
    MobileViTv2Config,
    SeparableAttention,
    create_model,
    list_models,
    load_checkpoint,
)

PARAMETERS = {
    "mobilevit_xxs": 1_272_024,
    "mobilevit_xs": 2_317_848,
    "mobilevit_s": 5_578_632,
    "mobilevitv2_050": 1_370_593,
    "mobilevitv2_075": 2_866_009,
    "mobilevitv2_100": 4_901_841,
    "mobilevitv2_125": 7_478_089,
    "mobilevitv2_150": 10_594_753,
    "mobilevitv2_175": 14_251_833,
    "mobilevitv2_200": 18_449_329,
}
SIZES = [(256, 256), (224, 224), (192, 320), (200, 208)]  # no map is odd; the last; none; those of stages 3, 4 and 5
SMALL = ["mobilevit_xxs", "mobilevitv2_050"]


def every_model(fast: list[str]) -> list:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in PARAMETERS]


def transformers_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = create_model(name).config
    if isinstance(config, MobileViTConfig):
        theirs = transformers.MobileViTConfig(
            hidden_sizes=list(config.dims),
            neck_hidden_sizes=[config.stem_channels, *config.channels, config.final_channels],
            expand_ratio=float(config.expand_ratio),
            num_labels=1000,
        )
        return randomise(transformers.MobileViTForImageClassification(theirs))
    theirs = transformers.MobileViTV2Config(width_multiplier=config.width, num_labels=1000)
    return randomise(transformers.MobileViTV2ForImageClassification(theirs))


def test_list_models_names_all_ten():
    assert [name for name in list_models() if name.startswith("mobilevit")] == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_has_the_keys_and_shapes_of_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = create_model(name).state_dict(), timm.create_model(name).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


@pytest.mark.parametrize("name", every_model(fast=SMALL))
@torch.no_grad()
def test_logits_equal_timm(name):
    theirs = timm_model(name)
    ours = create_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    for size, batch in itertools.product(SIZES, (1, 3)):
        x = images(size, batch)
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("name", every_model(fast=SMALL))
@torch.no_grad()
def test_logits_equal_transformers(name, tmp_path):
    theirs = transformers_model(name)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    v1 = name.startswith("mobilevit_")
    ours = create_model(name, **({} if v1 else {"odd_maps": "drop"})).eval()
    load_checkpoint(ours, tmp_path / "theirs.pth")
    for size, batch in itertools.product(SIZES, (1, 3)):
        x = images(size, batch)
        assert_same(ours(x), theirs(x.flip(1) if v1 else x).logits)


@pytest.mark.parametrize("name", every_model(fast=SMALL))
@torch.no_grad()
def test_features_equal_timm(name):
    theirs = timm_model(name, features_only=True)
    full = timm_model(name)
    # timm's pyramid calls the stages stages_0, stages_1, ...
    theirs.load_state_dict({key.replace("stages.", "stages_"): t for key, t in full.state_dict().items() if "head." not in key})
    ours = create_model(name, features_only=True).eval()
    assert not ours.load_state_dict(full.state_dict(), strict=False).missing_keys
    assert list(ours.feature_info.channels) == theirs.feature_info.channels()
    assert list(ours.feature_info.reductions) == theirs.feature_info.reduction()
    for size in [(128, 128), (224, 160)]:
        x = images(size, 2)
        maps = ours(x)
        assert len(maps) == 5
        for ours_at, theirs_at in zip(maps, theirs(x), strict=True):
            assert_same(ours_at, theirs_at)
        if size == (128, 128):
            assert [tuple(m.shape[1:]) for m in maps] == [(c, 128 // r, 128 // r) for c, r in zip(*ours.feature_info, strict=True)]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_without_classes_gives_what_the_classifier_sees(name):
    model = randomise(create_model(name))
    pooled = create_model(name, num_classes=0).eval()
    assert pooled.load_state_dict(model.state_dict(), strict=False).unexpected_keys == ["head.fc.weight", "head.fc.bias"]
    x = images((64, 96), 2)
    assert pooled(x).shape == (2, model.feature_info.channels[-1])
    torch.testing.assert_close(model.head.fc(pooled(x)), model(x))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (97, 130), (224, 160)])
@torch.no_grad()
def test_any_resolution(name, size):
    model = randomise(create_model(name, num_classes=7))
    logits = model(images(size, 2))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@torch.no_grad()
def test_v2_resizes_odd_maps_for_good_and_v1_back():
    v1, v2 = MobileViTBlock(16, 8, 1).eval(), MobileViTv2Block(16, 8, 1).eval()
    dropping = MobileViTv2Block(16, 8, 1, odd_maps="drop").eval()
    dropping.load_state_dict(v2.state_dict())
    odd, even = torch.rand(1, 16, 7, 10), torch.rand(1, 16, 8, 10)
    assert v1(odd).shape == (1, 16, 7, 10)
    assert v2(odd).shape == (1, 16, 8, 10)
    assert dropping(odd).shape == (1, 16, 7, 10)
    assert torch.equal(dropping(even), v2(even))


def test_dropping_all_of_a_map_is_refused():
    with pytest.raises(ValueError, match="leaves nothing of a map of 1 x 2"):
        MobileViTv2Block(16, 8, 1, odd_maps="drop")(torch.rand(1, 16, 1, 2))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    model = create_model(name, num_classes=5).train()
    model(images((64, 64), 4)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_in_training_alone(name):
    options = {"drop_rate": 0.5} | ({"proj_drop_rate": 0.5} if name == "mobilevit_xxs" else {})
    model = randomise(create_model(name, num_classes=5, **options))
    x = images((64, 64), 2)
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(x), model(x))


def test_dropout_covers_both_branches_of_a_transformer_layer():
    layer = create_model("mobilevit_xxs", proj_drop_rate=1.0).stages[2][1].transformer[0].train()
    x = torch.rand(2, 5, 64)
    assert torch.equal(layer(x), x)


def test_dropout_rates_of_the_paper():
    rates = {"mobilevit_xxs": (0.05, 0.1), "mobilevit_xs": (0.1, 0.1), "mobilevit_s": (0.1, 0.1)}
    for name, (transformer, classifier) in rates.items():
        model = create_model(name)
        assert model.head.drop.p == classifier
        assert model.stages[2][1].transformer[0].drop.p == transformer
    assert create_model("mobilevitv2_100").head.drop.p == 0


@pytest.mark.parametrize("name", SMALL)
def test_fresh_weights_keep_the_signal_alive(name):
    model = create_model(name).train()
    logits = model(images((128, 128), 4))
    assert 1e-3 < logits.std() < 1e3


def test_blocks_are_made_of_the_classes_that_are_exported():
    v1, v2 = create_model("mobilevit_xxs"), create_model("mobilevitv2_050")
    assert [type(stage[-1]) for stage in v1.stages[2:]] == [MobileViTBlock] * 3
    assert [type(stage[-1]) for stage in v2.stages[2:]] == [MobileViTv2Block] * 3
    assert sum(type(module) is SeparableAttention for module in v2.modules()) == 2 + 4 + 3


@torch.no_grad()
def test_other_widths_and_depths():
    config = MobileViTv2Config(width=0.6, blocks=(1, 1), depths=(1, 2, 1))
    assert (config.stem_channels, config.channels, config.dims) == (24, (48, 80, 152, 232, 304), (80, 112, 152))
    model = randomise(MobileViTv2(config, num_classes=3))
    assert [len(stage[-1].transformer) for stage in model.stages[2:]] == [1, 2, 1]
    assert model(images((64, 64), 1)).shape == (1, 3)
    assert create_model("mobilevitv2_100", width=0.6, blocks=(1, 1), depths=(1, 2, 1)).config == config


@torch.no_grad()
def test_halving_blocks_have_no_skip_even_where_channels_agree():
    model = randomise(create_model("mobilevitv2_100", width=0.1, features_only=True))
    assert model.feature_info.channels == (16, 16, 24, 40, 48)
    assert [m.shape[-1] for m in model(images((64, 64), 1))] == [32, 16, 8, 4, 2]


@torch.no_grad()
def test_v1_options_reach_the_model():
    model = create_model("mobilevit_xs", patch_sizes=(8, 4, 2), in_chans=4, final_channels=None, features_only=True)
    assert model.config.patch_sizes == (8, 4, 2)
    assert model.feature_info.channels == (32, 48, 64, 80, 96)
    maps = model.eval()(torch.rand(1, 4, 96, 96))
    assert [m.shape[-1] for m in maps] == [48, 24, 12, 6, 3]


def test_models_export():
    for name in SMALL:
        model = randomise(create_model(name, num_classes=3, depths=(1, 1, 1)))
        x = images((96, 96), 2)
        exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), model(x))


def test_double_precision():
    model = randomise(create_model("mobilevitv2_050", num_classes=3))
    x = images((64, 64), 1)
    torch.testing.assert_close(model(x).double(), model.double()(x.double()), rtol=1e-4, atol=1e-4)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"mobilevitv2_100.*'mobilevit_v2_100'"):
        create_model("mobilevit_v2_100")
    with pytest.raises(ValueError, match=r"mobilevit_xxs.*mobilevitv2_200.*'resnet50'"):
        create_model("resnet50")


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"mobilevit_s has no option odd_maps; its options are .*patch_sizes"):
        create_model("mobilevit_s", odd_maps="drop")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilevit_s", {"dims": (144, 190, 240)}, "multiples of 4 heads"),
        ("mobilevit_s", {"depths": (2, 4)}, "expected depths to be 3 positive integers"),
        ("mobilevit_s", {"channels": (32, 64, 96, 128, 0)}, "expected channels to be 5 positive integers"),
        ("mobilevitv2_050", {"depths": 3}, "expected depths to be 3 positive integers, got 3"),
        ("mobilevitv2_050", {"odd_maps": "pad"}, r"expected odd_maps in \('resize', 'drop'\), got 'pad'"),
        ("mobilevitv2_050", {"width": 0}, "expected width > 0"),
        ("mobilevitv2_050", {"num_classes": -1}, "expected num_classes >= 0"),
        ("mobilevitv2_050", {"num_classes": "10"}, "MobileViTv2: expected num_classes >= 0, got '10'"),
        ("efficientformer_l1", {"num_classes": 2.5}, "EfficientFormer: expected num_classes >= 0, got 2.5"),
        ("mobile_former_26m", {"num_classes": None}, "MobileFormer: expected num_classes >= 0, got None"),
        ("mobilevit_s", {"num_heads": 0}, "expected num_heads to be a positive integer, got 0"),
        ("mobilevit_s", {"final_channels": 0}, "expected final_channels to be a positive integer, got 0"),
        ("mobilevit_s", {"expand_ratio": 0}, "expected expand_ratio > 0 and finite, got 0"),
        ("mobilevit_s", {"proj_drop_rate": "0.1"}, "expected proj_drop_rate to be from 0 to 1, got '0.1'"),
        ("mobilevitv2_050", {"in_chans": 0}, "expected in_chans to be a positive integer, got 0"),
        ("efficientformer_l1", {"drop_path_rate": 2}, "EfficientFormerConfig: expected drop_path_rate to be from 0 to 1, got 2"),
        ("efficientformerv2_s0", {"image_size": "224"}, "expected image_size to be a positive integer, got '224'"),
        ("efficientformerv2_s0", {"mlp_ratios": ((4,), (4,), (4,), (1.5,))}, "4 tuples of positive integers"),
        ("mobile_former_26m", {"groups": 0}, "expected groups to be a positive integer, got 0"),
        ("mobile_former_26m", {"classifier_dim": 0}, "expected classifier_dim to be a positive integer, got 0"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_numbers_of_numpy_are_numbers():
    model = create_model("mobilevitv2_050", num_classes=np.int64(3), in_chans=np.int32(1), drop_rate=np.float32(0.5))
    assert (model.head.fc.out_features, model.stem.conv.in_channels, model.head.drop.p) == (3, 1, 0.5)


def test_bad_names_are_refused():
    with pytest.raises(TypeError, match="create_model: name: expected the name of a model, got int"):
        create_model(5)
    with pytest.raises(ValueError, match="MobileViTv2Config: expected width > 0 and finite, got 'wide'"):
        create_model("mobilevitv2", width="wide")


def test_bad_images_are_refused():
    model = create_model("mobilevit_xxs")
    for shape in [(3, 64, 64), (1, 1, 64, 64)]:
        with pytest.raises(ValueError, match=r"MobileViT: expected images \(B, 3, H, W\)"):
            model(torch.rand(shape))


def test_configs_are_values():
    config = create_model("mobilevit_s").config
    assert hash(config) == hash(dataclasses.replace(config))
    listed = create_model("mobilevit_s", dims=[144, 192, 240], depths=[2, 4, 3]).config  # as JSON has them
    assert (listed, hash(listed)) == (config, hash(config))
    ratios = create_model("efficientformerv2_s0").config.mlp_ratios
    assert create_model("efficientformerv2_s0", mlp_ratios=[list(each) for each in ratios]).config.mlp_ratios == ratios
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_heads = 2
