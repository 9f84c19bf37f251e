"""Layers that networks write in ways of their own: constants from either side, pools that are filters, convolutions in groups and
shuffled channels, tokens in any order of dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_native
from test_graph_capture import kinds, random_statistics
from test_graph_written import assert_as_its_modules, assert_the_same
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import capture, optimize

Tensor = torch.Tensor
C, H, W = 12, 6, 8
SIZE = (C, H, W)


class Layers(nn.Module):
    def __init__(self, middle: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
        self.scale, self.positions = nn.Parameter(torch.rand(C) + 0.5), nn.Parameter(torch.randn(1, H * W, C))
        self.depthwise, self.wider = nn.Conv2d(C, C, 3, 2, 1, groups=C), nn.Conv2d(C, 2 * C, 3, 1, 1, groups=C)
        self.grouped, self.narrower = nn.Conv2d(C, C, 1, groups=3), nn.Conv2d(2 * C, C, 1, groups=2)
        self.unpadded, self.dilated = nn.Conv2d(C, C, 3, bias=False), nn.Conv2d(C, C, 3, 1, 2, dilation=2)
        self.norm, self.linear, self.other = nn.BatchNorm2d(C), nn.Linear(C, C), nn.Linear(C, C)
        self.qkv = nn.Conv2d(C, 1 + 2 * C, 1)
        self.tokens = nn.Parameter(torch.randn(5, C))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, self.first(x))
        return self.last(y) if y.ndim == 4 else y


def layer_scale_in_front(m: Layers, x: Tensor) -> Tensor:
    return x + m.scale.unsqueeze(-1).unsqueeze(-1) * F.conv2d(x, m.last.weight)


def layer_scale_behind(m: Layers, x: Tensor) -> Tensor:
    return x + F.conv2d(x, m.last.weight) * m.scale[:, None, None]


def terms(m: Layers, x: Tensor) -> Tensor:
    return 0.5 + (x - m.scale[:, None, None]) / m.scale[None, :, None, None] - 2


def positions(m: Layers, x: Tensor) -> Tensor:
    return (x.flatten(2).mT + m.positions).mT.reshape(x.shape)


def positions_in_front(m: Layers, x: Tensor) -> Tensor:
    """Of tokens before images, one term for each of some dimensions."""
    y = m.positions.permute(1, 0, 2) + x.flatten(2).permute(2, 0, 1)
    return (y + m.positions[0, :, :1, None]).permute(1, 2, 0).reshape(x.shape)


def gates_of_pixels(m: Layers, x: Tensor) -> Tensor:
    """A factor for each element, the same for all images."""
    return (x.flatten(2).mT * m.positions.abs().clamp(0.5, 2)).mT.reshape(x.shape)


def hidden_pixels(m: Layers, x: Tensor) -> Tensor:
    return x * (m.positions.mT.reshape(x.shape[1:]) > 0).float()


def rectified(m: Layers, x: Tensor) -> Tensor:
    return F.hardtanh(F.conv2d(x.clamp(min=0), m.last.weight), 0.0, 6.0).clamp(0, 6)


def every_second_pixel(m: Layers, x: Tensor) -> Tensor:
    return m.depthwise(x) + F.avg_pool2d(x, 1, 2)


def pool_of_two(m: Layers, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def pool_with_borders(m: Layers, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1)


def pool_of_all(m: Layers, x: Tensor) -> Tensor:
    return m.linear(F.avg_pool2d(x, (H, W)).view(-1, C))


def pool_of_all_squeezed(m: Layers, x: Tensor) -> Tensor:
    return m.linear(nn.AvgPool2d((H, W), 1)(x).squeeze(-1).squeeze(-1))


def two_heads(m: Layers, x: Tensor) -> Tensor:
    """Each takes the mean of all pixels of a norm."""
    y = m.norm(x * 2)
    return (m.linear(y.mean((2, 3))) + m.other(y.mean((2, 3)))) / 2


def groups(m: Layers, x: Tensor) -> Tensor:
    return m.grouped(m.narrower(F.relu(m.wider(x))))


def shuffled(m: Layers, x: Tensor) -> Tensor:
    """As ShuffleNet does: of a product, and of what is none."""
    b, _, h, w = x.shape
    y = m.norm(m.grouped(x)).view(b, 3, C // 3, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
    return m.narrower(F.channel_shuffle(F.relu6(m.wider(y)), C))


def tokens_before_images(m: Layers, x: Tensor) -> Tensor:
    """As Mobile-Former's authors have it: tokens that are repeated, a linear map, a norm, and the first of them."""
    tokens = m.tokens[None].repeat(x.shape[0], 1, 1).clone().permute(1, 0, 2)
    keys = x.flatten(2)
    y = (m.linear(tokens).permute(1, 0, 2) @ keys * 0.3).softmax(-1) @ keys.permute(0, 2, 1)
    tokens = F.layer_norm(tokens + m.other(y.permute(1, 0, 2)), [C])
    return F.relu(m.other(tokens[0])) + m.linear(tokens[3])


def tokens_of_one(m: Layers, x: Tensor) -> Tensor:
    """Queries that are the same for every image, and not repeated."""
    tokens, keys = m.linear(m.tokens)[None], x.flatten(2)
    y = (tokens @ keys * 0.3).softmax(-1) @ keys.mT
    return m.other(m.tokens[None] + y).mean(1)


def our_patches(m: Layers, x: Tensor) -> Tensor:
    p = mk.ops.unfold_patches(x, (2, 4))
    y = m.linear(p.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
    return mk.ops.fold_patches(p + y, (H, W), (2, 4))


def our_attention(m: Layers, x: Tensor) -> Tensor:
    """Of patches, and of columns of pixels."""
    p = mk.ops.unfold_patches(m.qkv(x), (2, 4))
    y = mk.ops.fold_patches(mk.ops.separable_attention(p), (H, W), (2, 4))
    return y + mk.ops.separable_attention(m.qkv(y))


WHOLE = (
    layer_scale_in_front, layer_scale_behind, terms, positions, positions_in_front, gates_of_pixels, hidden_pixels, rectified,
    every_second_pixel, pool_of_two, pool_with_borders, pool_of_all, pool_of_all_squeezed, two_heads, groups, shuffled,
    tokens_before_images, tokens_of_one, our_patches, our_attention,
)  # fmt: skip


@pytest.mark.parametrize("middle", WHOLE, ids=lambda each: each.__name__)
def test_needs_no_torch(middle: Callable[[Layers, Tensor], Tensor]) -> None:
    model = random_statistics(Layers(middle))
    program = optimize(capture(model, SIZE))
    assert kinds(program)["torch"] == kinds(program)["affine"] == 0
    assert_the_same(model, program, SIZE)


def test_a_second_pixel_is_a_tap() -> None:
    assert kinds(optimize(capture(Layers(every_second_pixel).eval(), SIZE))) == {"input": 1, "conv2d": 2, "depthwise_conv2d": 1}


def test_heads_are_one() -> None:
    assert kinds(optimize(capture(Layers(two_heads).eval(), SIZE))) == {"input": 1, "avg_pool": 1, "linear": 1}


# --- through torch, and what is around that is not ---


def unpadded_and_normed(m: Layers, x: Tensor) -> Tensor:
    return m.norm(m.dilated(m.norm(m.unpadded(x))))


def padded_by_name(m: Layers, x: Tensor) -> Tensor:
    return m.norm(F.conv2d(x, m.unpadded.weight, padding="valid", bias=m.scale))


def of_negative_factors(m: Layers, x: Tensor) -> Tensor:
    """Tokens in between that torch makes: the linear maps before and behind are products all the same."""
    return m.other(m.linear(x.flatten(2).mT) * m.positions).mT.reshape(x.shape)


def of_small_factors(m: Layers, x: Tensor) -> Tensor:
    """Beside large ones, which a division takes back."""
    factors = torch.ones(C, H, W)
    factors[0] = 1e6
    return x * factors / factors.amax((1, 2), keepdim=True)


def of_endless_factors(m: Layers, x: Tensor) -> Tensor:
    """Of which the sign of x is left."""
    factors = torch.ones(C, H, W)
    factors[0, 0] = torch.inf
    return (x * factors).clamp(-9, 9)


def pool_of_three(m: Layers, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1)


def pool_of_odd_maps(m: Layers, x: Tensor) -> Tensor:
    return F.avg_pool2d(m.unpadded(x)[..., :3, :5], 2)


def image_times_image(m: Layers, x: Tensor) -> Tensor:
    return x * F.conv2d(x, m.last.weight) + x / (1 + x.abs())


def terms_of_more_images(m: Layers, x: Tensor) -> Tensor:
    """More dimensions than x."""
    return (x + m.scale[None, None, :, None, None])[0]


BY_TORCH = {
    unpadded_and_normed: 2, padded_by_name: 1, of_negative_factors: 6, of_small_factors: None, of_endless_factors: None, pool_of_three: 1,
    pool_of_odd_maps: None, image_times_image: None, terms_of_more_images: None,
}  # fmt: skip


@pytest.mark.parametrize("middle", BY_TORCH, ids=lambda each: each.__name__)
def test_by_torch(middle: Callable[[Layers, Tensor], Tensor]) -> None:
    model = random_statistics(Layers(middle))
    program = optimize(capture(model, SIZE))
    count = kinds(program)
    assert count["torch"]
    if BY_TORCH[middle] is not None:
        assert count["torch"] <= BY_TORCH[middle]
        assert count["affine"] == 0
    assert_the_same(model, program, SIZE)


@needs_native
@pytest.mark.parametrize("middle", [positions_in_front, shuffled, tokens_of_one, of_negative_factors], ids=lambda each: each.__name__)
def test_compiled(middle: Callable[[Layers, Tensor], Tensor]) -> None:
    model, x = random_statistics(Layers(middle)), torch.randn(3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(mk.compile(model, x)(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mobile_former_26m", pytest.param("mobile_former_52m", marks=pytest.mark.slow)])
def test_mobile_formers(name: str) -> None:
    """In plain ops, as the authors have them."""
    blocks = ((2, 24, 12), (1, 36, 12), (2, 72, 24), (1, 72, 24))
    options = {} if name.endswith("52m") else {"blocks": blocks, "token_dim": 16, "classifier_dim": 32}
    assert_as_its_modules(mk.create_model(name, num_classes=5, **options), (3, 64, 64))
