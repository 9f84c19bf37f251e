from __future__ import annotations

import functools

import pytest
import torch
from marks import slow
from triton_checks import DTYPES, FORMATS, assert_gradients, assert_rule, randn, views

import mvit_kernels as mk
from mvit_kernels import reference
from mvit_kernels.ops import packing
from mvit_kernels.triton_kernels.moments import keeping_parts
from mvit_kernels.triton_kernels.phases import phases_of
from mvit_kernels.triton_kernels.resident import widths

Tensor = torch.Tensor
# (batch, d, axis 2, axis 3, patch): tails of tiles and of channels, several tiles of a phase, one pixel.
SHAPES = [
    (2, 5, 4, 6, (2, 2)),
    slow((1, 2, 1, 1, None)),
    slow((1, 33, 4, 40, None)),
    slow((1, 70, 10, 8, (2, 2))),
    slow((1, 5, 6, 12, (2, 3))),
    slow((1, 130, 2, 20, None)),
    slow((3, 50, 4, 20, None)),
    (2, 1, 4, 4, (2, 2)),
]


def make(batch: int, dim: int, height: int, width: int, dtype=torch.float32, fmt: str = "nhwc", mean: float = 0.0) -> list[Tensor]:
    x = (randn(batch, dim, height, width) + mean).to(dtype).contiguous(memory_format=FORMATS[fmt])
    sizes = (dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim), (dim,)
    return [x, *(randn(*size, dtype=dtype) / (size[-1] ** 0.5 if len(size) == 2 else 1) for size in sizes)]


def block(*inputs, **settings):
    return mk.ops.separable_attention_block(*inputs, backend="triton", **settings)


def check(inputs: list[Tensor], patch, **settings) -> Tensor:
    y = block(*inputs, patch_size=patch, **settings)
    exact = reference.separable_attention_block(*(each.double() for each in inputs), patch_size=patch)
    assert_rule(y, reference.separable_attention_block(*inputs, patch_size=patch), exact)
    return y


@pytest.fixture(params=[16, 64, 0], ids=["one launch", "phases in a tile", "two launches"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ways: which of them runs is a matter of speed."""
    from mvit_kernels.triton_kernels import separable_attention_block

    tile = {"BLOCK_T": request.param, "BLOCK_V": 32, "num_warps": 4, "num_stages": 2} if request.param else {}
    monkeypatch.setattr(separable_attention_block, "tile", lambda *_: tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape, fmt: str, dtype: torch.dtype, products, poison) -> None:
    y = check(make(*shape[:4], dtype, fmt), shape[4])
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=FORMATS[fmt])


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [slow(3.0), 100.0])
def test_any_mean_and_known_moments(mean: float, dtype: torch.dtype, products) -> None:
    inputs = make(2, 12, 4, 6, dtype, mean=mean)
    check(inputs, (2, 2))
    check(inputs, (2, 2), moments=reference.moments_of(inputs[0], 2))


def test_many_phases() -> None:
    """More than read their keys each for itself."""
    check(make(17, 40, 2, 4), (2, 2))


def test_moments_are_those_of_what_is_written(products) -> None:
    y, moments = block(*make(3, 40, 12, 10, torch.float16, mean=5.0), patch_size=(2, 2), collect=True)
    assert torch.allclose(moments, reference.moments_of(y, 3), rtol=1e-6)


# Tiles of a phase and of several; values and both gradients of weights in one launch, and in two.
WAYS = {"tile": (16, True), "phases in a tile": (64, True), "two launches": (16, False), "two launches, phases in a tile": (64, False)}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvit_kernels.triton_kernels import separable_attention_block_backward as kernels

    pixels, in_one = request.param
    tile = {"BLOCK_T": pixels, "BLOCK_V": 32, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(kernels, "processors", lambda _: 5)  # so that programs have several tiles, of several images
    monkeypatch.setattr(kernels, "tile", lambda x, _: tile if in_one and not widths(x.shape[1])[1] else {})
    monkeypatch.setattr(kernels, "gated_tile", lambda *_: {**tile, "BLOCK_K": 32})
    monkeypatch.setattr(kernels, "input_tile", lambda *_: {**tile, "BLOCK_K": 16})
    monkeypatch.setattr(kernels, "maps_tile", lambda *_: {**tile, "BLOCK_C": 16})


def decided(inputs: list[Tensor]) -> list[Tensor]:
    """With values far from 0, half of them above: near it, the rounding of 16 bits decides which gradients there are."""
    dim, bias = inputs[0].shape[1], inputs[4]
    bias[1 + dim :] = bias[1 + dim :].sign() * 6
    return inputs


def check_gradients(inputs: list[Tensor], patch, **settings) -> None:
    plain = functools.partial(reference.separable_attention_block, patch_size=patch)
    assert_gradients(functools.partial(block, patch_size=patch, **settings), plain, inputs)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_gradients(shape, fmt: str, way, poison) -> None:
    check_gradients(make(*shape[:4], fmt=fmt), shape[4])


@pytest.mark.parametrize("fmt", FORMATS)
def test_gradients_of_one_channel(fmt: str, way, poison) -> None:
    """Of its parameters single numbers, all of whose bits plain torch may have by luck: the float rule is no measure of them."""
    inputs, found = make(2, 1, 4, 4, fmt=fmt), []
    dy = torch.randn_like(inputs[0])
    for function, dtype in ((block, torch.float32), (reference.separable_attention_block, torch.float64)):
        leaves = [each.detach().to(dtype, copy=True).requires_grad_() for each in inputs]
        function(*leaves, patch_size=(2, 2)).backward(dy.to(dtype))
        found.append([leaf.grad for leaf in leaves])
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() <= 2e-6 * exact.abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [slow(torch.float16), torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 24, 8, 6, (2, 2)), slow((5, 50, 4, 12, (2, 2))), slow((2, 33, 3, 40, None))], ids=str)
def test_gradients_in_sixteen_bits(shape, dtype: torch.dtype, way, poison) -> None:
    """Products are in that dtype there, as torch's own are."""
    check_gradients(decided(make(*shape[:4], dtype)), shape[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mean", [slow(3.0), 30.0])
def test_gradients_of_any_mean_and_known_moments(mean: float, dtype: torch.dtype, way) -> None:
    """Pixels are multiplied as they are, and what their mean adds is taken off."""
    inputs = decided(make(3, 12, 4, 6, dtype, mean=mean))
    inputs[0][1:] *= torch.tensor([0.5, 4.0], dtype=dtype, device=inputs[0].device)[:, None, None, None]  # images of other deviations
    check_gradients(inputs, (2, 2))
    check_gradients(inputs, (2, 2), moments=reference.moments_of(inputs[0], 3))


def test_gradients_of_parts_of_moments() -> None:
    inputs = make(2, 12, 4, 6)
    with keeping_parts():
        x, parts = block(*inputs, patch_size=(2, 2), collect=True)
    assert parts.ndim == 3
    check_gradients([x, *inputs[1:]], (2, 2), moments=parts)

    check_gradients([x[::2].repeat(2, 1, 1, 1), *inputs[1:]], (2, 2), moments=parts[::2].expand(2, -1, -1))


def test_gradients_beyond_the_last_pixel_of_a_constant_image(way) -> None:
    """Whose norm divides by next to nothing: nothing there may become infinite."""
    inputs = make(3, 24, 6, 6, torch.float16)
    inputs[0][1] = 300.0
    leaves = [each.detach().requires_grad_() for each in inputs]
    block(*leaves, patch_size=(2, 2)).float().square().mean().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("dim", [5, 8])
def test_gradients_have_memory_of_their_own_and_checks(dim: int) -> None:
    x, *parameters = make(2, dim, 4, 6)
    backward = torch.ops.mvit_kernels.separable_attention_block_backward
    torch.library.opcheck(backward, (torch.randn_like(x), x, *parameters, None, 1e-5, [2, 2], "triton"))
    with pytest.raises(ValueError, match="multiples of"):
        backward(x, x, *parameters, None, 1e-5, [3, 2], "triton")


def test_gradients_keep_no_weights_that_compiled_code_has_on_its_way() -> None:
    x, *parameters = make(1, 5, 4, 4)
    before = len(packing._entries)
    torch.ops.mvit_kernels.separable_attention_block_backward(x, x, *parameters, None, 1e-5, [2, 2], "triton")
    assert len(packing._entries) == before


def test_gradients_of_phases_in_splits() -> None:
    """Whose scores are far apart, so that one split has nearly all of the weight."""
    inputs = make(1, 130, 8, 16)
    inputs[3][0] *= 10.0
    check_gradients(inputs, (2, 2))


def test_gradients_have_the_same_bits_again(way) -> None:
    inputs, found = make(5, 20, 8, 2, torch.float16), []
    for _ in range(2):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        block(*leaves, patch_size=(2, 2)).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


def test_gradients_of_any_strides_and_empty() -> None:
    _, *parameters = make(1, 5, 4, 6)
    parameters[2], parameters[4] = parameters[2][:, :, None, None], parameters[4][:, :, None, None]
    for x in views(5, 4, 6).values():
        found = []
        for function in (block, reference.separable_attention_block):
            leaves = [(each if function is block else each.double()).detach().clone().requires_grad_() for each in (x, *parameters)]
            leaves[0] = (x if function is block else x.double()).detach().requires_grad_()
            function(*leaves, patch_size=(2, 2)).sum().backward()  # the gradient arrives expanded
            found.append([leaf.grad for leaf in leaves])
        for ours, exact in zip(*found, strict=True):
            assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max() + 1e-5
    leaves = [each.detach().clone().requires_grad_() for each in (x[:0], *parameters)]
    block(*leaves, patch_size=(2, 2)).sum().backward()
    assert leaves[0].grad.shape == (0, 5, 4, 6)
    assert not any(leaf.grad.any() for leaf in leaves[1:])


@pytest.mark.parametrize(("size", "dtype", "in_one"), [
    ((32, 128, 32, 32), torch.float16, True), ((32, 50, 32, 32), torch.bfloat16, True), ((2, 64, 256, 256), torch.float16, True),
    ((32, 96, 32, 32), torch.float16, False), ((32, 192, 32, 32), torch.float16, False), ((32, 128, 32, 32), torch.float32, False),
    ((8, 128, 32, 32), torch.float16, False), ((512, 128, 8, 8), torch.float16, False), ((512, 16, 32, 32), torch.float16, False),
])  # fmt: skip
def test_gradients_of_weights_beside_the_values_where_their_sums_fit(monkeypatch: pytest.MonkeyPatch, size, dtype, in_one: bool) -> None:
    from mvit_kernels.triton_kernels import separable_attention_block_backward as kernels

    x = torch.empty(size, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
    for warpgroups in (True, False):
        monkeypatch.setattr(kernels, "by_warpgroups", lambda _, found=warpgroups: found)
        assert bool(kernels.tile(x, phases_of(x, (2, 2), joining=False))) == (in_one and warpgroups)


def test_gradients_find_the_weights_that_the_forward_arranged(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvit_kernels.triton_kernels import separable_attention_block

    arranged, arrange = [], separable_attention_block.arrange
    monkeypatch.setattr(separable_attention_block, "arrange", lambda *args: arranged.append(1) or arrange(*args))
    monkeypatch.setattr(mk.ops.separable_attention_block.__globals__["_kernels"], "arrange", separable_attention_block.arrange)
    x, *parameters = make(1, 5, 4, 4)
    parameters = [torch.nn.Parameter(each) for each in parameters]
    block(x.requires_grad_(), *parameters, patch_size=(2, 2)).sum().backward()
    assert len(arranged) == 1


def test_second_derivative() -> None:
    """Of plain torch."""
    inputs, found = make(2, 5, 4, 4), []
    for function in (block, reference.separable_attention_block):
        leaves = [(each if function is block else each.double()).detach().clone().requires_grad_() for each in inputs]
        first = torch.autograd.grad(function(*leaves, patch_size=(2, 2)).square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_weights_that_change_are_seen() -> None:
    inputs = make(1, 5, 4, 4)
    for _ in range(2):
        check(inputs, (2, 2))
        inputs[3].mul_(2.0)


def test_any_strides_empty_and_refused() -> None:
    inputs = make(1, 5, 4, 6)
    for x in views(5, 4, 6).values():
        check([x, *inputs[1:]], (2, 2))
    y, moments = block(inputs[0][:0], *inputs[1:], patch_size=(2, 2), collect=True)
    assert (y.shape, moments.shape) == ((0, 5, 4, 6), (0, 2))
    with pytest.raises(ValueError, match="it has no kernel for more than 512 channels, got 513"):
        block(*make(1, 513, 1, 1))
