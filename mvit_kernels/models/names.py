"""The names that timm, transformers, ml-cvnets and authors' releases give to the same tensors.

Ours are those of the family's first format: timm's, and those of its authors' release for Mobile-Former, which timm doesn't have.
MobileViT alone has several. Each row of its tables is one module; transformers and ml-cvnets may put a prefix before all of them.
{k} is a stage counted from 0, {K} the same counted from 1; {e} is {k} for a stage without transformer; {i} is a block,
{j} a transformer layer and {L} the number of them; {m} is a layer of an inverted residual and {c} one of a ConvNormAct, by
the words below. transformers keeps the rows of v1's qkv in three tensors, {qkv}.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

Format = Literal["timm", "transformers", "ml-cvnets", "release"]
Family = Literal["mobilevit", "mobilevitv2", "efficientformer", "efficientformerv2", "mobile_former"]
Row = tuple[str, str, str]  # timm, transformers, ml-cvnets

_COLUMNS: dict[Format, int] = {"timm": 0, "transformers": 1, "ml-cvnets": 2}
# What only that family's state_dict has.
_MARKERS: dict[Family, str] = {
    "mobilevit": ".attn.qkv.weight",
    "mobilevitv2": ".attn.qkv_proj.weight",
    "efficientformer": ".token_mixer.qkv.weight",
    "efficientformerv2": ".token_mixer.talking_head1.weight",
    "mobile_former": ".global_block.q.weight",
}

# The formats of each family, and the first tensor of a network in each, which tells whose names a file uses.
_MOBILEVIT: dict[Format, str] = {
    "timm": "stem.conv.weight",
    "transformers": "conv_stem.convolution.weight",
    "ml-cvnets": "conv_1.block.conv.weight",
}
STEMS: dict[Family, dict[Format, str]] = {
    "mobilevit": _MOBILEVIT,
    "mobilevitv2": _MOBILEVIT,
    "efficientformer": {"timm": "stem.conv1.weight"},
    "efficientformerv2": {"timm": "stem.conv1.conv.weight"},
    "mobile_former": {"release": "stem.0.weight"},
}

# What comes after the last stage.
_MOBILEVIT_HEADS: dict[Format, tuple[str, ...]] = {
    "timm": ("final_conv.", "head."),
    "transformers": ("conv_1x1_exp.", "classifier."),
    "ml-cvnets": ("conv_1x1_exp.", "classifier."),
}
HEADS: dict[Family, dict[Format, tuple[str, ...]]] = {
    "mobilevit": _MOBILEVIT_HEADS,
    "mobilevitv2": _MOBILEVIT_HEADS,
    "efficientformer": {"timm": ("norm.", "head.", "head_dist.")},
    "efficientformerv2": {"timm": ("norm.", "head.", "head_dist.")},
    "mobile_former": {"release": ("local_global.", "classifier.")},
}

# Our names of the layers that have a row for each class.
CLASSIFIERS: dict[Family, tuple[str, ...]] = {
    "mobilevit": ("head.fc",),
    "mobilevitv2": ("head.fc",),
    "efficientformer": ("head", "head_dist"),
    "efficientformerv2": ("head", "head_dist"),
    "mobile_former": ("classifier.classifier.1",),
}

_SHARED = (
    ("stem.{c}", "conv_stem.{c}", "conv_1.{c}"),
    ("stages.{e}.{i}.{m}.{c}", "encoder.layer.{e}.layer.{i}.{m}.{c}", "layer_{K}.{i}.block.{m}.{c}"),
    ("stages.{k}.0.{m}.{c}", "encoder.layer.{k}.downsampling_layer.{m}.{c}", "layer_{K}.0.block.{m}.{c}"),
    ("stages.{k}.1.norm", "encoder.layer.{k}.layernorm", "layer_{K}.1.global_rep.{L}"),
    ("stages.{k}.1.conv_proj.{c}", "encoder.layer.{k}.conv_projection.{c}", "layer_{K}.1.conv_proj.{c}"),
)
_V1 = (
    ("stages.{k}.1.conv_kxk.{c}", "encoder.layer.{k}.conv_kxk.{c}", "layer_{K}.1.local_rep.conv_3x3.{c}"),
    ("stages.{k}.1.conv_1x1", "encoder.layer.{k}.conv_1x1.convolution", "layer_{K}.1.local_rep.conv_1x1.block.conv"),
    ("stages.{k}.1.conv_fusion.{c}", "encoder.layer.{k}.fusion.{c}", "layer_{K}.1.fusion.{c}"),
    ("final_conv.{c}", "conv_1x1_exp.{c}", "conv_1x1_exp.{c}"),
    ("head.fc", "classifier", "classifier.fc"),
)
_V1_LAYER = (
    ("norm1", "layernorm_before", "pre_norm_mha.0"),
    ("attn.qkv", "attention.attention.{qkv}", "pre_norm_mha.1.qkv_proj"),
    ("attn.proj", "attention.output.dense", "pre_norm_mha.1.out_proj"),
    ("norm2", "layernorm_after", "pre_norm_ffn.0"),
    ("mlp.fc1", "intermediate.dense", "pre_norm_ffn.1"),
    ("mlp.fc2", "output.dense", "pre_norm_ffn.4"),
)
_V2 = (
    ("stages.{k}.1.conv_kxk.{c}", "encoder.layer.{k}.conv_kxk.{c}", "layer_{K}.1.local_rep.0.{c}"),
    ("stages.{k}.1.conv_1x1", "encoder.layer.{k}.conv_1x1.convolution", "layer_{K}.1.local_rep.1.block.conv"),
    ("head.fc", "classifier", "classifier.1"),
)
_V2_LAYER = (
    ("norm1", "layernorm_before", "pre_norm_attn.0"),
    ("attn.qkv_proj", "attention.qkv_proj.convolution", "pre_norm_attn.1.qkv_proj.block.conv"),
    ("attn.out_proj", "attention.out_proj.convolution", "pre_norm_attn.1.out_proj.block.conv"),
    ("norm2", "layernorm_after", "pre_norm_ffn.0"),
    ("mlp.fc1", "ffn.conv1.convolution", "pre_norm_ffn.1.block.conv"),
    ("mlp.fc2", "ffn.conv2.convolution", "pre_norm_ffn.3.block.conv"),
)
_LAYER = ("stages.{k}.1.transformer.{j}", "encoder.layer.{k}.transformer.layer.{j}", "layer_{K}.1.global_rep.{j}")
_WORDS: dict[str, dict[str, Row]] = {
    "c": {
        "conv": ("conv", "convolution", "block.conv"),
        "bn": ("bn", "normalization", "block.norm"),
    },
    "m": {
        "conv1_1x1": ("conv1_1x1", "expand_1x1", "exp_1x1"),
        "conv2_kxk": ("conv2_kxk", "conv_3x3", "conv_3x3"),
        "conv3_1x1": ("conv3_1x1", "reduce_1x1", "red_1x1"),
    },
}


def family_of(keys: Collection[str], function: str = "checkpoints") -> Family:
    """The family whose state_dict has these (our) keys. Raises ValueError, in the name of `function`, if it is none of them."""
    for family, marker in _MARKERS.items():
        if any(key.endswith(marker) for key in keys):
            return family
    raise ValueError(f"{function}: model: expected one of mk.list_models(), or timm's, got one whose state_dict has no such attention")


def own_format(family: Family) -> Format:
    """The format whose names are ours."""
    return next(iter(STEMS[family]))


def names_in(format: Format, keys: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Each of our state_dict's keys -> the name, or the names in order of rows, that `format` has for it.

    format: one that the family has. Raises ValueError for keys of a MobileViT and others among them.
    """
    family = family_of(keys)
    if family not in _PATTERNS:
        return {key: (key,) for key in keys}
    patterns = _PATTERNS[family]
    column = _COLUMNS[format]
    depths: dict[str, int] = {}
    for key in keys:
        if layer := re.match(r"stages\.(\d)\.1\.transformer\.(\d+)\.", key):
            depths[layer[1]] = max(depths.get(layer[1], 0), int(layer[2]) + 1)

    names = {}
    for key in keys:
        found = next(((match, row) for pattern, row in patterns if (match := pattern.fullmatch(key))), None)
        if found is None:
            raise ValueError(f"checkpoints: model: expected a MobileViT, got one whose state_dict has {key}")
        groups, template = found[0].groupdict(), found[1][column]
        words = {placeholder: _WORDS[placeholder][groups[placeholder]][column] for placeholder in groups.keys() & _WORDS}
        if stage := groups.get("k") or groups.get("e"):
            words |= {"K": str(int(stage) + 1), "L": str(depths.get(stage))}
        parts = ("query", "key", "value") if "{qkv}" in template else ("",)
        names[key] = tuple(f"{template}.{{tensor}}".format(**{**groups, **words, "qkv": part}) for part in parts)
    return names


def _patterns(*rows: Row, layer: tuple[Row, ...]) -> list[tuple[re.Pattern[str], Row]]:
    """For each row, what matches the timm names that it stands for."""
    groups = {"e": "[01]", "k": "[2-4]", "i": r"\d+", "j": r"\d+"}
    groups |= {placeholder: "|".join(words) for placeholder, words in _WORDS.items()}
    groups = {placeholder: f"(?P<{placeholder}>{pattern})" for placeholder, pattern in groups.items()}
    layers = [(f"{_LAYER[0]}.{a}", f"{_LAYER[1]}.{b}", f"{_LAYER[2]}.{c}") for a, b, c in layer]
    return [(re.compile(row[0].replace(".", r"\.").format(**groups) + r"\.(?P<tensor>\w+)"), row) for row in (*rows, *layers)]


_PATTERNS: dict[Family, list[tuple[re.Pattern[str], Row]]] = {
    "mobilevit": _patterns(*_SHARED, *_V1, layer=_V1_LAYER),
    "mobilevitv2": _patterns(*_SHARED, *_V2, layer=_V2_LAYER),
}
