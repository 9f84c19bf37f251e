"""The CUDA kernels on a GPU, against plain torch on the CPU, bit for bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

import pytest
import torch
from cuda_cases import (
    CASES,
    HALVES,
    assert_attention_block,
    assert_equal_bits,
    assert_residual_block,
    attention_block,
    attention_blocks,
    attention_blocks_of_every_cluster,
    attention_layers,
    bytes_out,
    choose_halves,
    feed_forward_layers,
    inverted_residual_layers,
    placed,
    residual_block,
    residual_blocks,
    residual_blocks_of_every_tile,
    stream_map,
)
from q_checks import byte_map, random_bytes, random_packed_weight, random_weight

from mvit_kernels import ops
from mvit_kernels.ops import cuda_support

Tensor = torch.Tensor

_, REASON = cuda_support.describe()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(REASON), reason=REASON)]
DEVICE = torch.device("cuda", 0)


def calls(device: torch.device) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """(op, a call of what is prepared, its input on the device)."""
    product = ops.prepare_qgemm(random_packed_weight(96, 80), 0.05, 300, 0.01, backend="cuda", **bytes_out(96, activation="silu"))
    yield "qgemm", product, random_bytes(200, 80).to(device)
    weight = ops.pack_weight(random_weight(48, 20, 3, 3, bits=6), bits=6)
    convolution = ops.prepare_qconv2d(weight, 0.05, -300, 0.01, kernel_size=3, backend="cuda", **bytes_out(48))
    yield "qconv2d", convolution, byte_map(2, 20, 9, 11).to(device)
    thin = ops.prepare_qdepthwise_conv2d(random_weight(40, 1, 3, 3), a_scale=0.05, a_zero_point=300, backend="cuda", **bytes_out(40))
    yield "qdepthwise_conv2d", thin, byte_map(2, 40, 9, 11).to(device)
    inputs, keywords = attention_block((2, 96, 8, 8), torch.float16, (2, 2))
    x, *weights = (each.to(device) for each in inputs)
    yield "separable_attention_block", lambda x: ops.separable_attention_block(x, *weights, **keywords, backend="cuda"), x
    inputs, keywords = attention_block((2, 128, 32, 32), torch.float16, (2, 2))  # a cluster an image
    wide_x, *wide_weights = (placed(each, device) for each in inputs)
    yield "separable_attention_block", lambda x: ops.separable_attention_block(x, *wide_weights, patch_size=(2, 2), backend="cuda"), wide_x
    yield "inverted_residual", *residual_call(device, 1)
    yield "inverted_residual", *residual_call(device, 2)
    yield (
        "qinverted_residual",
        ops.prepare_qinverted_residual(*inverted_residual_layers(20, 72, 48, 1), backend="cuda"),
        byte_map(2, 20, 9, 21).to(device),
    )
    for kind in ("group", "layer"):
        yield (
            "qfeed_forward",
            ops.prepare_qfeed_forward(*feed_forward_layers(kind, 40, 72), backend="cuda"),
            stream_map(2, 40, 9, 11).to(device),
        )
    attention = ops.prepare_qseparable_attention_block(*attention_layers(40), backend="cuda")
    yield "qseparable_attention_block", attention, stream_map(2, 40, 8, 12).to(device)
    normed = ops.prepare_qnorm_gemm(
        random_packed_weight(96, 80), 0.01, scale=2.0**-9, a_scale=0.03, a_zero_point=121, backend="cuda", **bytes_out(96)
    )
    yield "qnorm_gemm", normed, stream_map(50, 80, 1, 1).flatten(1).to(device)
    yield "qpatch_attention", phase_attention, random_bytes(2, 16, 16, 144).to(device)
    packed = random_packed_weight(96, 80, 6)
    yield "qgemm_accumulate", lambda a: ops.qgemm_accumulate(a, packed, 7, backend="cuda"), random_bytes(200, 80).to(device)


def phase_attention(qkv: Tensor) -> Tensor:
    settings = {"q_scale": 0.03, "q_zero_point": 120, "k_scale": 0.021, "v_scale": 0.017, "v_zero_point": 101}
    return ops.qpatch_attention(qkv, 4, out_scale=0.011, out_zero_point=90, backend="cuda", **settings)


def residual_call(device: torch.device, stride: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    inputs, keywords = residual_block((2, 40, 20, 18), 72, 48, torch.bfloat16, stride=stride)
    x, *weights = (placed(each, device) for each in inputs)
    return lambda x: ops.inverted_residual(x, *weights, **keywords, backend="cuda"), x


@pytest.fixture(params=[False, True], ids=["halves as kernels", "halves in parts"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_halves(monkeypatch, request.param)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("op", "in_parts"), [*((op, False) for op in CASES), *((op, True) for op in HALVES)])
def test_bits_are_those_of_plain_torch(op: str, in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_halves(monkeypatch, in_parts)
    for name, case in CASES[op]().items():
        assert_equal_bits(case, DEVICE)
        print(name)  # the last one before a failure


@pytest.mark.usefixtures("poison")
def test_attention_blocks_follow_the_float_rule() -> None:
    for name, (inputs, keywords) in (attention_blocks() | attention_blocks_of_every_cluster()).items():
        assert_attention_block(inputs, keywords, DEVICE)
        print(name)


def test_attention_blocks_in_clusters_see_what_others_wrote_just_now() -> None:
    """Launches one after another, of two batches by turns, in the same scratch memory: sums have one order, bits are those of the first."""
    (x, *weights), keywords = attention_block((8, 128, 32, 32), torch.float16, (2, 2))
    there = [each.to(DEVICE) for each in weights]
    images = [placed(x, DEVICE), placed(-x, DEVICE)]
    first = [ops.separable_attention_block(each, *there, **keywords, backend="cuda") for each in images]
    later = [ops.separable_attention_block(images[i % 2], *there, **keywords, backend="cuda") for i in range(300)]
    assert all(torch.equal(each, first[i % 2]) for i, each in enumerate(later))


def test_attention_blocks_pass_nan_on() -> None:
    """Images share blocks, and nothing else."""
    (x, *weights), keywords = attention_block((300, 64, 4, 4), torch.float16, (2, 2))
    there = [each.to(DEVICE) for each in weights]
    right = ops.separable_attention_block(placed(x, DEVICE), *there, **keywords, backend="cuda")
    x[7, 3, 2, 1] = float("nan")
    y = ops.separable_attention_block(placed(x, DEVICE), *there, **keywords, backend="cuda")
    others = torch.arange(300) != 7
    assert y[7].isnan().all()
    assert torch.equal(y[others], right[others])


def test_attention_blocks_take_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many blocks as the shared memory of capability 9.0 asks for; and they are chosen for as many images as keep a GPU busy, where
    nothing else was measured."""
    monkeypatch.setattr("mvit_kernels.triton_kernels.tuning.table", dict)
    if torch.cuda.get_device_capability(DEVICE) != (9, 0):
        pytest.skip("its blocks have other shared memory")
    sizes = {(192, 16, 16): 1, (128, 32, 32): 2, (256, 32, 32): 4, (128, 64, 64): 8}
    assert {size: cuda_support.native.separable_attention_image_blocks(*size, 2, 2, DEVICE.index) for size in sizes} == sizes
    x = torch.empty(torch.cuda.get_device_properties(DEVICE).multi_processor_count, 128, 32, 32, dtype=torch.float16, device=DEVICE)
    assert importlib.import_module("mvit_kernels.ops.separable_attention_block").choose.backend(None, x, (2, 2)) == "cuda"


@pytest.mark.usefixtures("poison")
def test_residual_blocks_follow_the_float_rule() -> None:
    for name, (inputs, keywords) in (residual_blocks() | residual_blocks_of_every_tile()).items():
        assert_residual_block(inputs, keywords, DEVICE)
        print(name)


def test_residual_blocks_pass_nan_on() -> None:
    """To the pixels that see it, and no others."""
    call, x = residual_call(DEVICE, 1)
    x[0, 3, 8, 15] = float("nan")
    seen = torch.zeros(2, 20, 18, dtype=torch.bool)
    seen[0, 7:10, 14:17] = True
    assert torch.equal(call(x).isnan().all(dim=1).cpu(), seen)
    assert torch.equal(call(x).isnan().any(dim=1).cpu(), seen)


def test_gradients_of_attention_blocks() -> None:
    """Those of plain torch, from a forward by kernels."""
    inputs, keywords = attention_block((2, 64, 8, 8), torch.float16, (2, 2))
    grads = []
    for backend in ("cuda", "reference"):
        leaves = [x.to(DEVICE).requires_grad_() for x in inputs]
        ops.separable_attention_block(*leaves, **keywords, backend=backend).float().square().mean().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert (ours - theirs).abs().max() <= 0.02 * theirs.abs().max()


def test_they_are_chosen_where_nothing_else_is_asked_for() -> None:
    from mvit_kernels.ops.qgemm import choose

    assert choose.backend(None, random_bytes(3, 4).to(DEVICE), 4, 8) == "cuda"


@pytest.mark.usefixtures("halves")
def test_side_streams() -> None:
    """A kernel waits for what its stream has before it, and for nothing else."""
    for _, call, x in calls(DEVICE):
        expected = call(x)
        side = torch.cuda.Stream(DEVICE)
        late = torch.zeros_like(x)
        side.wait_stream(torch.cuda.current_stream(DEVICE))
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            y = call(late)
        side.synchronize()
        assert torch.equal(y, expected)


@pytest.mark.usefixtures("halves")
def test_cuda_graphs() -> None:
    for op, call, x in calls(DEVICE):
        if op == "qgemm_accumulate":  # checks its zero-points, which are numbers of the host
            continue
        call(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call(x)
        x.copy_(x.flip(0))
        graph.replay()
        torch.cuda.synchronize(DEVICE)
        assert torch.equal(y, call(x))


def test_the_first_call_is_no_part_of_a_graph() -> None:
    for op, call, x in calls(DEVICE):
        if op in ("qgemm_accumulate", "qpatch_attention"):  # the table of the last one is there after any op that reads it
            continue
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="before a CUDA graph is captured"), torch.cuda.graph(graph):
            call(x)
        assert call(x).device == DEVICE


def test_compiled_functions() -> None:
    for op, call, x in calls(DEVICE):
        if op == "qgemm_accumulate":  # as above
            continue
        expected = call(x)
        torch.compiler.reset()
        assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_a_second_device() -> None:
    second = torch.device("cuda", 1)
    for op in CASES:
        for case in list(CASES[op]().values())[:3]:
            assert_equal_bits(case, second)
    assert torch.cuda.current_device() == 0


def test_devices_that_differ_are_refused() -> None:
    weight = random_packed_weight(4, 8)
    product = ops.prepare_qgemm(weight, 0.05, 3, 0.01, backend="cuda")
    a = random_bytes(3, 8).to(DEVICE)
    with pytest.raises(ValueError, match="residual: expected device cuda:0, got cpu"):
        product(a, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="weight: expected device cuda:0, got cpu"):
        torch.ops.mvit_kernels.qgemm(
            a, weight.data, product.channels.to(DEVICE), None, None, None, None, 4, 8, 8, torch.float32, "none", False
        )


def test_more_than_two_to_the_31_bytes() -> None:
    if torch.cuda.get_device_properties(DEVICE).total_memory < 2**33:
        pytest.skip("needs 8 GB")
    rows = 2**31 // 32 + 5
    weight = random_packed_weight(16, 32)
    product = ops.prepare_qgemm(weight, 0.05, 3, 0.01, backend="cuda", **bytes_out(16))
    a = torch.zeros(rows, 32, dtype=torch.uint8, device=DEVICE)
    a[-3:] = random_bytes(3, 32).to(DEVICE)
    assert torch.equal(product(a)[-3:], product(a[-3:].clone()))
