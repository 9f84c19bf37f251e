"""PTQ4ViT, FQ-ViT and RepQ-ViT: what each is for holds on tensors that need it, and networks with them are simulated."""

from __future__ import annotations

import functools
import math
import pickle
from pathlib import Path

import pytest
import torch
from op_checks import needs_native
from test_quant_search import images, mobilevit, quantized, small

import mvit_kernels as mk
from mvit_kernels.graph import run
from mvit_kernels.graph.interpreter import evaluate
from mvit_kernels.quant import Byte, Channels
from mvit_kernels.quant.affine import fake_quantize
from mvit_kernels.quant.histogram import BINS, Histogram
from mvit_kernels.quant.layout import NORMS, PRODUCTS
from mvit_kernels.quant.methods import fqvit, ptq4vit, repqvit
from mvit_kernels.quant.representation import byte_of, from_json, to_json
from mvit_kernels.quant.simulated import LogIntSoftmax, RootLogSoftmax, Twin, TwinSoftmax

Tensor = torch.Tensor
PUBLISHED = ("ptq4vit", "fqvit", "repqvit")
NETWORKS = ("mobilevit_xxs", pytest.param("mobilevitv2_050", marks=pytest.mark.slow))
SOFTMAX = {"ptq4vit": TwinSoftmax, "fqvit": LogIntSoftmax, "repqvit": RootLogSoftmax}
REASONS = {
    "ptq4vit": {"a twin uniform quantizer", "softmax by TwinSoftmax"},
    "fqvit": {"a stream of bytes with a scale for each channel", "softmax by LogIntSoftmax"},
    "repqvit": {"a scale for each channel where its kernel has one", "softmax by RootLogSoftmax"},
}
simulated = quantized


@functools.cache
def found(method: str) -> mk.QuantizedModel:
    return mk.quantize(small(), [images(4, 16), images(4, 16, 1)], mk.QuantConfig(6, 6, method), progress=False)


def reasons(q: mk.QuantizedModel, size: tuple[int, int, int] | None = None) -> set[str]:
    return {reason for each in q.simulation_only(size).values() for reason in each.split(" and ")}


def squared(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


# --- quantizers ---


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_twin_uniform_is_nearer_than_symmetric_behind_activations(name: str, bits: int) -> None:
    """Equation 7 of the paper against its uniform quantizer, with the same step above 0."""
    x = torch.linspace(-8, 8, 20001)
    x = torch.nn.functional.silu(x) if name == "silu" else torch.nn.functional.gelu(x)
    assert float(-x.min()) == pytest.approx(ptq4vit.LEAST[name], abs=1e-6)
    twin, plain = ptq4vit._twin(ptq4vit.LEAST[name], 8.0, bits), ptq4vit._symmetric(float(x.min()), 8.0, bits)
    assert twin.positive == plain.scale
    negative = x < 0
    y, z = twin.fake(x), fake_quantize(plain, x[None])[0]
    assert squared(y[negative], x[negative]) < 0.01 * squared(z[negative], x[negative])
    assert torch.equal(y[~negative], z[~negative])
    assert (y - x)[negative].abs().max() <= 0.501 * twin.negative  # nothing is cut off there
    assert torch.equal(twin.fake(y), y)
    assert len(y.unique()) <= 2**bits


@pytest.mark.parametrize("bits", [8, 6])
def test_twin_softmax_keeps_small_weights(bits: int) -> None:
    scores = 3 * torch.randn(50, 256)
    weights, most = scores.softmax(-1), 2 ** (bits - 1) - 1
    errors = [squared(TwinSoftmax(split, bits)(scores), weights) for split in ptq4vit.SPLITS]
    assert min(errors) < 0.2 * squared((weights * most).round() / most, weights)
    quantizer = TwinSoftmax(2.0**-4, bits)
    y = quantizer(scores)
    step = torch.where(weights < quantizer.split, quantizer.split, 1.0) / most
    assert ((y - weights).abs() <= 0.501 * step).all()  # no weight is in both ranges
    assert len(y.unique()) <= 2**bits


def oracle(scores: list[int], scale: float, bits: int) -> list[float]:
    """Log-int-softmax of one row of integer scores, in Python's integers."""
    b, c, n = math.floor(0.96963238 / 0.35815147 / scale), max(math.floor(1 / 0.35815147 / scale**2), 1), 30
    ln2, exponentials = math.floor(-0.6931 / scale), []
    for x in (max(each - max(scores), n * ln2) for each in scores):
        s = x // ln2
        r = x - s * ln2
        exponentials.append(max((r * (r + b) + c) << (n - s), 0))
    found = []
    for each in exponentials:
        quotient = round(sum(exponentials) / each) if each else math.inf
        q = 0
        while quotient >= 1.5 * 2**q:
            q += 1
            if q == 2**bits:
                break
        found.append(0.0 if q == 2**bits else 2.0**-q)
    return found


@pytest.mark.parametrize("scale", [0.004, 0.05, 0.3, 0.9, 5.0])
def test_log_int_softmax_is_that_of_integers(scale: float) -> None:
    q = torch.randint(0, 256, (40, 25))
    q[0], q[1], q[2, 1:] = 7, 0, 0  # all the same; one that is everything
    softmax = LogIntSoftmax(scale, 100, 8)
    y = softmax((q - 100) * scale)
    assert y.tolist() == [oracle(row.tolist(), scale, 4) for row in q]
    assert y[0].unique().tolist() == [2.0**-5]  # a 25th each: from 24 on 32 is nearer than 16
    assert torch.equal(softmax((q - 100) * scale + 1e6), torch.full_like(y, 2.0**-5))  # beyond the range of scores all are alike


def test_log_int_softmax_is_near_softmax_and_nearer_than_four_uniform_bits() -> None:
    scores, values = torch.randn(8, 64, 64), torch.randn(8, 64, 16)
    byte = byte_of(float(scores.min()), float(scores.max()), 8)
    weights, y = scores.softmax(-1), LogIntSoftmax(byte.scale, byte.zero_point, 8)(scores)
    large = weights > 2.0**-15
    ratio = (y / weights)[large]
    assert 0.6 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.6
    exact, uniform = weights @ values, (weights * 15).round() / 15 @ values
    assert squared(y @ values, exact) < 0.3 * squared(uniform, exact)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_root_log_softmax(bits: int) -> None:
    scores = 2 * torch.randn(50, 256).double()
    weights = scores.softmax(-1)
    largest = float(weights.quantile(0.999))
    softmax = RootLogSoftmax(largest, bits)
    y = softmax(scores)
    inside = (weights <= largest) & (weights > largest * 2.0 ** (-(2**bits - 1.5) / 2))
    assert ((y / weights)[inside].log2().abs() <= 0.2501).all()
    assert (y[weights > largest] == largest).all()
    assert (y[weights < largest * 2.0 ** (-(2**bits) / 2)] == 0).all()
    assert torch.equal(softmax.quantized(y), y)
    # By base 2 and the parity of q, as section 3.4 has it.
    q = (-2 * (weights / largest).log2()).round().clamp_min(0)
    parity = 2.0 ** -(q / 2).ceil() * ((q % 2) * (math.sqrt(2) - 1) + 1) * largest
    assert torch.allclose(y, torch.where(q < 2**bits, parity, 0.0), rtol=1e-12)
    assert softmax.quantized(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_powers_of_two_follow_channels() -> None:
    sizes = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.01, 1.0])
    x = (2 * torch.rand(4, 6, 10, 10) - 1) * sizes[:, None, None]
    byte = byte_of(float(x.min()), float(x.max()), 6)
    found = fqvit.power_of_two(byte, fqvit.channel_errors(x, byte))
    assert [round(math.log2(scale / byte.scale)) for scale in found.scales] == [0, -1, -2, -3, -3, 0]
    assert set(found.zero_points) == {byte.zero_point}
    one, several = ((fake_quantize(each, x) - x).square().sum((0, 2, 3)) for each in (byte, found))
    assert (several[1:4] < torch.tensor([0.35, 0.1, 0.03]) * one[1:4]).all()
    assert torch.equal(several[[0, 5]], one[[0, 5]])
    halves = sum(fqvit.channel_errors(each, byte) for each in x.split(2))
    assert torch.allclose(halves, fqvit.channel_errors(x, byte))


def test_repqvit_cuts_the_tail_with_the_least_error() -> None:
    x = torch.randn(200000, dtype=torch.float64)
    x[:3] = 60.0
    low, high = float(x.min()), float(x.max())
    picture = Histogram(low, high, torch.histc(x, BINS, low, high))
    byte = repqvit.cut([picture], 6, 0.0)
    assert byte.scale < 0.3 * byte_of(low, high, 6).scale
    ends = [byte_of(*picture.quantiles(tail), 6) for tail in repqvit.TAILS]

    def fake(each: Byte) -> Tensor:
        return fake_quantize(each, x[None].float())[0]

    assert byte in ends
    assert squared(fake(byte), x) <= min(squared(fake(each), x) for each in ends) * 1.01
    # A range without 0 keeps it where zero-points may be that far.
    far = Histogram(low + 80, high + 80, picture.counts)
    assert repqvit.cut([far], 6, 1000.0).scale == pytest.approx(byte.scale, rel=1e-3)
    assert repqvit.cut([far], 6, 1000.0).zero_point < 0
    assert repqvit.cut([far], 6, 100.0).zero_point == 0


def test_as_json() -> None:
    for each in (Twin(0.1, 0.2, 6), TwinSoftmax(0.25, 8), LogIntSoftmax(0.1, 3, 6), RootLogSoftmax(0.5, 6)):
        assert from_json(to_json(each)) == each


# --- networks ---


def test_repqvit_is_exact_before_rounding() -> None:
    """Section 3.3: gamma / r and beta / r - b, columns of the next weight times r, and its bias more by W r b are the same network, and
    one quantizer of what the norm then gives is that of channels."""
    q = simulated("mobilevit_xxs", "repqvit")
    program = q._float_program(q.size)
    name, channels = next((name, each) for name, each in q.representations.items() if isinstance(each, Channels))
    reader = next(node for node in program if node.kind == "conv2d" and node.inputs[0] == name)
    assert program[name].kind in NORMS
    scales, zeros = torch.tensor(channels.scales).double(), torch.tensor(channels.zero_points).double()
    one, zero = scales.mean(), zeros.mean().round()
    r, b = scales / one, one * (zero - zeros)
    x = evaluate(program[name], [torch.randn(2, len(scales), 8, 8).double()])
    weight, bias = (reader.weights[key].double() for key in ("weight", "bias"))
    scaled = weight * r[:, None, None]
    moved = bias + torch.einsum("ncyx,c->n", scaled, b)
    y = x / r[:, None, None] - b[:, None, None]
    exact = torch.nn.functional.conv2d(x, weight, bias)
    assert (torch.nn.functional.conv2d(y, scaled, moved) - exact).abs().max() < 1e-12 * exact.abs().max()
    assert len(set(channels.scales)) > 1
    code = ((y / one).round() + zero).clamp(0, 2**channels.bits - 1)
    of_channels = ((x / scales[:, None, None]).round() + zeros[:, None, None]).clamp(0, 2**channels.bits - 1)
    assert torch.equal(code, of_channels)
    assert len(code.unique()) > 20


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_quantized(name: str, method: str) -> None:
    """What a product of a simulation multiplies is on the grid of its quantizer, and its weights are integers times their scales."""
    q = simulated(name, method)
    program, values = q.program(), {}
    exact = run(program, images(2, 64, 3).abs(), lambda node, y: values.__setitem__(node.name, y), backend=None)
    assert isinstance(exact, Tensor)
    products = [node for node in program if node.kind in PRODUCTS]
    assert bool(products) == (method != "repqvit")
    for node in products:
        assert set(node.settings["simulated"].split(" and ")) <= REASONS[method]
        layer = q.layers[node.name]
        scale = layer["weight_scale"].reshape(-1, *(1,) * (layer["weight"].ndim - 1))
        assert torch.equal(node.weights["weight"], layer["weight"] * scale)
        for each in node.inputs:
            x, source = values[each], program[each]
            assert source.kind in ("dequantize", "simulate")
            if source.kind == "simulate":
                assert torch.equal(source.settings["quantizer"].fake(x), x)
                assert len(x.unique()) <= 64
    for node in program:
        if node.kind in ("patch_attention", "separable_context"):
            assert isinstance(node.settings["softmax"], SOFTMAX[method])
    assert not [row for row in q.report().rows if row.kind in (*PRODUCTS, *NORMS) and row.node not in q.simulation_only()]
    if method == "fqvit":
        streams = [each for each in q.representations.values() if isinstance(each, Channels)]
        assert streams
        assert all({math.log2(scale / each.scale) for scale in each.scales} <= {0.0, -1.0, -2.0, -3.0} for each in streams)


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_it_is_simulated_and_nothing_else(name: str, method: str, tmp_path: Path) -> None:
    model, q, x = mobilevit(name), simulated(name, method), images(3, 64, 3).abs()
    with torch.no_grad():
        exact = model(x)
    y = q(x)
    assert squared(y, exact) < 0.3 * squared(exact, torch.zeros(()))
    assert reasons(q) == REASONS[method]
    report = q.report()
    assert report.simulation_only == q.simulation_only()
    assert f"simulation only: {next(iter(report.simulation_only))}, " in str(report)
    assert report.to_dict()["simulation_only"] == report.simulation_only
    softmax = [each for each in report.decisions if each.name.endswith(".softmax")]
    assert {each.scheme for each in softmax} <= {"twin uniform", "log 2", "log sqrt 2"}
    assert len(softmax) == 3
    for op, call in (
        ("convert", lambda: mk.convert(q)),
        ("compile", lambda: mk.compile(q, x)),
        ("export_onnx", lambda: mk.export_onnx(q, tmp_path / "q.onnx")),
    ):
        with pytest.raises(
            ValueError, match=f"{op}: model: expected quantizers that kernels run, got .* by '{method}' that can only be sim"
        ):
            call()
    assert not list(tmp_path.iterdir())
    mk.save_quantized(q, tmp_path / "q")
    loaded = mk.load_quantized(model, tmp_path / "q")
    assert loaded.report().decisions == report.decisions
    loaded.backend = None
    assert torch.equal(loaded(x), y)


@pytest.mark.slow
@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("name", NETWORKS)
def test_other_sizes_and_pickles(name: str, method: str) -> None:
    q, x = simulated(name, method), images(1, 72, 4).abs()
    y = q(x)
    assert torch.isfinite(y).all()
    assert reasons(q, (3, 72, 72)) == REASONS[method]
    assert torch.equal(pickle.loads(pickle.dumps(q))(x), y)


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.slow
def test_layers_that_are_skipped_are_floats(method: str) -> None:
    name = "stages.2.1.transformer.0"
    config = mk.QuantConfig(8, 8, method, skip=(f"{name}.*", "stages.[34]*"))
    q = mk.quantize(mobilevit("mobilevit_xxs"), [images(2, 64).abs()], config, progress=False)
    floats = {node.name for node in q.program() if config.skips(node.name) and node.kind != "simulate"}
    assert floats
    assert not floats & set(q.simulation_only())
    assert torch.isfinite(q(images(1, 64).abs())).all()
    config = mk.QuantConfig(6, None, method)
    q = mk.quantize(small(), [images(4, 16)], config, progress=False)
    assert not q.simulation_only()
    assert torch.equal(mk.convert(q)(images(2, 16)), q(images(2, 16)))


def test_ptq4vit_is_symmetric_or_twin() -> None:
    q = found("ptq4vit")
    kinds = {name: type(each) for name, each in q.representations.items()}
    assert {name for name, kind in kinds.items() if kind is Twin} == {"stem", "expand", "depthwise"}
    assert all(each.zero_point == 32 for each in q.representations.values() if isinstance(each, Byte))
    assert {each.scheme for each in q.report().decisions} == {"symmetric", "twin uniform"}
    for each in q.report().decisions:
        assert each.error <= each.minmax_error * (1.5 if each.of == "activation" else 1) + 1e-12
    assert sum(each.error for each in q.report().decisions) < 0.7 * sum(each.minmax_error for each in q.report().decisions)


@needs_native
@pytest.mark.parametrize("method", ["fqvit", "repqvit"])
def test_without_norms_and_attention_kernels_run_it(method: str) -> None:
    q, x = found(method), images(3, 16, 5)
    y = q(x)
    assert not q.simulation_only()
    assert torch.equal(mk.convert(q)(x), y)
    assert torch.equal(mk.compile(q, x)(x), y)
    assert all(torch.isfinite(each) for each in y.flatten())
    far = q.representations["far"]  # in [10, 12]
    assert (far.zero_point < 0) == (method == "repqvit")


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_same_from_the_same_seed(method: str) -> None:
    again = mk.quantize(small(), [images(4, 16), images(4, 16, 1)], mk.QuantConfig(6, 6, method), progress=False)
    assert again.representations == found(method).representations
    for name, layer in again.layers.items():
        assert all(torch.equal(value, found(method).layers[name][key]) for key, value in layer.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", PUBLISHED)
def test_sensitivity(method: str) -> None:
    q = simulated("mobilevit_xxs", method)
    study = q.sensitivity([images(2, 64, 8).abs()], progress=False)
    attention = next(row for row in study.rows if row.kind == "patch_attention")
    plain = simulated("mobilevit_xxs", "minmax").sensitivity([images(2, 64, 8).abs()], progress=False)
    assert attention.sqnr != next(row.sqnr for row in plain.rows if row.node == attention.node)
    assert len(study.keep_float) == 0
