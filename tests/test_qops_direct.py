"""The registered ops called with tensors that no preparation made: whatever a kernel would read or write is checked before."""

from __future__ import annotations

import sys

import pytest
import torch
from op_checks import needs_native

from mvit_kernels import ops

REGISTERED = torch.ops.mvit_kernels


def bytes_like(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, size, dtype=torch.uint8)


def weight_of(*size: int) -> ops.PackedWeight:
    return ops.pack_weight(torch.randint(-127, 128, size, dtype=torch.int8))


def arguments(op: str, name: str, call) -> list:
    """What a public function gives to a registered op."""
    got, module = [], sys.modules[f"mvit_kernels.ops.{op}"]  # the package has a function of the same name
    with pytest.MonkeyPatch.context() as patch:
        original = getattr(module, name)
        patch.setattr(module, name, lambda *args, **kwargs: got.append(args) or original(*args, **kwargs))
        call()
    return list(got[0])


BYTES = {"out_dtype": torch.uint8, "out_scale": 1.0, "out_zero_point": 0}


def calls() -> dict:
    weight, x = weight_of(20, 12), bytes_like(1, 36, 8, 8)
    full = {"residual_scale": 1.0, "residual_zero_point": 0, "table": bytes_like(256), **BYTES}
    rows = {"a_scale": torch.ones(5), "a_zero_point": torch.zeros(5, dtype=torch.int32)}
    stream = {"a_scale": 1.0, "a_zero_point": 3, "w_scale": 1.0, "out_dtype": torch.int16, "out_scale": 1.0, "collect": 5}
    conv = {"kernel_size": 3, "a_scale": 1.0, "a_zero_point": 300, "w_scale": 1.0}
    norm = {"scale": 1.0, "a_scale": 1.0, "a_zero_point": 3, "w_scale": 1.0, "table": bytes_like(256), **BYTES}
    depthwise = torch.ones(36, 1, 3, 3, dtype=torch.int8)
    return {
        "qgemm": ("qgemm", "_call", lambda: ops.qgemm(bytes_like(5, 12), weight, w_scale=1.0, residual=bytes_like(5, 20), **rows, **full)),
        "qgemm_collect": ("qgemm", "_collect_call", lambda: ops.qgemm(bytes_like(5, 12), weight, **stream)),
        "qgemm_accumulate": ("qgemm", "_accumulate_call", lambda: ops.qgemm_accumulate(bytes_like(5, 12), weight, rows["a_zero_point"])),
        "qconv2d": ("qconv2d", "_call", lambda: ops.qconv2d(x, weight_of(40, 36, 3, 3), residual=bytes_like(1, 40, 8, 8), **conv, **full)),
        "qdepthwise_conv2d": (
            "qdepthwise_conv2d",
            "_call",
            lambda: ops.qdepthwise_conv2d(x, depthwise, a_scale=1.0, a_zero_point=3, residual=x, **full),
        ),
        "qnorm_gemm": ("qnorm_gemm", "_call", lambda: ops.qnorm_gemm(torch.ones(5, 12, dtype=torch.int16), weight, **norm)),
    }


TENSORS = [
    (op, name)
    for op, names in {
        "qgemm": ["weight", "channels", "residual", "row_scale", "row_zero_point", "table"],
        "qgemm_collect": ["weight", "channels"],
        "qgemm_accumulate": ["weight", "zero_point"],
        "qconv2d": ["residual", "weight", "channels", "zero_point", "border", "filtered", "table"],
        "qdepthwise_conv2d": ["weight", "zero_point", "blocks", "channels", "residual", "table"],
        "qnorm_gemm": ["weight", "channels", "table"],
    }.items()
    for name in names
]


def names_of(op: str) -> list[str]:
    return [each.name for each in getattr(REGISTERED, op).default._schema.arguments]


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_tensors_are_checked(op, name):
    good = arguments(*calls()[op])
    at = names_of(op).index(name)
    x = good[at]
    assert x is not None
    bad = [x[..., :-1].contiguous(), x[:0], x.to(torch.float64), x.to("meta")]
    if name not in ("residual", "row_scale", "row_zero_point"):  # which may have any strides
        bad.append(torch.stack([x, x], -1)[..., 0])
    shown = f"a_{name[4:]}" if name.startswith("row_") else f"(a_)?{name}"
    message = f"{op.removesuffix('_collect')}: ({shown}|zero_point)"  # a depthwise weight tells how many channels there are
    for each in bad:
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(REGISTERED, op)(*good[:at], each, *good[at + 1 :], backend="reference" if each.is_meta else None)


@pytest.mark.parametrize("op", ["qgemm", "qgemm_collect", "qgemm_accumulate", "qconv2d", "qnorm_gemm"])
@pytest.mark.parametrize("changes", [{"columns": -1}, {"depth": 1}, {"columns": 16}, {"bits": 6}])
def test_sizes_are_those_of_the_weight(op, changes, backend):
    """Also where the number of bytes is the same, as one column less has: results would be written for what the header says."""
    if backend == "reference":
        pytest.skip("reads by the sizes it is given")
    good = arguments(*calls()[op])
    for name, by in changes.items():
        good[names_of(op).index(name)] = by if name == "bits" else good[names_of(op).index(name)] + by
    with pytest.raises(ValueError, match=f"{op.removesuffix('_collect')}: "):
        getattr(REGISTERED, op)(*good, backend=backend)


def test_one_column_less_is_refused(backend):
    if backend == "reference":
        pytest.skip("reads by the sizes it is given")
    good = arguments(*calls()["qgemm_accumulate"])
    good[names_of("qgemm_accumulate").index("columns")] -= 1
    with pytest.raises(ValueError, match="qgemm_accumulate: weight: expected the bytes of a PackedWeight of these columns"):
        REGISTERED.qgemm_accumulate(*good, backend=backend)


@pytest.mark.parametrize("name", ["activation", "out_dtype"])
@pytest.mark.parametrize("op", ["qgemm", "qconv2d", "qdepthwise_conv2d", "qnorm_gemm"])
def test_settings_are_checked(op, name):
    good = arguments(*calls()[op])
    good[names_of(op).index(name)] = "tanh" if name == "activation" else torch.float64
    with pytest.raises((TypeError, ValueError), match=f"{op}: {name}: expected one of"):
        getattr(REGISTERED, op)(*good)


def test_bits_and_dtypes_are_checked():
    x, q = torch.randn(3, 4), bytes_like(3, 4)
    with pytest.raises(ValueError, match="quantize: bits: expected 8 or 6, got 7"):
        REGISTERED.quantize(x, None, None, 1.0, 0, -1, 7)
    with pytest.raises(ValueError, match="quantize: axis: expected an axis of shape"):
        REGISTERED.quantize(x, torch.ones(4), None, 1.0, 0, 2, 8)
    with pytest.raises(TypeError, match="dequantize: dtype: expected float32"):
        REGISTERED.dequantize(q, None, None, 1.0, 0, -1, torch.float64)
    with pytest.raises(ValueError, match="qadd: out_bits: expected 8 or 6, got 40"):
        REGISTERED.qadd(q, q, 1.0, 0, 1.0, 0, 1.0, 0, "none", 40)
    with pytest.raises(TypeError, match="qavg_pool: out_dtype: expected"):
        REGISTERED.qavg_pool(q[None, None], 1.0, 0, 1.0, 0, torch.float16, 8)
    with pytest.raises(ValueError, match="qnorm: bits: expected 8 or 6, got 9"):
        REGISTERED.qnorm(x.to(torch.int16), None, 1.0, 1.0, 0, 1e-5, 9)
    with pytest.raises(ValueError, match="qseparable_gate: out_bits: expected 8 or 6, got 9"):
        REGISTERED.qseparable_gate(q[None, None], torch.ones(1, 1, 4), [1, 1], 1.0, 0, 1.0, 0, 9)


@needs_native
def test_a_damaged_weight_is_a_bad_argument():
    weight = weight_of(20, 12)
    handle = ops.prepare_qgemm(weight, 1.0, 0)
    weight.data[16] += 1  # the columns in its header
    with pytest.raises(ValueError, match="qgemm: weight: expected the bytes of a PackedWeight"):
        handle(bytes_like(3, 12))


def test_views_that_negate_are_read_as_they_are():
    x = torch.randn(8, 8)
    assert torch.equal(ops.quantize(torch._neg_view(x), 0.02, 128), ops.quantize(-x, 0.02, 128))
    assert torch.equal(ops.quantize_rows(torch._neg_view(x)).q, ops.quantize_rows(-x).q)


def test_scales_do_not_depend_on_the_default_dtype():
    weight, a = weight_of(20, 12), bytes_like(5, 12)
    settings = {"a_scale": 0.1, "a_zero_point": 3, "w_scale": [0.1] * 20, "out_dtype": torch.uint8, "out_scale": 0.3, "out_zero_point": 7}
    expected = ops.prepare_qgemm(weight, **settings)
    torch.set_default_dtype(torch.bfloat16)
    try:
        handle = ops.prepare_qgemm(weight, **settings)
        y = handle(a)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(handle.channels, expected.channels)
    assert torch.equal(y, expected(a))


def test_norm_by_an_infinite_factor(backend):
    x = torch.full((2, 8), 3, dtype=torch.int16)
    y = ops.qnorm(x, scale=1.0, out_scale=0.01, out_zero_point=100, eps=1e-80, backend=backend)
    assert torch.equal(y, torch.zeros(2, 8, dtype=torch.uint8))


def test_results_are_contiguous_whatever_the_strides(backend):
    x = torch.randint(-9, 9, (8, 5), dtype=torch.int16).T
    assert ops.qnorm(x, scale=1.0, out_scale=0.1, out_zero_point=0, backend=backend).is_contiguous()
    v = bytes_like(1, 6, 4, 4).permute(0, 2, 3, 1)
    settings = {"v_scale": 1.0, "v_zero_point": 0, "out_scale": 1.0, "out_zero_point": 0, "backend": backend}
    assert ops.qseparable_gate(v, torch.ones(1, 4, 6), **settings).is_contiguous()


def test_preparation_errors_name_the_argument():
    weight, numbers = weight_of(20, 12), torch.zeros(20, dtype=torch.int32)
    for bad in (None, "x"):
        with pytest.raises(TypeError, match="qgemm: w_scale: expected a number or a tensor, got"):
            ops.prepare_qgemm(weight, 1.0, 0, bad)
    with pytest.raises(TypeError, match="qgemm: a_zero_point: expected a number or a tensor, got None"):
        ops.prepare_qgemm(weight, 1.0)
    ops.prepare_qgemm(weight, 1.0, 0, out_dtype=torch.int16, out_scale=1.0, out_zero_point=numbers)
    with pytest.raises(ValueError, match="qgemm: out_zero_point: expected None or 0"):
        ops.prepare_qgemm(weight, 1.0, 0, out_dtype=torch.int16, out_scale=1.0, out_zero_point=numbers + 1)
    with pytest.raises(ValueError, match=r"qgemm: residual_zero_point: expected \|zero_point\| <= 2\^30"):
        ops.prepare_qgemm(weight, 1.0, 0, residual_scale=1.0, residual_zero_point=-(2**31))
    with pytest.raises(ValueError, match="qconv2d: second: expected 4 dimensions"):
        ops.qconv2d(
            bytes_like(1, 12, 3, 3), weight, kernel_size=1, a_scale=1.0, a_zero_point=0, w_scale=1.0, second=bytes_like(3)
        )  # fmt: skip


@pytest.mark.parametrize("out", [{"out_dtype": torch.float32}, {"activation": "silu", **BYTES}])
def test_a_residual_of_integers_needs_its_scale(out):
    handle = ops.prepare_qgemm(weight_of(20, 12), 1.0, 0, **out)
    for dtype in (torch.uint8, torch.int16):
        with pytest.raises(ValueError, match="qgemm: residual: expected a residual_scale with it, got None"):
            handle(bytes_like(5, 12), torch.zeros(5, 20, dtype=dtype))


def test_scales_of_rows_are_given_once_and_only_once():
    weight, a = weight_of(20, 12), bytes_like(5, 12)
    rows = {"a_scale": torch.ones(5), "a_zero_point": torch.zeros(5, dtype=torch.int32)}
    with pytest.raises(ValueError, match="qgemm: a_scale: expected both"):
        ops.prepare_qgemm(weight)(a)
    with pytest.raises(ValueError, match="qgemm: a_scale: expected None, as it was given"):
        ops.prepare_qgemm(weight, 1.0, 0)(a, **rows)
    with pytest.raises(TypeError, match="qgemm: a_zero_point: expected a tensor, got int"):
        ops.prepare_qgemm(weight)(a, a_scale=rows["a_scale"], a_zero_point=0)


def test_zero_points_of_rows_that_could_overflow_are_refused(backend):
    weight, a = ops.pack_weight(torch.full((3, 40), 127, dtype=torch.int8)), bytes_like(2, 40)
    zero_point = torch.tensor([5, 10**6], dtype=torch.int32)
    with pytest.raises(ValueError, match="qgemm: a_zero_point: expected sums below 2"):
        ops.qgemm(a, weight, a_scale=torch.ones(2), a_zero_point=zero_point, w_scale=1.0, backend=backend)
    with pytest.raises(ValueError, match="qgemm_accumulate: a_zero_point: expected sums below 2"):
        REGISTERED.qgemm_accumulate(a, weight.data, zero_point, 3, 40, 8, backend=backend)


def test_what_is_prepared_is_a_copy(backend):
    table, w, x = bytes_like(256), torch.ones(20, 1, 3, 3, dtype=torch.int8), bytes_like(1, 20, 4, 4)
    handle = ops.prepare_qdepthwise_conv2d(w, a_scale=1.0, a_zero_point=3, table=table, backend=backend, **BYTES)
    before = handle(x)
    w.zero_()
    table.zero_()
    assert torch.equal(handle(x), before)


def test_packed_weights_at_any_address():
    weight = weight_of(20, 12)
    part = torch.cat([torch.zeros(1, dtype=torch.uint8), weight.data])[1:]
    assert torch.equal(ops.PackedWeight(part).sum, weight.sum)
    assert torch.equal(ops.PackedWeight(part).unpack(), weight.unpack())


def test_filtered_weights_exist_once():
    weight = weight_of(32, 32, 3, 3)
    handles = [ops.prepare_qconv2d(weight, 1.0, z, kernel_size=3) for z in (0, 7)]
    assert handles[0].filtered is not None
    assert handles[0].filtered is handles[1].filtered
