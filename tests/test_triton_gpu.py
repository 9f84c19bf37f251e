"""What only a GPU can show: graphs, streams, devices, compiled functions, autocast, and tensors beyond 2^31 elements."""

from __future__ import annotations

import pytest
import torch

import mvit_kernels as mk
from mvit_kernels import reference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
if torch.cuda.is_available():
    from triton_calls import CALLS
else:
    CALLS = {}

Tensor = torch.Tensor


def tensors(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def qkv(device: str = "cuda", dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(2, 65, 16, 16).to(device, dtype)


@pytest.mark.parametrize("name", CALLS)
def test_graphs_hold_every_op(name: str) -> None:
    call = CALLS[name]
    expected = [each.clone() for each in tensors(call())]  # compiled, packed and chosen: nothing is left to do but launch
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tensors(call())
    for each in captured:
        each.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(ours, right) for ours, right in zip(captured, expected, strict=True))


def test_weights_are_packed_before_a_graph_and_not_in_it() -> None:
    sizes = (64,), (64,), (129, 64), (129,), (64, 64), (64,)
    inputs = [torch.randn(2, 64, 8, 8), *(torch.randn(size) / 8 for size in sizes)]
    inputs = [each.to("cuda", torch.float16) for each in inputs]
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mk.ops.separable_attention_block(*inputs, patch_size=(2, 2), backend="triton")
    y = mk.ops.separable_attention_block(*inputs, patch_size=(2, 2), backend="triton")
    expected = reference.separable_attention_block(*(each.float() for each in inputs), patch_size=(2, 2))
    assert (y.float() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_automatic_choice_goes_by_the_device() -> None:
    from mvit_kernels.ops.separable_attention import choose

    assert choose.backend(None, qkv(), (2, 2)) in ("cuda", "triton")
    assert choose.backend(None, qkv("cpu"), (2, 2)) in ("cpu", "reference")


def test_the_current_stream_is_used() -> None:
    x = qkv()
    expected = mk.ops.separable_attention(x, (2, 2), backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        y = mk.ops.separable_attention(late, (2, 2), backend="triton")
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_the_device_of_the_tensor_is_used() -> None:
    x = qkv("cuda:1")
    assert torch.cuda.current_device() == 0
    y = mk.ops.separable_attention(x, (2, 2), backend="triton")
    assert y.device == x.device
    assert torch.allclose(y, reference.separable_attention(x.float(), (2, 2)).half(), atol=1e-2)


def test_mixed_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="weight: expected device cuda:0, got cpu"):
        mk.ops.group_norm(qkv(), torch.ones(65), torch.ones(65))
    with pytest.raises(ValueError, match="the tensor is on cpu, where kernels run in Triton's interpreter only"):
        mk.ops.separable_attention(qkv("cpu"), backend="triton")


def test_compiled_without_a_graph_break() -> None:
    def function(x: Tensor) -> Tensor:
        return mk.ops.separable_attention(x * 2, (2, 2)).relu() + 1

    compiled, x = torch.compile(function, fullgraph=True), qkv(dtype=torch.float32)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    results = [compiled(leaves[0]), function(leaves[1])]
    for y in results:
        y.square().sum().backward()
    assert torch.allclose(*results, atol=1e-5)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-4)


def test_autocast() -> None:
    layer = torch.nn.Conv2d(8, 65, 1).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        projected = layer(torch.randn(1, 8, 16, 16, device="cuda"))
        y = mk.ops.separable_attention(projected, (2, 2))
    exact = reference.separable_attention(projected.double(), (2, 2))
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("it takes 24 GB of memory")
    x = torch.zeros(3, 2**20, 27, 27, dtype=torch.float16, device="cuda").view(3, -1)
    x[:, -5:] = 3.0
    q = mk.ops.quantize(x, 0.5, 1, backend="triton")
    assert torch.equal(q[:, -6:].cpu(), torch.tensor([[1, 7, 7, 7, 7, 7]] * 3, dtype=torch.uint8))
    del x, q
    big = torch.zeros(2, 3, 2**15, 11000, dtype=torch.float16, device="cuda")
    big[:, 1:] = 1.0
    y = mk.ops.separable_attention(big, (2, 2), backend="triton")
    assert (y[-1, 0, -1, -8:] - 1.0).abs().max() < 0.01  # a float32 sum of 90 million weights
