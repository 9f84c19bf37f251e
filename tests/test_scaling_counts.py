"""Multiply-adds and parameters of MobileViTv2 at any factors: against counters that run the model, and the polynomial in the width."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import mvit_kernels as mk
from mvit_kernels.models import MobileViTv2Config, SeparableAttention
from mvit_kernels.models.mobilevitv2 import VARIANTS
from mvit_kernels.scaling import macs, parameters, polynomial, width_for

PUBLISHED = {"050": 465, "075": 1029, "100": 1813, "125": 2818, "150": 4044, "175": 5491, "200": 7158}  # millions, 256 x 256


class Counter(TorchFunctionMode):
    """Counts while a model runs: hooks on its layers, and the resizes of its maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs = 0
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(self._product)
            elif isinstance(module, SeparableAttention):
                module.register_forward_hook(self._attention)

    def _product(self, module, inputs, output):
        taps = module.weight[0].numel()
        self.macs += taps * output.numel()

    def _attention(self, module, inputs, output):
        self.macs += 2 * output.numel()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate:
            self.macs += 4 * result.numel()
        return result


def settings(count):
    draw = random.Random(0)
    return [
        {
            "resolution": draw.randint(32, 300),
            "width": draw.uniform(0.1, 2.2),
            "depth_ir": draw.uniform(0.3, 2.5),
            "depth_vit": draw.uniform(0.1, 2.0),
            "odd_maps": draw.choice(["resize", "resize", "drop"]),
        }
        for _ in range(count)
    ]


ALL = [("mobilevitv2_050", {}), ("mobilevitv2_200", {})] + [("mobilevitv2", options) for options in settings(12)]
ALL += [pytest.param("mobilevitv2_" + name, {}, marks=pytest.mark.slow) for name in PUBLISHED if name not in ("050", "200")]


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
def test_counts_equal_those_of_a_run(name, options):
    with torch.device("meta"):
        model = mk.create_model(name, num_classes=17, **options).eval()
        x = torch.empty(1, 3, model.config.resolution, model.config.resolution)
    assert parameters(model.config, 17) == sum(p.numel() for p in model.parameters())
    counter = Counter(model)
    with counter, torch.no_grad():
        model(x)
    assert macs(model.config, 17) == counter.macs


@pytest.mark.parametrize("name", ["mobilevitv2_050", "mobilevitv2_200"])
def test_counts_are_those_of_torch_and_attention(name):
    """torch's own counter knows convolutions and linear layers; attention itself is two products a value, on d channels of each token."""
    with torch.device("meta"):
        model = mk.create_model(name).eval()
        x = torch.empty(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    config, tokens = model.config, (32**2, 16**2, 8**2)
    attention = sum(2 * layers * dim * count for layers, dim, count in zip(config.layer_counts, config.dims, tokens, strict=True))
    assert macs(config) == counter.get_total_flops() // 2 + attention


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_variants_have_the_published_counts(name):
    config = VARIANTS[f"mobilevitv2_{name}"]
    assert round(macs(config) / 1e6) == PUBLISHED[name]
    factors = mk.create_model("mobilevitv2", resolution=256, width=config.width, depth_ir=1.0, depth_vit=1.0)
    assert factors.config == config
    assert factors.state_dict().keys() == mk.create_model(f"mobilevitv2_{name}").state_dict().keys()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=str)
@pytest.mark.parametrize("resolution", [224, 250])
def test_polynomial_is_exact_where_nothing_is_rounded(config, resolution):
    config = replace(config, resolution=resolution, depth_ir=1.5, depth_vit=0.5)
    a, b = polynomial(config)
    assert a * config.width**2 + b * config.width == macs(config)
    assert width_for(config, macs(config)) == pytest.approx(config.width, rel=1e-12)


def test_polynomial_of_the_original():
    a, b = polynomial(MobileViTv2Config())
    assert (a, b) == (1_765_801_984, 47_304_704)


@pytest.mark.parametrize(
    ("factors", "blocks", "layers"),
    [((1.0, 1.0), (1, 2), (2, 4, 3)), ((0.1, 0.1), (1, 1), (1, 1, 1)), ((1.25, 0.625), (1, 3), (1, 3, 2)), ((2.0, 1.5), (2, 4), (3, 6, 5))],
)
def test_depths_are_rounded_halves_up(factors, blocks, layers):
    config = MobileViTv2Config(depth_ir=factors[0], depth_vit=factors[1])
    assert (config.block_counts, config.layer_counts) == (blocks, layers)
    model = mk.create_model("mobilevitv2", width=0.25, depth_ir=factors[0], depth_vit=factors[1])
    assert len(model.stages[1]) == blocks[1]
    assert [len(stage[1].transformer) for stage in model.stages[2:]] == list(layers)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0.0}, "expected width > 0 and finite, got 0.0"),
        ({"depth_ir": -1.0}, "expected depth_ir > 0 and finite, got -1.0"),
        ({"depth_vit": float("nan")}, "expected depth_vit > 0 and finite, got nan"),
        ({"width": float("inf")}, "expected width > 0 and finite, got inf"),
        ({"resolution": 0}, "expected resolution to be a positive integer, got 0"),
        ({"resolution": 224.0}, "expected resolution to be a positive integer, got 224.0"),
    ],
)
def test_bad_factors_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        mk.create_model("mobilevitv2", **options)


def test_models_of_any_size_are_no_named_models():
    assert "mobilevitv2" not in mk.list_models()
    with pytest.raises(ValueError, match="expected the name of a model"):
        mk.create_model("mobilevit", width=0.4)


@torch.no_grad()
def test_checkpoints_of_any_size_save_and_load(tmp_path):
    options = {"width": 0.3, "depth_ir": 1.5, "depth_vit": 0.5}
    model = mk.create_model("mobilevitv2", num_classes=5, **options).eval()
    for format in ("timm", "transformers", "ml-cvnets"):
        path = tmp_path / f"{format}.safetensors"
        mk.save_checkpoint(model, path, format=format)
        again = mk.create_model("mobilevitv2", num_classes=5, checkpoint=path, **options).eval()
        x = torch.rand(1, 3, 70, 70)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
