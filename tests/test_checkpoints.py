"""Checkpoint files: three formats, two kinds of file, and every way to get it wrong."""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mvit_kernels.models import checkpoint as checkpoint_module
from mvit_kernels.models import create_model, list_models, load_checkpoint, save_checkpoint
from mvit_kernels.models.names import STEMS, own_format

FORMATS = ["timm", "transformers", "ml-cvnets"]
SMALL = ["mobilevit_xxs", "mobilevitv2_050"]

# As the published files have them: name -> shape.
PUBLISHED = {
    ("mobilevit_xxs", "ml-cvnets"): {
        "conv_1.block.conv.weight": (16, 3, 3, 3),
        "conv_1.block.norm.running_mean": (16,),
        "conv_1.block.norm.num_batches_tracked": (),
        "layer_1.0.block.exp_1x1.block.conv.weight": (32, 16, 1, 1),
        "layer_2.2.block.conv_3x3.block.conv.weight": (48, 1, 3, 3),
        "layer_2.2.block.red_1x1.block.norm.bias": (24,),
        "layer_3.0.block.exp_1x1.block.norm.weight": (48,),
        "layer_4.0.block.conv_3x3.block.norm.running_var": (96,),
        "layer_5.0.block.red_1x1.block.conv.weight": (80, 128, 1, 1),
        "layer_3.1.local_rep.conv_3x3.block.conv.weight": (48, 48, 3, 3),
        "layer_3.1.local_rep.conv_3x3.block.norm.weight": (48,),
        "layer_3.1.local_rep.conv_1x1.block.conv.weight": (64, 48, 1, 1),
        "layer_3.1.global_rep.0.pre_norm_mha.0.weight": (64,),
        "layer_3.1.global_rep.0.pre_norm_mha.1.qkv_proj.weight": (192, 64),
        "layer_3.1.global_rep.1.pre_norm_mha.1.qkv_proj.bias": (192,),
        "layer_3.1.global_rep.1.pre_norm_mha.1.out_proj.weight": (64, 64),
        "layer_3.1.global_rep.1.pre_norm_ffn.0.bias": (64,),
        "layer_3.1.global_rep.1.pre_norm_ffn.1.weight": (128, 64),
        "layer_3.1.global_rep.1.pre_norm_ffn.4.weight": (64, 128),
        "layer_3.1.global_rep.2.weight": (64,),
        "layer_4.1.global_rep.4.bias": (80,),
        "layer_5.1.global_rep.3.weight": (96,),
        "layer_5.1.conv_proj.block.conv.weight": (80, 96, 1, 1),
        "layer_5.1.fusion.block.conv.weight": (80, 160, 3, 3),
        "layer_5.1.fusion.block.norm.running_mean": (80,),
        "conv_1x1_exp.block.conv.weight": (320, 80, 1, 1),
        "conv_1x1_exp.block.norm.weight": (320,),
        "classifier.fc.weight": (1000, 320),
        "classifier.fc.bias": (1000,),
    },
    ("mobilevitv2_050", "ml-cvnets"): {
        "conv_1.block.conv.weight": (16, 3, 3, 3),
        "layer_1.0.block.exp_1x1.block.conv.weight": (32, 16, 1, 1),
        "layer_2.1.block.red_1x1.block.norm.running_var": (64,),
        "layer_3.0.block.conv_3x3.block.conv.weight": (128, 1, 3, 3),
        "layer_3.1.local_rep.0.block.conv.weight": (128, 1, 3, 3),
        "layer_3.1.local_rep.0.block.norm.bias": (128,),
        "layer_3.1.local_rep.1.block.conv.weight": (64, 128, 1, 1),
        "layer_3.1.global_rep.0.pre_norm_attn.0.weight": (64,),
        "layer_3.1.global_rep.0.pre_norm_attn.1.qkv_proj.block.conv.weight": (129, 64, 1, 1),
        "layer_3.1.global_rep.0.pre_norm_attn.1.qkv_proj.block.conv.bias": (129,),
        "layer_3.1.global_rep.1.pre_norm_attn.1.out_proj.block.conv.weight": (64, 64, 1, 1),
        "layer_3.1.global_rep.1.pre_norm_ffn.0.weight": (64,),
        "layer_3.1.global_rep.1.pre_norm_ffn.1.block.conv.weight": (128, 64, 1, 1),
        "layer_3.1.global_rep.1.pre_norm_ffn.3.block.conv.bias": (64,),
        "layer_3.1.global_rep.2.weight": (64,),
        "layer_4.1.global_rep.4.bias": (96,),
        "layer_5.1.global_rep.3.weight": (128,),
        "layer_5.1.conv_proj.block.conv.weight": (256, 128, 1, 1),
        "layer_5.1.conv_proj.block.norm.running_mean": (256,),
        "classifier.1.weight": (1000, 256),
        "classifier.1.bias": (1000,),
    },
    ("mobilevit_xxs", "transformers"): {
        "mobilevit.conv_stem.convolution.weight": (16, 3, 3, 3),
        "mobilevit.encoder.layer.1.layer.2.expand_1x1.normalization.running_var": (48,),
        "mobilevit.encoder.layer.4.downsampling_layer.reduce_1x1.convolution.weight": (80, 128, 1, 1),
        "mobilevit.encoder.layer.2.transformer.layer.1.attention.attention.key.weight": (64, 64),
        "mobilevit.encoder.layer.2.transformer.layer.1.attention.output.dense.bias": (64,),
        "mobilevit.encoder.layer.2.fusion.convolution.weight": (48, 96, 3, 3),
        "mobilevit.conv_1x1_exp.convolution.weight": (320, 80, 1, 1),
        "classifier.weight": (1000, 320),
    },
    ("mobilevitv2_050", "transformers"): {
        "mobilevitv2.conv_stem.normalization.weight": (16,),
        "mobilevitv2.encoder.layer.2.transformer.layer.1.attention.qkv_proj.convolution.weight": (129, 64, 1, 1),
        "mobilevitv2.encoder.layer.2.transformer.layer.1.ffn.conv2.convolution.weight": (64, 128, 1, 1),
        "mobilevitv2.encoder.layer.4.layernorm.bias": (128,),
        "mobilevitv2.encoder.layer.4.conv_projection.normalization.running_mean": (256,),
        "classifier.bias": (1000,),
    },
}
# Tensors of each full file.
COUNTS = {
    ("mobilevit_xxs", "timm"): 311,
    ("mobilevit_xxs", "transformers"): 311 + 9 * 2 * 2,
    ("mobilevit_xxs", "ml-cvnets"): 311,
    ("mobilevitv2_050", "timm"): 269,
    ("mobilevitv2_050", "transformers"): 269,
    ("mobilevitv2_050", "ml-cvnets"): 269,
}


def model_with_values(name: str, **options) -> nn.Module:
    """A model whose every tensor differs from every other, counters included."""
    model = create_model(name, **options)
    for index, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            tensor.normal_(mean=index / 100)
        else:
            tensor.fill_(index)
    return model


def saved(model: nn.Module, path, format: str = "timm") -> dict[str, torch.Tensor]:
    """The tensors of a file as `save_checkpoint` writes it."""
    save_checkpoint(model, path, format)
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a), [key for key in a if not torch.equal(a[key], b[key])]


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def refused(model: nn.Module, path, match: str, **options) -> None:
    """Loading raises ValueError with such a message, and the model is as it was."""
    before = snapshot(model)
    with pytest.raises(ValueError, match=match) as error:
        load_checkpoint(model, path, **options)
    assert str(path) in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SMALL)
def test_round_trip_is_exact(name, format, suffix, tmp_path):
    model = model_with_values(name)
    path = tmp_path / f"model{suffix}"
    tensors = saved(model, path, format)
    assert len(tensors) == COUNTS[name, format]
    assert_equal(create_model(name, checkpoint=path), model)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["mobilevit_xs", "mobilevit_s", *(f"mobilevitv2_{w:03}" for w in range(75, 201, 25))])
def test_round_trip_of_every_model_is_exact(name, format, tmp_path):
    model = model_with_values(name)
    save_checkpoint(model, tmp_path / "model.pt", format)
    assert_equal(create_model(name, checkpoint=tmp_path / "model.pt"), model)


@pytest.mark.parametrize(("name", "format"), PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name, format, tmp_path):
    tensors = saved(create_model(name), tmp_path / "model.pth", format)
    for key, shape in PUBLISHED[name, format].items():
        assert tensors[key].shape == shape, key


@pytest.mark.parametrize("name", SMALL)
def test_timm_file_is_the_state_dict(name, tmp_path):
    model = model_with_values(name)
    tensors = saved(model, tmp_path / "model.safetensors")
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) for key in state)


@pytest.mark.parametrize("name", SMALL)
def test_transformers_accepts_our_file(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    if name == "mobilevit_xxs":
        config = transformers.MobileViTConfig(
            hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0, num_labels=1000
        )
        theirs = transformers.MobileViTForImageClassification(config)
    else:
        config = transformers.MobileViTV2Config(width_multiplier=0.5, num_labels=1000)
        theirs = transformers.MobileViTV2ForImageClassification(config)
    theirs.load_state_dict(saved(model_with_values(name), tmp_path / "model.safetensors", "transformers"))


@pytest.mark.parametrize("format", ["transformers", "ml-cvnets"])
def test_v1_stem_of_the_others_reads_bgr(format, tmp_path):
    stem = {"transformers": "conv_stem.convolution.weight", "ml-cvnets": "conv_1.block.conv.weight"}[format]
    for name, family, swapped in [("mobilevit_xxs", "mobilevit", True), ("mobilevitv2_050", "mobilevitv2", False)]:
        model = model_with_values(name)
        tensors = saved(model, tmp_path / "model.pth", format)
        theirs = tensors[f"{family}.{stem}" if format == "transformers" else stem]
        ours = model.stem.conv.weight
        assert torch.equal(theirs, ours[:, [2, 1, 0]] if swapped else ours)


def test_stem_of_other_than_three_channels_is_left_alone(tmp_path):
    model = model_with_values("mobilevit_xxs", in_chans=4)
    tensors = saved(model, tmp_path / "model.pth", "ml-cvnets")
    assert torch.equal(tensors["conv_1.block.conv.weight"], model.stem.conv.weight)


def test_v1_qkv_of_transformers_is_three_tensors(tmp_path):
    model = model_with_values("mobilevit_xxs")
    tensors = saved(model, tmp_path / "model.pth", "transformers")
    attention = "mobilevit.encoder.layer.3.transformer.layer.2.attention.attention"
    for kind in ("weight", "bias"):
        ours = getattr(model.stages[3][1].transformer[2].attn.qkv, kind)
        query, key, value = (tensors[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value"))
        assert torch.equal(query, ours[:80])
        assert torch.equal(key, ours[80:160])
        assert torch.equal(value, ours[160:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_loads(dtype, tmp_path):
    model = model_with_values("mobilevitv2_050").to(dtype)
    tensors = saved(model, tmp_path / "model.safetensors", "ml-cvnets")
    assert tensors["classifier.1.weight"].dtype == dtype
    loaded = create_model("mobilevitv2_050", checkpoint=tmp_path / "model.safetensors")
    assert loaded.head.fc.weight.dtype == torch.float32
    assert_equal(loaded, model.float())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(model="mobilevitv2_050")},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "optim_state_dict": {"state": {}}},
        lambda s: {"state_dict": {key: torch.zeros_like(t) for key, t in s.items()}, "state_dict_ema": s},
        lambda s: {"model_state_dict": {key: torch.zeros_like(t) for key, t in s.items()}, "ema_state_dict": s},
        lambda s: {"state_dict": s, "state_dict_ema": None},
        lambda s: {f"module.{key}": t for key, t in s.items()},
        lambda s: {f"_orig_mod.{key}": t for key, t in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{key}": t for key, t in s.items()}},
        lambda s: {f"_orig_mod.module.{key}": t for key, t in s.items()},
        lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{key}": t for key, t in s.items()},
        lambda s: {"state_dict": {f"model.{key}": t for key, t in s.items()}},
    ],
    ids=[
        *("timm", "model", "cvnets", "timm-ema", "cvnets-ema", "no-ema", "ddp", "compiled"),
        *("ddp-compiled", "compiled-ddp", "averaged", "lightning"),
    ],
)
@pytest.mark.parametrize("format", ["transformers", "ml-cvnets"])
def test_wrapped_weights_load(format, wrap, tmp_path):
    """Also the classifier of transformers, which stands beside the network."""
    model = model_with_values("mobilevitv2_050", num_classes=3)
    torch.save(wrap(saved(model, tmp_path / "plain.pth", format)), tmp_path / "wrapped.pth")
    assert_equal(create_model("mobilevitv2_050", num_classes=3, checkpoint=tmp_path / "wrapped.pth"), model)


def test_averaged_model_of_torch_loads(tmp_path):
    model = model_with_values("mobilevitv2_050", num_classes=3)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), tmp_path / "averaged.pth")
    assert_equal(create_model("mobilevitv2_050", num_classes=3, checkpoint=tmp_path / "averaged.pth"), model)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0"])
def test_pyramids_of_timm_load(name, tmp_path):
    """timm calls their stages stages_0, stages_1, ...; a segmenter has them inside of itself."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, features_only=True)
    for index, tensor in enumerate(theirs.state_dict().values()):
        tensor.copy_(torch.full_like(tensor, index) if tensor.is_floating_point() else tensor)
    for prefix in ("", "encoder.model."):
        torch.save({prefix + key: tensor for key, tensor in theirs.state_dict().items()}, tmp_path / "pyramid.pth")
        ours = create_model(name, features_only=True, checkpoint=tmp_path / "pyramid.pth").state_dict()
        values = [tensor for key, tensor in theirs.state_dict().items() if not key.startswith("model.head")]
        assert [each.flatten()[0].item() for each in ours.values()] == [each.flatten()[0].item() for each in values]


@pytest.mark.parametrize("format", FORMATS)
def test_batch_norms_need_no_counters(format, tmp_path):
    """As in torch. A program that leaves integers out of a file, or makes floats of them, loses nothing."""
    path = tmp_path / "model.pth"
    original = create_model("mobilevit_xxs", num_classes=3)
    tensors, weight = saved(original, path, format), original.stages[1][0].conv1_1x1.conv.weight
    halves = {key: tensor.half() for key, tensor in tensors.items()}
    for content in (halves, {key: tensor for key, tensor in halves.items() if not key.endswith("num_batches_tracked")}):
        torch.save(content, path)
        model = model_with_values("mobilevit_xxs", num_classes=3)
        before = snapshot(model)
        assert load_checkpoint(model, path) == ([], [])
        for key, tensor in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                assert torch.equal(tensor, before[key])
        assert torch.equal(model.stages[1][0].conv1_1x1.conv.weight, weight.half().float())
    del tensors[next(key for key in tensors if key.endswith("running_mean"))]
    torch.save(tensors, path)
    refused(create_model("mobilevit_xxs", num_classes=3), path, match="1 missing .*running_mean")


def test_kind_of_file_is_told_by_content(tmp_path):
    model = model_with_values("mobilevitv2_050")
    tensors = saved(model, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "b.safetensors")
    torch.save(tensors, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    for file in ("a.pth", "b.safetensors", "legacy.bin"):
        assert_equal(create_model("mobilevitv2_050", checkpoint=tmp_path / file), model)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SMALL)
def test_full_file_loads_into_headless_models(name, format, tmp_path):
    model = model_with_values(name)
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, format)
    state = model.state_dict()
    headless = [{"features_only": True}, {"num_classes": 0}]
    if name == "mobilevit_xxs":
        headless.append({"features_only": True, "final_channels": None})
    for options in headless:
        backbone = create_model(name, checkpoint=path, **options)
        assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_segmentation_files_of_cvnets_and_transformers_load_as_backbones(name, tmp_path):
    options = {"features_only": True} | ({"final_channels": None} if name == "mobilevit_xxs" else {})
    backbone = model_with_values(name, **options)
    heads = {
        "ml-cvnets": ("encoder.", "seg_head.aspp.aspp_layer.convs.0.block.conv.weight"),
        "transformers": ("", "segmentation_head.aspp.convs.0.convolution.weight"),
    }
    for format, (prefix, head) in heads.items():
        tensors = saved(backbone, tmp_path / "backbone.pth", format)
        tensors = {prefix + key: tensor for key, tensor in tensors.items()} | {head: torch.rand(256, 80, 1, 1)}
        for outer in ("model.", ""):
            torch.save({outer + key: tensor for key, tensor in tensors.items()}, tmp_path / "segmenter.pth")
            assert_equal(create_model(name, checkpoint=tmp_path / "segmenter.pth", **options), backbone)
        refused(create_model(name), tmp_path / "segmenter.pth", match=r"does not fit the model .*missing .*; 1 unexpected \(seg")


@pytest.mark.parametrize("format", FORMATS)
def test_other_number_of_classes(format, tmp_path):
    path = tmp_path / "model.pth"
    model = model_with_values("mobilevit_xxs", num_classes=10)
    save_checkpoint(model, path, format)
    other = model_with_values("mobilevit_xxs", num_classes=7)
    refused(other, path, match="has 10 classes, the model 7; make it with num_classes=10, or load with strict=False")
    fc = other.head.fc.weight.clone()
    report = load_checkpoint(other, path, strict=False)
    assert len(report.missing) == 2
    assert report.unexpected == []
    assert torch.equal(other.head.fc.weight, fc)
    assert torch.equal(other.stages[2][1].norm.weight, model.stages[2][1].norm.weight)


def test_strictness(tmp_path):
    path = tmp_path / "model.pth"
    model = model_with_values("mobilevit_xxs")
    tensors = saved(model, path, "transformers")
    key = "mobilevit.encoder.layer.2.transformer.layer.0.attention.attention.key.weight"
    del tensors[key]
    tensors["mobilevit.extra"] = torch.zeros(1)
    torch.save(tensors, path)

    other = model_with_values("mobilevit_xxs", features_only=True)
    key = key.removeprefix("mobilevit.")
    refused(other, path, match=rf"1 missing \({key}\); 1 unexpected \(extra\)")
    qkv = other.stages[2][1].transformer[0].attn.qkv.weight.clone()
    assert load_checkpoint(other, path, strict=False) == ([key], ["extra"])
    assert torch.equal(other.stages[2][1].transformer[0].attn.qkv.weight, qkv)
    assert torch.equal(other.stem.conv.weight, model.stem.conv.weight)

    tensors["mobilevit.conv_stem.convolution.weight"] = torch.zeros(16, 3, 5, 5)
    torch.save(tensors, path)
    message = r"1 misshaped \(conv_stem.convolution.weight: expected \(16, 3, 3, 3\) float32, got \(16, 3, 5, 5\) float32\)"
    refused(other, path, match=message, strict=False)


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_variant_is_recognised(format, tmp_path):
    save_checkpoint(create_model("mobilevitv2_075", num_classes=5), tmp_path / "model.pth", format)
    message = rf"\(mobilevitv2_075, in the names of {format}\) does not fit the model \({{}}\): .*misshaped"
    refused(create_model("mobilevitv2_050"), tmp_path / "model.pth", match=message.format("mobilevitv2_050"))
    refused(create_model("mobilevit_xxs"), tmp_path / "model.pth", match=message.format("mobilevit_xxs"))
    other = create_model("mobilevitv2_050", depths=(2, 4, 4))
    refused(other, tmp_path / "model.pth", match=message.format("mobilevitv2_050"))


def test_other_depths_are_refused(tmp_path):
    save_checkpoint(create_model("mobilevitv2_050", depths=(2, 4, 4)), tmp_path / "model.pth", "ml-cvnets")
    refused(create_model("mobilevitv2_050"), tmp_path / "model.pth", match=r"unexpected \(layer_5.1.global_rep.3")


def test_integer_weights_are_refused(tmp_path):
    tensors = saved(create_model("mobilevitv2_050"), tmp_path / "model.pth")
    tensors["stem.conv.weight"] = tensors["stem.conv.weight"].to(torch.int8)
    torch.save(tensors, tmp_path / "model.pth")
    refused(create_model("mobilevitv2_050"), tmp_path / "model.pth", match=r"stem.conv.weight: expected .* got .* int8")


def test_tensors_that_torch_does_not_copy_are_refused_before_any_is(tmp_path):
    path = tmp_path / "model.pth"
    state = create_model("mobilevitv2_050").state_dict()
    norm = state["stages.4.1.norm.weight"]
    for changed, what in ((norm.to_sparse(), "float32 in torch.sparse_coo"), (norm.to("meta"), "float32 without values")):
        torch.save(state | {"stages.4.1.norm.weight": changed}, path)
        message = rf"1 misshaped \(stages.4.1.norm.weight: expected \(128,\) float32, got \(128,\) {what}\)"
        refused(model_with_values("mobilevitv2_050"), path, match=message)
        refused(model_with_values("mobilevitv2_050"), path, match=message, strict=False)


def test_missing_file(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load_checkpoint(create_model("mobilevitv2_050"), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "-legacy.pth"])
@pytest.mark.parametrize("keep", [0.001, 0.3, 0.999])
def test_truncated_file(suffix, keep, tmp_path):
    path = tmp_path / f"model{suffix}"
    model = create_model("mobilevitv2_050", num_classes=0)
    if suffix == "-legacy.pth":
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(model, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(model, path, match="is damaged")


def test_files_that_are_no_checkpoint(tmp_path):
    model = create_model("mobilevitv2_050")
    path = tmp_path / "file.pth"
    for content in (b"", b"not a checkpoint", bytes(100), json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        refused(model, path, match="is neither a safetensors nor a torch file")
    for content in (struct.pack("<Q", 10) + b"{bad json}", b"PK\x03\x04 not a zip", b"\x80\x02 not a pickle"):
        path.write_bytes(content)
        refused(model, path, match="is damaged")
    torch.save([1, 2], path)
    refused(model, path, match="expected a state_dict in .*, got a list")
    for content, keys in (({"epoch": 3}, "epoch"), ({}, "nothing"), ({"net": model.state_dict(), "step": 1}, "net, step")):
        torch.save(content, path)
        refused(model, path, match=f"expected a state_dict in .*, or one as its state_dict_ema, .*, model; got {keys}$")
    torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), path)
    refused(model, path, match="expected a state_dict in .*, got a model of TorchScript")
    torch.save(nn.Conv2d(1, 1, 1).state_dict(), path)
    refused(model, path, match="holds no network .*; its tensors are weight, bias")
    state = model.state_dict()
    torch.save({f"{who}.{key}": tensor for who in ("student", "teacher") for key, tensor in state.items()}, path)
    refused(model, path, match="holds 2 networks")


class Trap:
    """Unpickling one would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickled_code_does_not_run(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": create_model("mobilevitv2_050").state_dict(), "trap": Trap(tmp_path / "sprung")}, path)
    refused(create_model("mobilevitv2_050"), path, match="is damaged, or holds other objects than tensors")
    assert os.listdir(tmp_path) == [path.name]


def test_trusted_objects_load(tmp_path):
    """What stands in the way is named, and torch's own list of what may be loaded holds."""
    path = tmp_path / "model.pth"
    model = model_with_values("mobilevitv2_050")
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(output=path)}, path)
    refused(create_model("mobilevitv2_050"), path, match=f"holds other objects than tensors, [a-z._]*{type(path).__name__}; ")
    with torch.serialization.safe_globals([type(path)]):
        assert_equal(create_model("mobilevitv2_050", checkpoint=path), model)


def test_other_models_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    save_checkpoint(create_model("mobilevitv2_050"), path)
    other = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r"load_checkpoint: model: expected one of mk.list_models\(\)"):
        load_checkpoint(other, path)
    with pytest.raises(ValueError, match=r"save_checkpoint: model: expected one of mk.list_models\(\)"):
        save_checkpoint(other, path)
    for function in (load_checkpoint, save_checkpoint):
        with pytest.raises(TypeError, match=f"{function.__name__}: model: expected a torch.nn.Module, got dict"):
            function({}, path)
        with pytest.raises(ValueError, match=f"{function.__name__}: model: expected weights in memory, got stem.* on the meta device"):
            function(create_model("mobilevitv2_050").to("meta"), path)
        for bad, error in ((None, TypeError), (3, TypeError), ("", ValueError)):
            with pytest.raises(error, match=f"{function.__name__}: path: expected .*, got {bad!r}"):
                function(other, bad)


@pytest.mark.parametrize("name", ["mobilevitv2_050", "efficientformer_l1", "mobile_former_26m"])
def test_networks_inside_of_other_modules_are_refused(name, tmp_path):
    """Their names are no format's: what was saved under them, no program would find."""
    model = create_model(name)
    save_checkpoint(model, tmp_path / "model.pth")
    for wrapped, key in ((nn.Sequential(model), "0."), (torch.compile(model, backend="eager"), "_orig_mod.")):
        for function in (load_checkpoint, save_checkpoint):
            message = f"{function.__name__}: model: expected a network .*, got a {type(wrapped).__name__} that has one inside, .* {key}"
            with pytest.raises(ValueError, match=message):
                function(wrapped, tmp_path / "model.pth")
    if name == "efficientformer_l1":
        theirs = pytest.importorskip("timm").create_model("efficientformerv2_s0", features_only=True)
        with pytest.raises(ValueError, match=r"has one inside, .* stem_conv1\.conv\.weight"):
            save_checkpoint(theirs, tmp_path / "other.pth")
    assert os.listdir(tmp_path) == ["model.pth"]


def test_bad_arguments_of_save(tmp_path):
    model = create_model("mobilevitv2_050")
    with pytest.raises(ValueError, match=r"expected format in \('timm', .*, got 'keras'"):
        save_checkpoint(model, tmp_path / "model.pth", "keras")
    with pytest.raises(ValueError, match=r"expected path to end in \.safetensors.*model\.onnx"):
        save_checkpoint(model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("suffix", "writer"), [(".safetensors", "safetensors.torch.save"), (".pth", "torch.save")])
def test_failed_save_leaves_the_older_file(suffix, writer, tmp_path, monkeypatch):
    path = tmp_path / f"model{suffix}"
    model = create_model("mobilevitv2_050")
    save_checkpoint(model, path)
    older = path.read_bytes()

    def fail(tensors, file=None, *rest):
        if isinstance(file, Path):
            file.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(writer, fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model_with_values("mobilevitv2_050"), path)
    assert path.read_bytes() == older
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_save_replaces_the_file_at_once(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"older")
    os.link(path, tmp_path / "opened before")
    save_checkpoint(create_model("mobilevitv2_050"), path)
    assert (tmp_path / "opened before").read_bytes() == b"older"
    assert path.stat().st_size > 1e6


def test_safetensors_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    for options, variant in [({}, "mobilevitv2_050"), ({"width": 0.6}, "no known variant")]:
        save_checkpoint(create_model("mobilevitv2_050", **options), path, "ml-cvnets")
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "names": "ml-cvnets", "model": variant}


def test_channels_last_weights_save(tmp_path):
    model = model_with_values("mobilevit_xxs").to(memory_format=torch.channels_last)
    save_checkpoint(model, tmp_path / "model.safetensors", "transformers")
    assert_equal(create_model("mobilevit_xxs", checkpoint=tmp_path / "model.safetensors"), model)


def test_timm_models_load_and_save_too(tmp_path):
    timm = pytest.importorskip("timm")
    ours = model_with_values("mobilevit_xxs")
    save_checkpoint(ours, tmp_path / "ours.safetensors", "ml-cvnets")
    theirs = timm.create_model("mobilevit_xxs")
    load_checkpoint(theirs, tmp_path / "ours.safetensors")
    assert_equal(theirs, ours)


def test_variants_are_told_apart():
    told = {
        variant: checkpoint_module._variant(state, own_format(family))
        for family in STEMS
        for variant, state in checkpoint_module._stages(family).items()
    }
    assert told == {name: name for name in list_models()}
    for name in ("mobilevit_xs", "mobilevitv2_175"):
        assert checkpoint_module._variant(create_model(name).state_dict(), "timm") == name


def test_saved_files_have_the_usual_permissions_and_need_a_folder(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=0)
    beside = tmp_path / "beside"
    beside.touch()
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == beside.stat().st_mode
    with pytest.raises(FileNotFoundError, match=r"save_checkpoint: path: expected a file in a folder that exists, got .*missing"):
        save_checkpoint(model, tmp_path / "missing" / "model.pt")
