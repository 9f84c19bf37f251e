"""QLinear and QConv2d in place of the modules of torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mvit_kernels.quant import QConv2d, QLinear
from mvit_kernels.reference.int6 import pack_int6, unpack_int6

Tensor = torch.Tensor
CONVOLUTIONS = {
    "1x1": lambda: nn.Conv2d(12, 20, 1),
    "1x1 stride 2": lambda: nn.Conv2d(12, 20, 1, stride=2, bias=False),
    "3x3": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "3x3 stride 2": lambda: nn.Conv2d(12, 20, 3, padding=1, stride=2, bias=False),
    "depthwise": lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12),
    "depthwise stride 2": lambda: nn.Conv2d(12, 12, 3, padding=1, stride=2, groups=12, bias=False),
    "same": lambda: nn.Conv2d(12, 20, 3, padding="same"),
}


def range_of(x: Tensor, bits: int = 8) -> dict[str, object]:
    low, high = (float(each) for each in x.detach().aminmax())
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return {"input_scale": scale, "input_zero_point": round(-low / scale)}


def sqnr(y: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float(10 * torch.log10(exact.double().square().mean() / (y.double() - exact.double()).square().mean()))


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize(("weight_bits", "activation_bits", "decibels"), [(8, 8, 35), (6, 8, 25), (8, 6, 22), (6, 6, 20)])
@pytest.mark.parametrize("layer", ["linear", *CONVOLUTIONS])
def test_near_the_float_layer(layer, weight_bits, activation_bits, decibels, static):
    x = torch.randn(3, 7, 40) + 0.5 if layer == "linear" else torch.randn(2, 12, 9, 10) + 0.5
    real = nn.Linear(40, 30) if layer == "linear" else CONVOLUTIONS[layer]()
    kind = QLinear if layer == "linear" else QConv2d
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    quantized = kind.from_float(real, **(range_of(x, activation_bits) if static else {}), **bits)
    with torch.no_grad():
        y, exact = quantized(x), real(x)
    assert y.shape == exact.shape
    assert y.dtype == x.dtype
    assert sqnr(y, exact) > decibels


@pytest.mark.parametrize("layer", ["linear", *CONVOLUTIONS])
def test_exactly_what_its_integers_say(layer):
    """The float layer on dequantized weights and dequantized inputs, in float64."""
    x = torch.randn(5, 40) if layer == "linear" else torch.randn(2, 12, 9, 10)
    real = nn.Linear(40, 30) if layer == "linear" else CONVOLUTIONS[layer]()
    quantized = (QLinear if layer == "linear" else QConv2d).from_float(real, **range_of(x))
    scale, zero_point = quantized.input_range()
    bytes_of_x = (x * torch.tensor(1 / scale)).round().add(zero_point).clamp(0, 255)
    exact = copy.deepcopy(real).double()
    wide = quantized.weight_scale.double().reshape(-1, *[1] * (real.weight.ndim - 1))
    exact.weight.data = quantized.int_weight().double() * wide
    expected = exact(scale * (bytes_of_x.double() - zero_point))
    torch.testing.assert_close(quantized(x).double(), expected.detach(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("layer", ["linear", "3x3", "depthwise"])
def test_state_survives_saving_copies_and_pickles(tmp_path, layer, static, bits):
    def make() -> nn.Module:
        real = nn.Linear(12, 30) if layer == "linear" else CONVOLUTIONS[layer]()
        return (QLinear if layer == "linear" else QConv2d).from_float(real, **(range_of(x) if static else {}), weight_bits=bits)

    x = torch.randn(5, 12) if layer == "linear" else torch.randn(2, 12, 6, 5)
    quantized = make()
    y = quantized(x)
    torch.save(quantized.state_dict(), tmp_path / "state.pt")
    loaded = make()
    assert not torch.equal(loaded(x), y)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for other in (loaded, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized)), copy.deepcopy(quantized).half().float()):
        assert torch.equal(other(x), y)


def test_a_static_state_makes_a_dynamic_layer_static_and_back():
    x, real = torch.randn(5, 12), nn.Linear(12, 30)
    static, dynamic = QLinear.from_float(real, **range_of(x)), QLinear.from_float(real)
    first, second = static(x), dynamic(x)
    states = static.state_dict(), dynamic.state_dict()
    static.load_state_dict(states[1])
    dynamic.load_state_dict(states[0])
    assert torch.equal(static(x), second)
    assert torch.equal(dynamic(x), first)


def test_six_bits_take_three_quarters_of_the_bytes():
    quantized = QLinear.from_float(nn.Linear(64, 30), weight_bits=6)
    assert quantized.state_dict()["weight"].numel() == 30 * 64 * 3 // 4


def test_the_stream_of_six_bit_values():
    values = torch.arange(-32, 32, dtype=torch.int8).repeat(2)[None, :103]
    packed = pack_int6(values)
    stream = sum((int(v) & 63) << (6 * i) for i, v in enumerate(values[0]))
    assert bytes(packed[0].tolist()) == stream.to_bytes(packed.shape[1], "little")
    assert torch.equal(unpack_int6(packed, 103), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_floats(dtype):
    x = torch.randn(2, 12, 6, 5, dtype=dtype)
    for layer in ("1x1", "depthwise"):
        quantized = QConv2d.from_float(CONVOLUTIONS[layer](), **range_of(x.float()))
        y = quantized(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), quantized(x.float()), rtol=1e-2, atol=1e-2)


def test_a_bias_much_larger_than_its_weights():
    """Its row gets a scale with which the bias is an int32."""
    real = nn.Linear(8, 2)
    real.weight.data[0] = 1e-12
    real.bias.data[:] = 100.0
    quantized = QLinear.from_float(real, input_scale=0.01, input_zero_point=0)
    torch.testing.assert_close(quantized(torch.rand(3, 8))[:, 0], torch.full((3,), 100.0), rtol=1e-5, atol=0)


def test_among_float_modules():
    """In a model among float modules, compiled without a graph break where the quantization is static."""
    x = torch.randn(2, 3, 8, 8)
    real = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.SiLU(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Flatten(), nn.Linear(768, 5)
    )
    quantized, inputs = copy.deepcopy(real), x
    for i, module in enumerate(real):
        if isinstance(module, nn.Conv2d):
            quantized[i] = QConv2d.from_float(module, **range_of(inputs))
        if isinstance(module, nn.Linear):
            quantized[i] = QLinear.from_float(module, **range_of(inputs))
        inputs = module(inputs)
    assert sqnr(quantized(x), inputs) > 25
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), quantized(x))
    with torch.no_grad():
        assert torch.equal(quantized(x[:0]), quantized(x)[:0])


def test_bad_input():
    for bad, message in (
        (nn.Conv2d(4, 4, 5), r"kernel \(5, 5\)"),
        (nn.Conv2d(4, 4, 3), r"padding \(0, 0\)"),
        (nn.Conv2d(4, 4, 3, padding=1, stride=3), r"stride \(3, 3\)"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "groups 2"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "circular"),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), r"dilation \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=f"QConv2d: conv: expected 1x1, .*{message}"):
            QConv2d.from_float(bad)
    with pytest.raises(TypeError, match=r"QLinear: linear: expected an nn.Linear, got Conv2d"):
        QLinear.from_float(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="QLinear: input_zero_point: expected both"):
        QLinear.from_float(nn.Linear(3, 4), input_scale=1.0)
    with pytest.raises(ValueError, match=r"QLinear: input_scale: expected a positive finite value .* got nan"):
        QLinear.from_float(nn.Linear(3, 4), input_scale=float("nan"), input_zero_point=0)
    with pytest.raises(ValueError, match="QLinear: weight_bits: expected 8 or 6, got 4"):
        QLinear.from_float(nn.Linear(3, 4), weight_bits=4)
    weight, scale = torch.full((4, 3), 40, dtype=torch.int8), torch.ones(4)
    with pytest.raises(ValueError, match=r"QLinear: weight: expected values in \[-31, 31\], got one of size 40"):
        QLinear(weight, scale, None, None, None, 6, 8)
    with pytest.raises(TypeError, match=r"QLinear: weight: expected int8, got torch.float32"):
        QLinear(weight.float(), scale, None, None, None, 8, 8)
    with pytest.raises(ValueError, match=r"QLinear: x: expected float32, .*got torch.float32 of shape \(2, 5\)"):
        QLinear.from_float(nn.Linear(3, 4))(torch.randn(2, 5))
    with pytest.raises(ValueError, match="QConv2d: x: expected"):
        QConv2d.from_float(nn.Conv2d(3, 4, 1))(torch.randn(3, 5, 5))


def test_a_state_that_does_not_mention_a_layer_leaves_its_quantization():
    layer = QLinear.from_float(nn.Linear(8, 4), input_scale=0.1, input_zero_point=3)
    layer.load_state_dict({}, strict=False)
    assert float(layer.input_scale) == pytest.approx(0.1)
    assert int(layer.input_zero_point) == 3
