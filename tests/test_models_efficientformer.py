"""EfficientFormer (V1) against the paper's sizes and timm."""

from __future__ import annotations

import pytest
import safetensors
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
    timm_model,
)
from torch import nn

from mvit_kernels.models import EfficientFormer, EfficientFormerConfig, create_model, list_models, load_checkpoint, save_checkpoint

SIZES = {  # parameters, million multiply-adds
    "efficientformer_l1": (12_289_928, 1291.28),
    "efficientformer_l3": (31_406_000, 3906.57),
    "efficientformer_l7": (82_229_328, 10119.33),
}
# A network of every part, small enough for tests of what doesn't depend on the size.
TINY = {"channels": (8, 16, 24, 32), "depths": (1, 1, 1, 3), "attention_blocks": 2, "image_size": 64, "num_classes": 5}


def tiny(**options) -> nn.Module:
    return randomise(create_model("efficientformer_l1", **{**TINY, **options}))


def test_list_models_names_all_three():
    assert [name for name in list_models() if name.startswith("efficientformer_")] == list(SIZES)


def test_parameters():
    assert {name: parameters(name) for name in SIZES} == {name: sizes[0] for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", [next(iter(SIZES)), *map(slow, [*SIZES][1:])])
def test_multiply_adds(name):
    assert million_macs(name) == pytest.approx(SIZES[name][1], abs=0.01)


@pytest.mark.parametrize("name", [next(iter(SIZES)), *map(slow, [*SIZES][1:])])
def test_state_dict_has_the_keys_and_shapes_of_timm(name):
    assert_state_dict_of_timm(name)


@pytest.mark.parametrize("name", ["efficientformer_l1", slow("efficientformer_l3"), slow("efficientformer_l7")])
def test_logits_and_features_equal_timm(name, one_thread):
    assert_results_of_timm(name, [(193, 210), (224, 224)], [(224, 224)])


@torch.no_grad()
def test_training_equals_timm(one_thread):
    timm = pytest.importorskip("timm.models.efficientformer")
    theirs = randomise(timm.EfficientFormer((1, 1, 1, 3), (8, 16, 24, 32), num_classes=5, num_vit=2)).train()
    ours = tiny(image_size=224).train()
    ours.load_state_dict(theirs.state_dict())
    x = images((224, 224), 2)
    assert_same(ours(x), theirs(x))
    theirs.set_distilled_training()
    ours.distilled_training = True
    for ours_of, theirs_of in zip(ours(x), theirs(x), strict=True):
        assert_same(ours_of, theirs_of)
    assert_same(ours.stages[3].downsample.norm.running_var, theirs.stages[3].downsample.norm.running_var)
    assert ours.eval()(x).shape == (2, 5)


@torch.no_grad()
def test_without_classes_gives_what_the_heads_see():
    model = tiny()
    pooled = create_model("efficientformer_l1", **{**TINY, "num_classes": 0}).eval()
    unexpected = ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert pooled.load_state_dict(model.state_dict(), strict=False).unexpected_keys == unexpected
    x = images((64, 64), 2)
    assert pooled(x).shape == (2, 32)
    torch.testing.assert_close((model.head(pooled(x)) + model.head_dist(pooled(x))) / 2, model(x))


@torch.no_grad()
def test_pyramid_of_a_network_without_attention():
    model = tiny(attention_blocks=0, features_only=True)
    assert [tuple(m.shape[1:]) for m in model(images((64, 64), 1))] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]


def test_every_parameter_learns():
    before_batch_norm = r"(conv\d?|fc\d)\.bias$"
    assert_every_parameter_learns(create_model("efficientformer_l1", **TINY), images((64, 64), 4), silent=before_batch_norm)


def test_dropout_acts_in_training_alone():
    x = images((64, 64), 4)
    for option in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
        model = tiny(**{option: 0.5})
        with torch.no_grad():
            nn.init.ones_(model.stages[3].blocks[-1].ls2.gamma)
            assert torch.equal(model(x), model(x)), option
            for module in model.modules():
                if not isinstance(module, nn.BatchNorm2d):
                    module.training = True
            assert not torch.equal(model(x), model(x)), option


def test_dropped_paths_leave_the_input():
    block = tiny(drop_path_rate=1.0).stages[3].blocks[-1].train()
    x = torch.rand(2, 4, 32)
    assert torch.equal(block(x), x)


def test_fresh_weights_keep_the_signal_alive():
    logits = create_model("efficientformer_l1", **TINY).train()(images((64, 64), 4))
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_round_trip(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    model = tiny()
    save_checkpoint(model, path)
    loaded = create_model("efficientformer_l1", checkpoint=path, **TINY)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in model.state_dict().items())
    pyramid = create_model("efficientformer_l1", checkpoint=path, features_only=True, **TINY)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in pyramid.state_dict().items())


@pytest.mark.slow
def test_checkpoints_of_timm_load_by_path(tmp_path):
    theirs = timm_model("efficientformer_l1")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    ours = create_model("efficientformer_l1", checkpoint=tmp_path / "theirs.pth")
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    save_checkpoint(ours, tmp_path / "ours.safetensors")
    with safetensors.safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "names": "timm", "model": "efficientformer_l1"}
    with pytest.raises(ValueError, match=r"\(efficientformer_l1, in the names of timm\) does not fit the model \(mobilevit_xxs\)"):
        create_model("mobilevit_xxs", checkpoint=tmp_path / "ours.safetensors")


def test_other_number_of_classes(tmp_path):
    path = tmp_path / "model.pth"
    model, other = tiny(num_classes=10), tiny(num_classes=7)
    save_checkpoint(model, path)
    with pytest.raises(ValueError, match="has 10 classes, the model 7; make it with num_classes=10, or load with strict=False"):
        load_checkpoint(other, path)
    assert load_checkpoint(other, path, strict=False).missing == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert torch.equal(other.norm.weight, model.norm.weight)


def test_formats_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected format in \('timm',\) for this model, got 'transformers'"):
        save_checkpoint(tiny(), tmp_path / "model.pth", "transformers")
    save_checkpoint(create_model("mobilevit_xxs"), tmp_path / "model.pth", "transformers")
    message = r"\(mobilevit_xxs, in the names of transformers\) does not fit the model \(no known variant\), whose .* names of timm"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tiny(), tmp_path / "model.pth")


def test_other_image_sizes_are_refused():
    model = create_model("efficientformer_l1")
    for shape in [(3, 224, 224), (1, 4, 224, 224), (1, 3, 192, 224), (1, 3, 224, 225)]:
        with pytest.raises(ValueError, match=r"EfficientFormer: expected images \(B, 3, H, W\) with H and W from 193 to 224"):
            model(torch.rand(shape))
    assert tiny(image_size=256)(images((256, 230), 1)).shape == (1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 16, 24)}, "expected channels to be 4 positive integers"),
        ({"depths": (1, 1, 1, 0)}, "expected depths to be 4 positive integers"),
        ({"attention_blocks": 4}, "expected attention_blocks to be 0 to 3, the blocks of the last stage, got 4"),
        ({"image_size": 0}, "expected image_size to be a positive integer, got 0"),
        ({"num_classes": -1}, "EfficientFormer: expected num_classes >= 0, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
    with pytest.raises(TypeError, match="efficientformer_l1 has no option width; its options are channels"):
        create_model("efficientformer_l1", width=2)


def test_config_makes_the_same_model():
    config = EfficientFormerConfig(channels=(8, 16, 24, 32), depths=(1, 1, 1, 3), attention_blocks=2, image_size=64)
    assert tiny().config == config
    assert EfficientFormer(config).state_dict().keys() == tiny().state_dict().keys()
