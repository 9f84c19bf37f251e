"""Quantized networks as ONNX, run by ONNX Runtime."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from marks import slow
from test_cli import _complaint, _json
from test_graph_capture import random_statistics
from test_quant_search import images, small
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import run
from mvit_kernels.quant import Channels

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

Tensor = torch.Tensor


class Ops(nn.Module):
    """What the MobileViTs do not have: sums and concatenations of maps, a table, ReLU, GELU, a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(16, 8, 1)
        self.d = nn.Conv2d(8, 6, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = nn.functional.gelu(self.a(x)), torch.relu(self.b(x))
        y = self.c(torch.cat([a, b], 1)) + nn.functional.silu(a + b)
        return self.d(nn.functional.interpolate(y, (12, 12), mode="bilinear"))


@functools.cache
def quantized(name: str, bits: int, method: str = "minmax") -> mk.QuantizedModel:
    torch.manual_seed(0)
    model = small() if name == "small" else Ops().eval() if name == "ops" else None
    side = 16
    if model is None:
        model, side = random_statistics(mk.create_model(name, num_classes=7, depths=(1, 1, 1), blocks=(1, 1))), 64
    return mk.quantize(model, [images(4, side).abs()], mk.QuantConfig(bits, bits, method), progress=False)


def session(path: Path, results: list[str] | None = None, optimized: bool = True) -> Any:
    options, made = runtime.SessionOptions(), onnx.load(path)
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # see quant/export.py
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    for name in results or ():
        made.graph.output.append(onnx.ValueInfoProto(name=name))
    return runtime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def sqnr(exact: Tensor, y: Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (y - exact).square().sum()))


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize(("name", "method"), [("small", "minmax"), ("small", "qhyvit"), ("ops", "minmax")])
def test_every_result_is_within_a_step(name: str, method: str, bits: int, tmp_path: Path) -> None:
    """As long as what comes in is the same, integers differ by rounding alone: of the first, and of all on the average."""
    q, x = quantized(name, bits, method), images(3, 16, 5).abs()
    mk.export_onnx(q, tmp_path / "q.onnx")
    ours: dict[str, Tensor] = {}
    run(q.program(), x, lambda node, y: ours.__setitem__(node.name, y))
    names = [node.name for node in q.program() if ours[node.name].dtype == torch.uint8]
    found = session(tmp_path / "q.onnx", names, optimized=False).run(names, {"input": x.numpy()})
    differences = [(torch.from_numpy(y).int() - ours[each].int()).abs() for each, y in zip(names, found, strict=True)]
    assert not differences[0].any()
    assert differences[1].max() <= 1
    assert max(float(each.float().mean()) for each in differences) < 0.3
    for optimized in (False, True):
        y = torch.from_numpy(session(tmp_path / "q.onnx", optimized=optimized).run(None, {"input": x.numpy()})[0])
        assert y.shape == q(x).shape
        assert sqnr(q(x), y) > (35 if bits == 8 else 23)


def test_zero_points_and_channels_that_pairs_do_not_hold(tmp_path: Path) -> None:
    """In the network of the test above there are both."""
    q = quantized("small", 8, "qhyvit")
    wide = q.representations["far"]
    zeros = wide.zero_points if isinstance(wide, Channels) else (wide.zero_point,)  # type: ignore[union-attr]
    assert min(zeros) < 0
    assert any(isinstance(each, Channels) for each in q.representations.values())


@pytest.mark.parametrize("name", ["mobilevitv2_050", slow("mobilevit_xxs")])
def test_mobilevits(name: str, tmp_path: Path) -> None:
    q, x = quantized(name, 8), images(6, 64, 5).abs()
    mk.export_onnx(q, tmp_path / "q.onnx")
    y = torch.from_numpy(session(tmp_path / "q.onnx").run(None, {"input": x.numpy()})[0])
    assert sqnr(q(x), y) > 20
    made = onnx.load(tmp_path / "q.onnx")
    kinds = {node.op_type for node in made.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    weights = {tuple(each.dims) for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4}
    assert weights == {tuple(layer["weight"].shape) for layer in q.layers.values() if layer["weight"].ndim == 4}
    (image,) = made.graph.input
    assert [each.dim_param or each.dim_value for each in image.type.tensor_type.shape.dim] == ["batch", 3, 64, 64]


def results(q: mk.QuantizedModel, x: Tensor, path: Path) -> list[Tensor]:
    """Of ONNX Runtime, as the file is and rewritten by it."""
    mk.export_onnx(q, path)
    return [torch.from_numpy(session(path, optimized=each).run(None, {"input": x.numpy()})[0]) for each in (False, True)]


@pytest.mark.parametrize("name", ["efficientformer_l1", slow("efficientformerv2_s0"), "mobile_former_26m"])
@pytest.mark.slow
def test_relatives(name: str, tmp_path: Path) -> None:
    """Of random networks most images are near the border of two classes: those that are not stay where they are."""
    x = families.images(32)
    q = mk.quantize(families.network(name), [x], mk.QuantConfig(method="minmax"), progress=False)
    assert not {row.kind for row in q.report().rows} & {"torch", "conv2d", "linear", "attention", "pool_mixer"}
    exact = q(x)
    best, second = exact.topk(2).values.unbind(1)
    clear = (best - second).argsort(descending=True)[: len(x) // 3]
    assert len(exact[clear].argmax(1).unique()) > 2
    for y in results(q, x, tmp_path / "q.onnx"):
        assert sqnr(exact, y) > 15
        assert torch.equal(y[clear].argmax(1), exact[clear].argmax(1))


@pytest.mark.parametrize("name", [*map(slow, list(families.FAMILIES)[:-1]), "mobile_former_26m"])
@pytest.mark.parametrize("settings", [{"activation_bits": None}, slow({"skip": ("*",)}), slow({"skip": ("stem*", "*.1.*")})])
def test_what_stays_in_floats(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Between integers, or everywhere: then there is nothing to be rounded in other places."""
    x = families.images(8)
    q = mk.quantize(families.network(name), [x], mk.QuantConfig(method="minmax", **settings), progress=False)
    assert {row.kind for row in q.report().rows} & {"conv2d", "linear", "attention"}
    least = 5 if len(settings.get("skip", ())) > 1 else 90
    assert all(sqnr(q(x), y) > least for y in results(q, x, tmp_path / "q.onnx"))


@pytest.mark.parametrize("side", [80, 232])
def test_another_size(side: int, tmp_path: Path) -> None:
    """Odd maps are resized; 29 times the float32 next to 30 / 29, that of 232, is less than 30."""
    q, x = quantized("mobilevitv2_050", 8), images(2, side, 5).abs()
    mk.export_onnx(q, tmp_path / "q.onnx", (side, side))
    y = torch.from_numpy(session(tmp_path / "q.onnx").run(None, {"input": x.numpy()})[0])
    assert sqnr(q(x), y) > 20


class Resized(nn.Module):
    """A table, or a table beside another, and a resize of it: what follows is wrong by as much as the resize is."""

    def __init__(self, beside: bool, size: tuple[int, int], align_corners: bool) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(16 if beside else 8, 5)
        self.b, self.beside, self.size, self.align_corners = nn.Conv2d(3, 8, 3, 2, 1), beside, size, align_corners
        self.after = nn.Conv2d(16 if beside else 8, 16 if beside else 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = nn.functional.silu(a + b)
        y = torch.cat([y, nn.functional.silu(a + a)], 1) if self.beside else y
        y = nn.functional.interpolate(y, self.size, mode="bilinear", align_corners=self.align_corners)
        return self.head(self.after(y).mean((2, 3)))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("size", "align_corners"), [((58, 58), False), ((30, 30), False), ((30, 30), True), ((17, 41), True)])
def test_resizes_of_tables(beside: bool, size: tuple[int, int], align_corners: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    q = mk.quantize(Resized(beside, size, align_corners).eval(), [images(4, 58).abs()], mk.QuantConfig(method="minmax"), progress=False)
    kinds = [node.kind for node in q.program()]
    assert {"qlookup", "qresize"} <= set(kinds)
    assert ("cat" in kinds) == beside
    x = images(3, 58, 5).abs()
    mk.export_onnx(q, tmp_path / "q.onnx")
    for optimized in (False, True):
        y = torch.from_numpy(session(tmp_path / "q.onnx", optimized=optimized).run(None, {"input": x.numpy()})[0])
        assert sqnr(q(x), y) > 35


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = mk.create_model("mobilevitv2_050", num_classes=3).eval()
    q = mk.quantize(model, [images(2, 64).abs()], mk.QuantConfig(method="minmax"), progress=False)
    mk.save_quantized(q, tmp_path / "q", about={"model": "mobilevitv2_050", "num_classes": "3"})
    document = _json(capsys, "export", tmp_path / "q", "--output", tmp_path / "q.onnx")
    assert document["size"] == 64
    assert document["bytes"] == (tmp_path / "q.onnx").stat().st_size
    (tmp_path / "other").write_bytes(b"nothing")
    assert "expected a file of mvit-kernels quantize" in _complaint(capsys, "export", tmp_path / "other", "--output", tmp_path / "no")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"export_onnx: model: expected a quantized model, of mk.quantize, got Small"):
        mk.export_onnx(small(), tmp_path / "q.onnx")  # type: ignore[arg-type]

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.pool(self.a(x)))

    q = mk.quantize(small(), [images(2, 16)], mk.QuantConfig(method="minmax"), progress=False)
    for path, error in ((None, TypeError), ("", ValueError)):
        with pytest.raises(error, match=f"export_onnx: path: expected .*, got {path!r}"):
            mk.export_onnx(q, path)  # type: ignore[arg-type]
    for size in (64, (3, 64, 64)):
        with pytest.raises(ValueError, match=r"export_onnx: size: expected \(height, width\) or None, got"):
            mk.export_onnx(q, tmp_path / "q.onnx", size)  # type: ignore[arg-type]
    q = mk.quantize(Pooled().eval(), [images(2, 16)], mk.QuantConfig(method="minmax"), progress=False)
    with pytest.raises(ValueError, match=r"export_onnx: model: expected nodes of quantize, .*, got .*, which is torch's aten.max_pool2d"):
        mk.export_onnx(q, tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())
