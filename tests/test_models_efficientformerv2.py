"""EfficientFormerV2 against the paper's sizes and timm."""

from __future__ import annotations

import pytest
import torch
from marks import slow
from model_checks import (
    assert_captured,
    assert_every_parameter_learns,
    assert_exports,
    assert_results_of_timm,
    assert_same,
    assert_state_dict_of_timm,
    images,
    million_macs,
    parameters,
    randomise,
)
from torch import nn

from mvit_kernels.models import EfficientFormerV2, EfficientFormerV2Config, create_model, list_models, load_checkpoint, save_checkpoint

SIZES = {  # parameters, million multiply-adds
    "efficientformerv2_s0": (3_600_256, 395.89),
    "efficientformerv2_s1": (6_185_560, 651.97),
    "efficientformerv2_s2": (12_710_112, 1246.86),
    "efficientformerv2_l": (26_322_288, 2552.55),
}
# A network of every part, small enough for tests of what doesn't depend on the size.
TINY = {
    "channels": (8, 16, 24, 32),
    "mlp_ratios": ((2,), (2,), (2, 3), (3, 2)),
    "attention_blocks": 1,
    "image_size": 64,
    "num_classes": 5,
}


def tiny(**options) -> nn.Module:
    return randomise(create_model("efficientformerv2_s0", **{**TINY, **options}))


def tiny_of_timm() -> nn.Module:
    timm = pytest.importorskip("timm.models.efficientformer_v2")
    sizes = {"embed_dims": TINY["channels"], "mlp_ratios": TINY["mlp_ratios"], "img_size": 64}
    return randomise(timm.EfficientFormerV2((1, 1, 2, 2), num_classes=5, num_vit=1, **sizes))


def test_list_models_names_all_four():
    assert [name for name in list_models() if name.startswith("efficientformerv2_")] == list(SIZES)


def test_parameters():
    assert {name: parameters(name) for name in SIZES} == {name: sizes[0] for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", [next(iter(SIZES)), *map(slow, [*SIZES][1:])])
def test_multiply_adds(name):
    assert million_macs(name) == pytest.approx(SIZES[name][1], abs=0.01)


@pytest.mark.parametrize("name", [next(iter(SIZES)), *map(slow, [*SIZES][1:])])
def test_state_dict_has_the_keys_and_shapes_of_timm(name):
    assert_state_dict_of_timm(name)


@pytest.mark.parametrize("name", ["efficientformerv2_s0", *(slow(f"efficientformerv2_{size}") for size in ("s1", "s2", "l"))])
def test_logits_and_features_equal_timm(name, one_thread):
    ours, theirs = assert_results_of_timm(name, [(209, 216), (224, 224)], [(209, 216), (224, 224)])
    rates = [block.drop_path.rate for stage in ours.stages for block in stage.blocks]
    assert rates == pytest.approx([getattr(block.drop_path2, "drop_prob", 0) for stage in theirs.stages for block in stage.blocks])


@torch.no_grad()
def test_training_equals_timm(one_thread):
    theirs, ours = tiny_of_timm().train(), tiny().train()
    ours.load_state_dict(theirs.state_dict())
    x = images((64, 64), 4)
    assert_same(ours(x), theirs(x))
    theirs.set_distilled_training()
    ours.distilled_training = True
    for ours_of, theirs_of in zip(ours(x), theirs(x), strict=True):
        assert_same(ours_of, theirs_of)
    assert_same(ours.stages[3].downsample.attn.q.proj.bn.running_var, theirs.stages[3].downsample.attn.q.proj.bn.running_var)
    assert ours.eval()(x).shape == (4, 5)


@torch.no_grad()
def test_without_classes_gives_what_the_heads_see():
    model = tiny()
    pooled = create_model("efficientformerv2_s0", **{**TINY, "num_classes": 0}).eval()
    unexpected = ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert pooled.load_state_dict(model.state_dict(), strict=False).unexpected_keys == unexpected
    x = images((64, 64), 2)
    assert pooled(x).shape == (2, 32)
    torch.testing.assert_close((model.head(pooled(x)) + model.head_dist(pooled(x))) / 2, model(x))


@torch.no_grad()
def test_pyramid():
    model = tiny(features_only=True)
    assert [tuple(m.shape[1:]) for m in model(images((64, 64), 1))] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]


def test_every_parameter_learns():
    # Softmax takes away what is the same for all keys.
    silent = r"(conv|local|talking_head1|k\.bn)\.bias$"
    assert_every_parameter_learns(create_model("efficientformerv2_s0", **TINY), images((64, 64), 4), silent=silent)


def test_dropout_acts_in_training_alone():
    x = images((64, 64), 4)
    for option in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
        model = tiny(**{option: 0.5})
        with torch.no_grad():
            assert torch.equal(model(x), model(x)), option
            for module in model.modules():
                if not isinstance(module, nn.BatchNorm2d):
                    module.training = True
            assert not torch.equal(model(x), model(x)), option


def test_fresh_weights_keep_the_signal_alive():
    logits = create_model("efficientformerv2_s0", **TINY).train()(images((64, 64), 4))
    assert 1e-3 < logits.std() < 1e3


@pytest.mark.slow
def test_model_exports():
    assert_exports(tiny(), images((64, 64), 2))


@pytest.mark.slow
def test_model_is_captured():
    assert_captured(tiny(), images((64, 64), 2))


def test_double_precision():
    model, x = tiny(), images((64, 64), 1)
    torch.testing.assert_close(model(x).double(), model.double()(x.double()), rtol=1e-4, atol=1e-4)


def test_checkpoints_round_trip_and_those_of_timm_load(tmp_path):
    theirs = tiny_of_timm()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = create_model("efficientformerv2_s0", checkpoint=tmp_path / "theirs.pth", **TINY)
    save_checkpoint(ours, tmp_path / "ours.pth")
    again = create_model("efficientformerv2_s0", checkpoint=tmp_path / "ours.pth", **TINY)
    pyramid = create_model("efficientformerv2_s0", checkpoint=tmp_path / "ours.pth", features_only=True, **TINY)
    for model in (ours, again, pyramid):
        assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in model.state_dict().items())
    load_checkpoint(theirs, tmp_path / "ours.pth")


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    save_checkpoint(tiny(num_classes=10), path)
    with pytest.raises(ValueError, match="has 10 classes, the model 5; make it with num_classes=10, or load with strict=False"):
        load_checkpoint(tiny(), path)
    # The table of positions is that of one size.
    with pytest.raises(ValueError, match=r"misshaped .*attention_biases: expected \(8, 9\) float32, got \(8, 4\)"):
        load_checkpoint(tiny(num_classes=10, image_size=96), path)
    with pytest.raises(ValueError, match=r"expected format in \('timm',\) for this model, got 'release'"):
        save_checkpoint(tiny(), path, "release")


def test_other_image_sizes_are_refused():
    model = create_model("efficientformerv2_s0")
    for shape in [(3, 224, 224), (1, 4, 224, 224), (1, 3, 208, 224), (1, 3, 224, 225)]:
        with pytest.raises(ValueError, match=r"EfficientFormerV2: expected images \(B, 3, H, W\) with H and W from 209 to 224"):
            model(torch.rand(shape))
    assert tiny(image_size=256)(images((256, 250), 1)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 16, 24)}, "expected channels to be 4 positive integers"),
        ({"mlp_ratios": ((2,), (2,), (2, 3), ())}, "expected mlp_ratios to be 4 tuples of positive integers"),
        ({"attention_blocks": 3}, "expected attention_blocks to be 0 to 2, the blocks of stage 3 or 4, got 3"),
        ({"image_size": 240}, "expected image_size whose 16th part, rounded up, is even, such as 192, 224 or 256; got 240"),
        ({"num_classes": -1}, "EfficientFormerV2: expected num_classes >= 0, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_config_makes_the_same_model():
    config = EfficientFormerV2Config(channels=(8, 16, 24, 32), mlp_ratios=((2,), (2,), (2, 3), (3, 2)), attention_blocks=1, image_size=64)
    assert tiny().config == config
    assert EfficientFormerV2(config).state_dict().keys() == tiny().state_dict().keys()
