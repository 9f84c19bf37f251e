"""Mobile-Former against the sizes of the authors' release, and its parts against their equations, written out one head at a time."""

from __future__ import annotations

import pytest
import safetensors
import torch
from marks import slow
from model_checks import assert_captured, assert_every_parameter_learns, assert_exports, images, million_macs, parameters, randomise
from torch import nn

from mvit_kernels.models import MobileFormer, MobileFormerConfig, create_model, list_models, load_checkpoint, save_checkpoint
from mvit_kernels.models.mobile_former import (
    DownsamplingBlock,
    DynamicReLU,
    Former,
    FormerToMobile,
    InvertedBlock,
    LiteBlock,
    MobileToFormer,
)

SIZES = {  # parameters, million multiply-adds, convolutions and linear layers
    "mobile_former_26m": (3_232_788, 23.55, 140),
    "mobile_former_52m": (3_469_092, 49.29, 140),
    "mobile_former_96m": (4_585_252, 92.02, 141),
    "mobile_former_151m": (7_595_828, 146.25, 189),
    "mobile_former_214m": (9_425_920, 208.37, 189),
    "mobile_former_294m": (11_422_648, 286.73, 189),
    "mobile_former_508m": (13_976_976, 498.47, 189),
}
# A network of every part, small enough for tests of what doesn't depend on the size.
TINY = {
    "num_tokens": 3,
    "token_dim": 16,
    "stem_channels": 4,
    "blocks": ((1, 8, 4), (2, 24, 8), (1, 16, 8), (1, 32, 12)),
    "classifier_dim": 20,
    "groups": 2,
    "num_classes": 5,
}


def tiny(**options) -> nn.Module:
    return randomise(create_model("mobile_former_26m", **{**TINY, **options}))


def test_list_models_names_all_seven():
    assert [name for name in list_models() if name.startswith("mobile_former_")] == list(SIZES)


def test_parameters():
    assert {name: parameters(name) for name in SIZES} == {name: sizes[0] for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", [next(iter(SIZES)), *map(slow, [*SIZES][1:])])
def test_multiply_adds(name):
    assert million_macs(name) == pytest.approx(SIZES[name][1], abs=0.01)


@pytest.mark.parametrize("name", [name if name[14:] in ("52m", "508m") else slow(name) for name in SIZES])
def test_layers_have_the_order_of_the_release(name):
    with torch.device("meta"):
        model = create_model(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == SIZES[name][2]
    if name == "mobile_former_52m":
        assert layers[13:15] == ["features.1.global_block.ffn.0", "features.1.global_block.ffn.2"]
        assert layers[128:130] == ["features.8.global_block.ffn.0", "features.8.global_block.ffn.2"]
    if name == "mobile_former_508m":
        assert layers[13:15] == ["features.1.local_global.proj", "features.1.global_block.ffn.0"]
        assert layers[128:130] == ["features.8.global_block.ffn.0", "features.8.global_block.ffn.2"]


def test_names_are_those_of_the_release():
    linear, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    local_global = {"alpha.0": linear, "q": linear, "proj": linear, "layer_norm": linear}
    former = {layer: linear for layer in ("ffn.0", "ffn.2", "ffn_norm", "q", "channel_mlp", "layer_norm")}
    modules = {"tokens": ("weight",), "stem.0": ("weight",), "stem.1": norm}
    modules |= {"features.0.conv.0": ("weight",), "features.0.conv.1": norm, "features.0.conv.4": ("weight",), "features.0.conv.5": norm}
    for block, convs, hypers in [(1, 4, (1, 3)), (2, 3, (1, 2)), (3, 3, (1, 2))]:
        for conv in range(1, convs + 1):
            modules |= {f"features.{block}.conv{conv}.0": ("weight",), f"features.{block}.conv{conv}.1": norm}
        modules |= {f"features.{block}.hyper{i}.hyper.{layer}": linear for i in hypers for layer in (0, 2)}
        modules |= {f"features.{block}.local_global.{layer}": tensors for layer, tensors in local_global.items()}
        modules |= {f"features.{block}.global_block.{layer}": tensors for layer, tensors in former.items()}
        modules |= {f"features.{block}.global_local.{layer}": linear for layer in ("k", "proj")}
    modules |= {f"local_global.{layer}": tensors for layer, tensors in local_global.items()}
    modules |= {"classifier.conv.1": ("weight",), "classifier.conv.2": norm}
    modules |= {"classifier.fc.0": linear, "classifier.fc.1": norm, "classifier.classifier.1": linear}
    assert tiny().state_dict().keys() == {f"{module}.{tensor}" for module, tensors in modules.items() for tensor in tensors}


def hard_sigmoid(x: torch.Tensor) -> torch.Tensor:
    return (x + 3).clamp(0, 6) / 6


def heads_of(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Slices of the last axis."""
    return list(x.split(x.shape[-1] // count, dim=-1))


@torch.no_grad()
def test_mobile_to_former_is_its_equations():
    bridge = randomise(MobileToFormer(12, 16)).double()
    tokens, x = torch.randn(2, 3, 16).double(), torch.randn(2, 12, 5, 4).double()
    for image in range(2):
        z, pixels = tokens[image], x[image].reshape(12, 20).T
        seen = []
        for query, head in zip(heads_of(bridge.q(z), 2), heads_of(pixels, 2), strict=True):
            weights = torch.softmax(query @ head.T / 6**0.5, dim=1)
            seen.append(weights @ head)
        gated = torch.cat(seen, dim=1) * 2 * hard_sigmoid(bridge.alpha[0](z))
        expected = bridge.layer_norm(z + bridge.proj(gated))
        torch.testing.assert_close(bridge(tokens, x)[image], expected)


@torch.no_grad()
def test_former_is_its_equations():
    former = randomise(Former(16)).double()
    tokens = torch.randn(2, 3, 16).double()
    for image in range(2):
        z = tokens[image]
        heads = zip(heads_of(former.q(z), 4), heads_of(z, 4), strict=True)
        seen = [torch.softmax(query @ head.T / 4**0.5, dim=1) @ head for query, head in heads]
        z = former.layer_norm(z + former.channel_mlp(torch.cat(seen, dim=1)))
        hidden = former.ffn[0](z)
        z = former.ffn_norm(z + former.ffn[2](hidden * (1 + torch.erf(hidden / 2**0.5)) / 2))
        torch.testing.assert_close(former(tokens)[image], z)


@torch.no_grad()
def test_former_to_mobile_is_its_equations():
    bridge = randomise(FormerToMobile(12, 16)).double()
    tokens, x = torch.randn(2, 3, 16).double(), torch.randn(2, 12, 5, 4).double()
    for image in range(2):
        z, pixels = tokens[image], x[image].reshape(12, 20).T
        heads = zip(heads_of(pixels, 2), heads_of(bridge.k(z), 2), heads_of(bridge.proj(z), 2), strict=True)
        told = [torch.softmax(query @ key.T / 6**0.5, dim=1) @ value for query, key, value in heads]
        expected = (pixels + torch.cat(told, dim=1)).T.reshape(12, 5, 4)
        torch.testing.assert_close(bridge(x, tokens)[image], expected)


@torch.no_grad()
def test_dynamic_relu_is_its_equations():
    activation = randomise(DynamicReLU(6, 16)).double()
    x, token = torch.randn(2, 6, 3, 3).double(), 3 * torch.randn(2, 16).double()
    theta = hard_sigmoid(activation.hyper[2](torch.relu(activation.hyper[0](token))))
    y = activation(x, token)
    for image in range(2):
        for channel in range(6):
            a, b = 2 * theta[image, channel], 2 * theta[image, 6 + channel] - 1
            expected = torch.maximum(a * x[image, channel], b * x[image, channel])
            torch.testing.assert_close(y[image, channel], expected)

    nn.init.zeros_(activation.hyper[2].weight)
    nn.init.zeros_(activation.hyper[2].bias)
    torch.testing.assert_close(activation(x, token), x.relu())


def dealt(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Output channel j groups + i takes input channel i (C / groups) + j."""
    run = x.shape[1] // groups
    return x[:, [i * run + j for j in range(run) for i in range(groups)]]


@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_blocks_filter_as_the_release_does(groups):
    x, token = torch.randn(2, 8, 6, 6), torch.randn(2, 16)

    def shuffled(x: torch.Tensor, mixed: int) -> torch.Tensor:
        return x if groups == 1 else dealt(x, mixed)

    lite = randomise(LiteBlock(8, 16, 8, stride=1, groups=groups))
    conv = lite.conv
    y = shuffled(conv[1](conv[0](x)).clamp(0, 6), 8)
    torch.testing.assert_close(lite(x), x + conv[5](conv[4](y)))

    for channels in (8, 12):
        block = randomise(InvertedBlock(8, 24, channels, token_dim=16, groups=groups))
        y = block.hyper1(shuffled(block.conv1[1](block.conv1[0](x)), groups), token)
        y = block.hyper2(block.conv2[1](block.conv2[0](y)), token)
        y = shuffled(block.conv3[1](block.conv3[0](y)), groups)
        torch.testing.assert_close(block.mobile(x, token), x + y if channels == 8 else y)

    block = randomise(DownsamplingBlock(8, 48, 12, token_dim=16, groups=groups))
    y = block.hyper1(shuffled(block.conv1[1](block.conv1[0](x)), 8), token)
    u = block.conv2[1](block.conv2[0](y))
    y = block.hyper3(shuffled(block.conv3[1](block.conv3[0](u)), 12), token)
    torch.testing.assert_close(block.mobile(x, token), u + block.conv4[1](block.conv4[0](y)))
    assert [block.conv1[0].stride, block.conv3[0].stride, block.conv3[0].groups] == [(2, 2), (1, 1), 12]


@torch.no_grad()
def test_order_inside_of_a_block():
    """Tokens see the block's input, the convolutions the first of the new tokens, and the pixels all of these."""
    block = randomise(InvertedBlock(8, 24, 8, token_dim=16, groups=1))
    x, tokens = torch.randn(2, 8, 6, 6), torch.randn(2, 3, 16)
    new = block.global_block(block.local_global(tokens, x))
    y, returned = block(x, tokens)
    torch.testing.assert_close(returned, new)
    torch.testing.assert_close(y, block.global_local(block.mobile(x, new[:, 0]), new))


@torch.no_grad()
def test_head_is_its_equations():
    model = tiny()
    x = images((32, 32), 2)
    maps, tokens = model.forward_features(x)
    token = model.local_global(tokens, maps[-1])[:, 0]
    head = model.classifier
    y = head.conv[2](head.conv[1](dealt(maps[-1], 2))).clamp(0, 6).mean(dim=(2, 3))
    y = torch.cat((y * hard_sigmoid(y), token), dim=1)
    y = head.fc[1](head.fc[0](y))
    torch.testing.assert_close(model(x), head.classifier[1](y * hard_sigmoid(y)))
    features = tiny(num_classes=0)
    assert features.load_state_dict(model.state_dict(), strict=False).unexpected_keys == [
        "classifier.classifier.1.weight",
        "classifier.classifier.1.bias",
    ]
    torch.testing.assert_close(features(x), y * hard_sigmoid(y))


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_52m"])
@torch.no_grad()
def test_order_of_the_tokens_matters_for_the_first_alone(name, one_thread):
    model, x = randomise(create_model(name)).double(), images((64, 64), 1).double()
    nn.init.normal_(model.tokens.weight)
    logits = model(x)
    model.tokens.weight.copy_(model.tokens.weight[[0, 2, 1]])
    torch.testing.assert_close(model(x), logits)
    model.tokens.weight.copy_(model.tokens.weight[[1, 0, 2]])
    assert (model(x) - logits).abs().max() > 1e-3 * logits.std()


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    model, x = tiny(), images((32, 48), 3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("name", ["mobile_former_52m", "mobile_former_96m"])
@torch.no_grad()
def test_pyramid(name, one_thread):
    model = randomise(create_model(name))
    pyramid = create_model(name, features_only=True).eval()
    lost = pyramid.load_state_dict(model.state_dict(), strict=False)
    assert not lost.missing_keys
    assert all(key.startswith(("local_global.", "classifier.")) for key in lost.unexpected_keys)
    x = images((64, 96), 2)
    maps = pyramid(x)
    assert len(maps) == 5
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // r, 96 // r) for c, r in zip(*pyramid.feature_info, strict=True)]
    for ours, full in zip(maps, model.forward_features(x)[0], strict=True):
        assert torch.equal(ours, full)
    # The coarsest map at each resolution, the stem's included where no block keeps it.
    first = model.stem(x) if name == "mobile_former_52m" else model.features[0](model.stem(x))
    assert torch.equal(maps[0], first)


@pytest.mark.parametrize("size", [(4, 4), (33, 65), (50, 46)])
@torch.no_grad()
def test_any_resolution(size):
    logits = tiny()(images(size, 2))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_every_parameter_learns():
    # What the keys of all tokens have in common, softmax takes away; and BatchNorm what a layer adds.
    silent = r"(global_local\.k|classifier\.fc\.0)\.bias$"
    # So many units that some of each dynamic ReLU's are awake.
    model = create_model("mobile_former_26m", **{**TINY, "token_dim": 128})
    assert_every_parameter_learns(model, images((32, 32), 4), silent=silent)


def test_dropout_acts_in_training_alone():
    model, x = tiny(drop_rate=0.5), images((32, 32), 2)
    assert torch.equal(model(x), model(x))
    model.classifier.classifier.train()
    assert not torch.equal(model(x), model(x))


def test_fresh_weights_are_those_of_the_release():
    model = create_model("mobile_former_96m")
    depthwise, pointwise = model.features[8].conv2[0].weight, model.features[8].conv1[0].weight
    assert depthwise.std().item() == pytest.approx((2 / (9 * 768)) ** 0.5, rel=0.05)
    assert pointwise.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.05)
    assert model.classifier.fc[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.classifier.fc[0].bias.any()
    assert model.tokens.weight.std().item() == pytest.approx(1, rel=0.2)
    logits = create_model("mobile_former_26m", **TINY).train()(images((32, 32), 8))
    assert 1e-3 < logits.std() < 1e3


@pytest.mark.slow
def test_model_exports():
    assert_exports(tiny(blocks=((1, 8, 4), (2, 24, 8))), images((32, 32), 2))


def test_model_is_captured():
    assert_captured(tiny(blocks=((1, 8, 4), (2, 24, 8))), images((32, 32), 2))


def test_double_precision():
    model, x = tiny(), images((32, 32), 1)
    torch.testing.assert_close(model(x).double(), model.double()(x.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", [slow(""), "module."])
def test_checkpoints_of_the_release_load(prefix, tmp_path):
    path = tmp_path / "mobile-former-26m.pth.tar"
    model = tiny()
    torch.save({"epoch": 449, "state_dict": {prefix + key: tensor for key, tensor in model.state_dict().items()}}, path)
    for options in ({}, {"features_only": True}, {"num_classes": 0}):
        loaded = create_model("mobile_former_26m", checkpoint=path, **{**TINY, **options})
        assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    assert load_checkpoint(tiny(num_classes=7), path, strict=False).missing == [
        "classifier.classifier.1.weight",
        "classifier.classifier.1.bias",
    ]
    with pytest.raises(ValueError, match="has 5 classes, the model 7; make it with num_classes=5, or load with strict=False"):
        load_checkpoint(tiny(num_classes=7), path)


def test_checkpoints_are_saved_as_the_release_has_them(tmp_path):
    path = tmp_path / "model.safetensors"
    model = create_model("mobile_former_26m")
    save_checkpoint(model, path)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "names": "release", "model": "mobile_former_26m"}
        assert set(file.keys()) == model.state_dict().keys()
    message = r"\(mobile_former_26m, in the names of release\) does not fit the model \(mobile_former_52m\): .*misshaped"
    with pytest.raises(ValueError, match=message):
        create_model("mobile_former_52m", checkpoint=path)
    message = r"\(mobile_former_26m, in the names of release\) does not fit the model \(mobilevitv2_050\), whose files .* timm or"
    with pytest.raises(ValueError, match=message):
        create_model("mobilevitv2_050", checkpoint=path)
    with pytest.raises(ValueError, match=r"expected format in \('release',\) for this model, got 'timm'"):
        save_checkpoint(model, path, "timm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "expected num_tokens to be a positive integer, got 0"),
        ({"token_dim": 18}, "expected token_dim to be a multiple of 4 heads, got 18"),
        ({"blocks": ((1, 8, 4),)}, r"expected at least 2 blocks \(1 or 2, hidden, channels\)"),
        ({"blocks": ((1, 8, 4), (3, 24, 8))}, r"expected at least 2 blocks \(1 or 2, hidden, channels\)"),
        ({"blocks": ((1, 8, 4), (2, 22, 8))}, "expected block 1 to have hidden channels that divide by 4 and 2, .*, got 22 and 8"),
        ({"blocks": ((1, 8, 4), (1, 24, 7))}, "expected block 1 to have .*, and channels that divide by 2, got 24 and 7"),
        ({"num_classes": -1}, "MobileFormer: expected num_classes >= 0, got -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_bad_images_are_refused():
    for shape in [(3, 64, 64), (1, 1, 64, 64)]:
        with pytest.raises(ValueError, match=r"MobileFormer: expected images \(B, 3, H, W\)"):
            tiny()(torch.rand(shape))


def test_config_makes_the_same_model():
    config = MobileFormerConfig(**{key: value for key, value in TINY.items() if key != "num_classes"})
    assert tiny().config == config
    assert MobileFormer(config).state_dict().keys() == tiny().state_dict().keys()
