"""What the tests of the ops with parameters share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tolerance import assert_float_rule

from mvit_kernels.ops.backend import native

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

needs_native = pytest.mark.skipif(native is None, reason="the native kernels are not built")

Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]


def double(inputs: Inputs) -> list[Tensor | None]:
    return [None if each is None else each.double() for each in inputs]


def gradients(function: Callable[..., Tensor], inputs: Inputs, dy: Tensor) -> list[Tensor]:
    """Of every input that is a tensor."""
    leaves = [None if x is None else x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    function(*leaves).backward(dy)
    return [leaf.grad for leaf in leaves if leaf is not None]


def assert_forward_and_gradients(op: Callable[..., Tensor], plain: Callable[..., Tensor], *draws: Inputs) -> None:
    """Both by the float rule, `plain` being what plain torch does with the same arguments. The largest of a few errors is a matter of luck:
    of small tensors, several draws of the inputs are judged as one."""
    results = []
    for inputs in draws:
        with torch.no_grad():
            forward = op(*inputs), plain(*inputs), plain(*double(inputs))
        dy = torch.randn(forward[2].shape, dtype=torch.float64).to(forward[0].dtype)
        backward = gradients(op, inputs, dy), gradients(plain, inputs, dy), gradients(plain, double(inputs), dy.double())
        results.append([forward, *zip(*backward, strict=True)])
    for drawn, x in zip(zip(*results, strict=True), (draws[0][0], *(each for each in draws[0] if each is not None)), strict=True):
        ours, theirs, exact = (torch.stack(each) for each in zip(*drawn, strict=True))
        assert ours.dtype == x.dtype
        assert_float_rule(ours, theirs, exact)


def assert_same_bits_with_any_threads(function: Callable[[], list[Tensor]], threads: Callable[[int], None]) -> None:
    """With several threads inside each call, and several Python threads that call at once."""
    threads(1)
    expected = function()
    for count in (2, 3, 7):
        threads(count)
        for a, b in zip(function(), expected, strict=True):
            assert torch.equal(a, b)
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: function(), range(8)):
            for a, b in zip(result, expected, strict=True):
                assert torch.equal(a, b)


def assert_reference_gradients(op: Callable[..., Tensor], inputs: Inputs) -> None:
    leaves = [None if each is None else each.double().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


def assert_second_derivative(op: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Inputs) -> None:
    """In float32, where the forward is the kernel's, against plain torch in float64."""
    results = []
    for function, values in ((op, inputs), (plain, double(inputs))):
        leaves = [None if each is None else each.detach().requires_grad_() for each in values]
        tensors = [each for each in leaves if each is not None]
        first = torch.autograd.grad(function(*leaves).square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(each.square().sum() for each in first), tensors))
    for ours, exact in zip(*results, strict=True):
        assert (ours.double() - exact).abs().max() <= 1e-4 * exact.abs().max()


def assert_function_transforms(op: Callable[..., Tensor], plain: Callable[..., Tensor], x: Tensor) -> None:
    """Forward-mode differentiation, torch.func.grad, nested and under vmap, with respect to the first argument."""
    tangent, results = torch.randn_like(x), []
    for function in (op, plain):

        def loss(x: Tensor, function=function) -> Tensor:
            return function(x).square().sum()

        def norm(x: Tensor, loss=loss) -> Tensor:
            return torch.func.grad(loss)(x).square().sum()

        both = torch.stack([x, tangent])
        results.append(
            [
                *torch.func.jvp(loss, (x,), (tangent,)),
                torch.func.grad(loss)(x),
                torch.func.grad(norm)(x),
                torch.vmap(torch.func.grad(loss))(both),
                torch.vmap(function)(both),
            ]
        )
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def assert_compiles(function: Callable[..., Tensor], inputs: Sequence[Tensor], batches: Sequence[int]) -> None:
    """Without a graph break, with gradients of all inputs, the first axis of the first one dynamic."""
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in batches:
        x = inputs[0][:1].expand(batch, *inputs[0].shape[1:]) * torch.linspace(1, 2, batch).reshape(-1, *[1] * (inputs[0].ndim - 1))
        leaves, plain = ([each.detach().clone().requires_grad_() for each in (x, *inputs[1:])] for _ in range(2))
        y, expected = compiled(*leaves), function(*plain)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        for a, b in zip(leaves, plain, strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-4)
