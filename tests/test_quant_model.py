"""mk.quantize, mk.convert, and quantized networks in files."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import needs_native
from safetensors.torch import load_file, save_file
from test_graph_capture import random_statistics
from test_quant_program import sqnr
from torch import nn

import mvit_kernels as mk
from mvit_kernels.quant import Byte
from mvit_kernels.quant.representation import byte_of

Tensor = torch.Tensor
MINMAX = mk.QuantConfig(method="minmax")


@functools.cache
def network(name: str) -> nn.Module:
    """Fewer layers than the real one, of every kind."""
    torch.manual_seed(0)
    return random_statistics(mk.create_model(name, num_classes=7, depths=(1, 1, 1), blocks=(1, 2)))


@functools.cache
def quantized(name: str) -> mk.QuantizedModel:
    torch.manual_seed(1)
    return mk.quantize(network(name), [torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64)], MINMAX, progress=False)


class Plain(nn.Module):
    """Convolutions with ops between them that are no nodes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.wide = nn.Conv2d(8, 8, 5, padding=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = torch.relu(self.wide(self.body(x) + x))
        return {"logits": self.head(x.mean((2, 3))), "map": x}


@functools.cache
def plain() -> nn.Module:
    torch.manual_seed(0)
    return random_statistics(Plain())


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(sum(size)))


# --- results ---


@needs_native
def test_the_model_stays_and_its_conversion_has_the_same_bits() -> None:
    model = network("mobilevitv2_050")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q = quantized("mobilevitv2_050")
    assert not list(q.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fast, x = mk.convert(q), images(3, 3, 64, 64)
    y = q(x)
    assert y.dtype == torch.float32
    assert not y.requires_grad
    assert torch.equal(fast(x), y)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), y)
    assert fast.layers["stem.conv"]["weight"] is q.layers["stem.conv"]["weight"]
    with torch.no_grad():
        assert sqnr(model(x), y) > 20
        assert torch.equal(fast.train()(x.double()), y)
    assert not fast.training
    assert fast(x[:0]).shape == q(x[:0]).shape == (0, 7)


@needs_native
@pytest.mark.parametrize(("name", "size"), [("mobilevitv2_050", (72, 56)), ("mobilevit_xxs", (80, 72))])
def test_other_sizes_take_scales_by_name(name: str, size: tuple[int, int]) -> None:
    q, x = quantized(name), images(2, 3, *size)
    y = q(x)
    assert torch.equal(mk.convert(q)(x), y)
    with torch.no_grad():
        assert sqnr(network(name)(x), y) > 10
    assert q.program((3, *size)) is q.program((3, *size))
    floats = {row.kind for row in q.report((3, *size)).rows if row.kind in ("conv2d", "layer_norm", "group_norm", "linear")}
    assert not floats
    resized = [node for node in q.program((3, *size)) if node.kind == "qresize"]
    assert resized
    for row in q.report().rows:
        if row.node == resized[0].inputs[0]:
            assert Byte(row.scale, row.zero_point, row.bits) == q.representations[row.node]


@needs_native
def test_feature_pyramids() -> None:
    model = random_statistics(mk.create_model("mobilevitv2_050", features_only=True, depths=(1, 1, 1)))
    x = images(2, 3, 64, 64)
    q = mk.quantize(model, [x], MINMAX, progress=False)
    with torch.no_grad():
        expected = model(x)
    y, fast = q(x), mk.convert(q)(x)
    assert type(y) is type(expected)
    for exact, a, b in zip(expected, y, fast, strict=True):
        assert a.shape == exact.shape
        assert torch.equal(a, b)
        assert sqnr(exact, a) > 15


@needs_native
def test_a_network_with_ops_that_only_torch_has() -> None:
    x = images(2, 3, 33, 40)
    q = mk.quantize(plain(), [x], MINMAX, progress=False)
    with torch.no_grad():
        expected = plain()(x)
    y, fast = q(x), mk.convert(q)(x)
    assert list(y) == ["logits", "map"]
    for name, exact in expected.items():
        assert torch.equal(y[name], fast[name])
        assert sqnr(exact, y[name]) > 25
    kinds = {row.node: row.kind for row in q.report().rows}
    assert kinds["stem.0"] == kinds["body.0"] == kinds["body.2"] == "qconv2d"
    assert kinds["head"] == "qlinear"
    assert sum(kind == "torch" for kind in kinds.values()) == 2  # max_pool and the 5x5 convolution


@pytest.mark.slow
def test_models_of_timm() -> None:
    timm = pytest.importorskip("timm")
    model = random_statistics(timm.create_model("mobilevitv2_050", num_classes=7))
    x = images(2, 3, 64, 64)
    q = mk.quantize(model, [x], MINMAX, progress=False)
    assert q.report().float_nodes == 0
    with torch.no_grad():
        assert sqnr(model(x), q(x)) > 20


@pytest.mark.slow
def test_models_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileViTV2Config(width_multiplier=0.5, num_labels=7)
    model = random_statistics(transformers.MobileViTV2ForImageClassification(config))
    x = images(2, 3, 64, 64)
    q = mk.quantize(model, lambda each: each(pixel_values=x), MINMAX, progress=False)
    y = q(x)
    with torch.no_grad():
        expected = model(x)
    assert type(y) is type(expected)
    assert sqnr(expected.logits, y.logits) > 20
    assert torch.equal(mk.convert(q)(x).logits, y.logits)


# --- calibrations ---


def test_every_form_of_a_calibration() -> None:
    batches = [images(2, 3, 16, 16), images(1, 3, 16, 16) * 2]
    expected = mk.quantize(plain(), batches, MINMAX, progress=False).representations
    seen = []

    def run(model: nn.Module) -> None:
        assert model is plain()
        for batch in batches:
            model(x=batch)

    def one_memory() -> Iterator[Tensor]:
        """As loaders do that fill the same memory for every batch."""
        memory = torch.empty(2, 3, 16, 16)
        for batch in batches:
            yield memory[: len(batch)].copy_(batch)

    for calibration in (iter(batches), [(batch, torch.zeros(batch.shape[0])) for batch in batches], run, one_memory()):
        seen.append(mk.quantize(plain(), calibration, MINMAX, progress=False).representations)
    assert seen == [expected] * 4
    assert expected["input"] == byte_of(0.0, 2 * float(images(1, 3, 16, 16).max()), 8)
    assert not plain()._forward_pre_hooks


def test_images_in_any_memory_calibrate_alike() -> None:
    x = images(2, 3, 16, 16)
    expected, found = (
        mk.quantize(network("mobilevitv2_050"), [x.contiguous(memory_format=each)], MINMAX, progress=False)
        for each in (torch.contiguous_format, torch.channels_last)
    )
    assert found.representations == expected.representations
    assert found.calibration == expected.calibration


def test_images_that_are_all_zero() -> None:
    q = mk.quantize(plain(), [torch.zeros(1, 3, 16, 16)], MINMAX, progress=False)
    assert torch.isfinite(q(images(1, 3, 16, 16))["logits"]).all()


@needs_native
@pytest.mark.parametrize("method", ["minmax", "qhyvit"])
@pytest.mark.parametrize("gamma", [0.0, 1e-30])
def test_what_is_always_zero_leaves_biases_as_they_are(gamma: float, method: str) -> None:
    """A norm that was never trained, or pruned, gives nothing, or next to nothing; rows without weights read it, too."""
    torch.manual_seed(0)
    norm, after = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), after, nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        norm.weight.fill_(gamma)
        after.weight.mul_(1e5)
        after.bias.mul_(100)
        after.weight[:2] = 0
        after.bias[0] = 0
        x = images(2, 3, 8, 8)
        exact = model(x)
    q = mk.quantize(model, [x], mk.QuantConfig(method=method), progress=False)
    assert sqnr(exact, q(x)) > 40
    assert torch.equal(mk.convert(q)(x), q(x))
    assert torch.equal(mk.compile(q, x)(x), q(x))


def test_report() -> None:
    report = quantized("mobilevitv2_050").report()
    text, table = str(report), report.to_dict()
    assert text.splitlines()[0].split() == ["node", "kind", "result", "weight_bits", "bits", "scale", "zero_point"]
    assert text.splitlines()[-1].endswith("nodes in integers, 0 in floats, 1 conversions between them")
    assert len(text.splitlines()) == len(table["rows"]) + 2
    assert json.loads(json.dumps(table)) == table | {"rows": list(table["rows"])}
    rows = {row["node"]: row for row in table["rows"]}
    assert rows["stem.conv"]["kind"] == "qconv2d"
    assert (rows["stem.conv"]["result"], rows["stem.conv"]["bits"], rows["stem.conv"]["weight_bits"]) == ("uint8", 8, 8)
    assert rows["stages.2.1.transformer.0.attn.out_proj"]["bits"] == 16
    assert rows["head.fc"]["result"] == "float32"


# --- files ---


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 6, "skip": ("stem.*",), "overrides": {"head": {"weight_bits": 8}}}], ids=str)
def test_a_file_gives_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    x = images(2, 3, 16, 16)
    q = mk.quantize(plain(), [x], mk.QuantConfig(method="minmax", **settings), progress=False)
    path = tmp_path / "network.safetensors"
    mk.save_quantized(q, path)
    other = copy.deepcopy(plain())
    for parameter in other.parameters():
        nn.init.constant_(parameter, 0.5)
    for model in (plain(), other):  # weights are those of the file
        loaded = mk.load_quantized(model, path)
        assert loaded.config == q.config
        assert loaded.representations == q.representations
        assert torch.equal(loaded(x)["logits"], q(x)["logits"])
    odd = images(1, 3, 22, 17)
    assert torch.equal(mk.load_quantized(plain(), path)(odd)["map"], q(odd)["map"])
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_file_of_a_mobilevit(tmp_path: Path) -> None:
    q, x = quantized("mobilevitv2_050"), images(2, 3, 64, 64)
    mk.save_quantized(q, tmp_path / "network")
    assert torch.equal(mk.load_quantized(network("mobilevitv2_050"), tmp_path / "network")(x), q(x))


def test_copies() -> None:
    x = images(2, 3, 16, 16)
    q = mk.quantize(plain(), [x], MINMAX, progress=False)
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(other(x)["logits"], q(x)["logits"])


def test_files_that_are_none(tmp_path: Path) -> None:
    q = mk.quantize(plain(), [images(2, 3, 16, 16)], MINMAX, progress=False)
    path, bad = tmp_path / "network", tmp_path / "bad"
    mk.save_quantized(q, path)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-5], "damaged"),
        (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "is damaged"),
        (whole.replace(b"uint8", b"uint9", 1).replace(b'\\"zero_point\\": 0', b'\\"zero_point\\": 1', 1), "is damaged"),
        (b"", "damaged or none"),
        (b"PK" + whole, "damaged or none"),
        (whole.replace(b"mvit_kernels.quantized", b"mvit_kernels.quantizer"), "of format 'mvit_kernels.quantizer'"),
        (whole.replace(b'"version":"1"', b'"version":"2"'), "expected version 1 of the format, got '2'"),
    ):
        assert damaged != whole
        bad.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            mk.load_quantized(plain(), bad)
    save_file(load_file(path), bad)
    with pytest.raises(ValueError, match=r"got .*bad of format None"):
        mk.load_quantized(plain(), bad)
    with pytest.raises(FileNotFoundError, match=r"load_quantized: path: expected a file, got .*nothing"):
        mk.load_quantized(plain(), tmp_path / "nothing")


def test_models_that_are_another(tmp_path: Path) -> None:
    path = tmp_path / "network"
    mk.save_quantized(mk.quantize(plain(), [images(2, 3, 16, 16)], MINMAX, progress=False), path)
    wide = Plain().eval()
    wide.head = nn.Linear(8, 6)
    with pytest.raises(ValueError, match=r"load_quantized: model: expected head of .*\(5, 8\).*, got .*\(6, 8\)"):
        mk.load_quantized(wide, path)
    renamed = Plain().eval()
    renamed.body = nn.Sequential(nn.Identity(), *renamed.body)
    with pytest.raises(ValueError, match=r"load_quantized: model: expected the \d+ layers of .*, got a model with none of body.0"):
        mk.load_quantized(renamed, path)
    with pytest.raises(ValueError, match="load_quantized: model: expected a model in evaluation"):
        mk.load_quantized(Plain(), path)


# --- bad input ---


def test_bad_configurations() -> None:
    for settings, error, message in (
        ({"weight_bits": 4}, ValueError, "QuantConfig: weight_bits: expected 8 or 6, got 4"),
        ({"activation_bits": 7}, ValueError, "QuantConfig: activation_bits: expected 8, 6 or None, got 7"),
        ({"weight_bits": 8.0}, ValueError, "QuantConfig: weight_bits: expected 8 or 6, got 8.0"),
        ({"weight_bits": None}, ValueError, "QuantConfig: weight_bits: expected 8 or 6, got None"),
        ({"weight_bits": "8"}, ValueError, "QuantConfig: weight_bits: expected 8 or 6, got '8'"),
        ({"activation_bits": 6.0}, ValueError, "QuantConfig: activation_bits: expected 8, 6 or None, got 6.0"),
        ({"activation_bits": True}, ValueError, "QuantConfig: activation_bits: expected 8, 6 or None, got True"),
        ({"method": "best guess"}, ValueError, "QuantConfig: method: expected one of qhyvit, .*, got 'best guess'"),
        ({"full": 1}, TypeError, "QuantConfig: full: expected True or False, got 1"),
        ({"skip": "stem"}, TypeError, "QuantConfig: skip: expected a sequence of patterns, got 'stem'"),
        ({"skip": None}, TypeError, "QuantConfig: skip: expected a sequence of patterns, got None"),
        ({"skip": ["stem", 1]}, TypeError, r"QuantConfig: skip: expected a sequence of patterns, got \['stem', 1\]"),
        ({"overrides": {1: {"weight_bits": 6}}}, TypeError, "QuantConfig: overrides: expected patterns of node names as keys, got 1"),
        (
            {"overrides": {"stem": {"activation_bits": 8.0}}},
            ValueError,
            r"QuantConfig: overrides\['stem'\]: activation_bits: expected 8, 6 or None, got 8.0",
        ),
        ({"overrides": {"stem": {"bits": 8}}}, ValueError, r"QuantConfig: overrides\['stem'\]: expected a dict of weight_bits"),
        ({"overrides": {"stem": {"weight_bits": 5}}}, ValueError, r"QuantConfig: overrides\['stem'\]: weight_bits: expected 8 or 6, got 5"),
        ({"overrides": ["stem"]}, TypeError, r"QuantConfig: overrides: expected a dict of patterns, got \['stem'\]"),
        ({"seed": 0.5}, TypeError, "QuantConfig: seed: expected an integer, got 0.5"),
    ):
        with pytest.raises(error, match=message):
            mk.QuantConfig(**settings)
    config = mk.QuantConfig(method="minmax", skip=["a"], overrides={"b*": {"weight_bits": 6}, "bc": {"weight_bits": 8}})
    assert mk.QuantConfig(skip=(each for each in ("a", "b"))).skip == ("a", "b")
    assert mk.QuantConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert [config.weight_bits_of(name) for name in ("a", "ba", "bc")] == [8, 6, 8]


def test_bad_calls() -> None:
    model, x = plain(), images(1, 3, 16, 16)
    with pytest.raises(TypeError, match="quantize: config: expected a QuantConfig, got dict"):
        mk.quantize(model, [x], {})
    with pytest.raises(TypeError, match=r"quantize: model: expected a torch.nn.Module, got int"):
        mk.quantize(3, [x], MINMAX)
    with pytest.raises(ValueError, match="quantize: model: expected a model in evaluation"):
        mk.quantize(Plain(), [x], MINMAX)
    for calibration, error, got in (
        (x, TypeError, "a tensor"),
        (3, TypeError, "int"),
        ([], ValueError, "none"),
        ([x[0]], ValueError, r"torch.float32 of shape \(3, 16, 16\)"),
        ([x.int()], ValueError, "torch.int32"),
        (["image"], ValueError, "str"),
        ([x, x[..., :8]], ValueError, r"\(3, 16, 8\), \(3, 16, 16\)"),
        ([x[:0]], ValueError, "none"),
        (lambda each: None, ValueError, "none"),
        ([x / 0], ValueError, "others in the images"),
    ):
        with pytest.raises(error, match=f"quantize: calibration: expected .*got {got}"):
            mk.quantize(model, calibration, MINMAX, progress=False)
    with pytest.raises(TypeError, match="quantize: loss: expected a function of two results or None, got 'mse'"):
        mk.quantize(model, [x], MINMAX, loss="mse")
    with pytest.raises(ValueError, match=r"quantize: model: expected weights in memory, got .* on the meta device"):
        mk.quantize(Plain().eval().to("meta"), [x], MINMAX)
    q = mk.quantize(model, [x], MINMAX, progress=False)
    with pytest.raises(TypeError, match="quantize: model: expected a float model, got one that is quantized already"):
        mk.quantize(q, [x], MINMAX)
    for bad in (x[0], x.int(), x[:, :2], x[..., :0], "image"):
        with pytest.raises(ValueError, match=r"QuantizedModel: x: expected float images \(B, 3, H, W\), got"):
            q(bad)
    for path, error in ((None, TypeError), (3, TypeError), ("", ValueError)):
        with pytest.raises(error, match=r"save_quantized: path: expected .*, got "):
            mk.save_quantized(q, path)
        with pytest.raises(error, match=r"load_quantized: path: expected .*, got "):
            mk.load_quantized(model, path)
    for size in ((16, 16), 16, (4, 16, 16), (3, 16, 0), (3, 16.0, 16), [3, 16, 16]):
        with pytest.raises(ValueError, match=r"QuantizedModel: report: expected a size \(channels, .*, as \(3, height, width\), got"):
            q.report(size)
    for function, name in ((mk.convert, "convert"), (functools.partial(mk.save_quantized, path="x"), "save_quantized")):
        with pytest.raises(TypeError, match=f"{name}: model: expected a quantized model, .*got Plain"):
            function(model)


def test_full_is_what_version_1_has_anyway() -> None:
    x = images(1, 3, 64, 64)
    q = mk.quantize(network("mobilevit_xxs"), [x], mk.QuantConfig(method="minmax", full=True), progress=False)
    assert torch.equal(q(x), mk.quantize(network("mobilevit_xxs"), [x], MINMAX, progress=False)(x))


def test_sizes_are_forgotten_but_for_that_of_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvit_kernels.quant import model as module

    monkeypatch.setattr(module, "MOST_SIZES", 2)
    qmodel = mk.quantize(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval(), [torch.randn(2, 3, 8, 8)], progress=False)
    calibrated = qmodel.program()
    for side in (9, 10, 11, 12, 9):
        qmodel(torch.randn(1, 3, side, side))
    assert list(qmodel._programs) == [(3, 8, 8), (3, 12, 12), (3, 9, 9)]
    assert qmodel.program() is calibrated


def test_a_state_without_its_integers_is_refused() -> None:
    qmodel = mk.quantize(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), [torch.randn(2, 3, 8, 8)], progress=False)
    with pytest.raises(TypeError, match=r"mk\.save_quantized"):
        nn.Sequential(qmodel).state_dict()
    with pytest.raises(TypeError, match=r"mk\.load_quantized"):
        qmodel.load_state_dict({})


@needs_native
def test_a_quantized_model_inside_of_another_is_not_compiled() -> None:
    x = torch.randn(2, 3, 8, 8)
    qmodel = mk.quantize(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), [x], progress=False)
    with pytest.raises(ValueError, match="got one with a quantized one inside"):
        mk.compile(nn.Sequential(qmodel, nn.Flatten()).eval(), x)
