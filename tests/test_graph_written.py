"""Networks that are written in torch's own ops: patches, heads and attention, in whatever way they are put, are the nodes that they are of
modules which this package knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_native
from test_graph_capture import kinds, random_statistics
from torch import nn

import mvit_kernels as mk
from mvit_kernels.graph import Program, capture, optimize, run

Tensor = torch.Tensor
C, HEADS, D, H, W = 12, 3, 4, 8, 12
SIZE = (C, H, W)


class Written(nn.Module):
    """A 1x1 convolution, attention by a function, with weights of its own, and another convolution."""

    def __init__(self, attention: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
        self.norm, self.out = nn.LayerNorm(C), nn.Linear(C, C)
        self.qkv, self.three = nn.Linear(C, 3 * C), nn.ModuleList(nn.Linear(C, C) for _ in range(3))
        self.maps, self.separable = nn.ModuleList(nn.Conv2d(C, n, 1) for n in (1, C, C)), nn.Conv2d(C, 1 + 2 * C, 1)
        self.multi = nn.MultiheadAttention(C, HEADS, batch_first=True)
        self.before, self.after = nn.Conv2d(HEADS, HEADS, 1), nn.Conv2d(HEADS, HEADS, 1)
        self.bias = nn.Parameter(torch.randn(HEADS, H * W, H * W))
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self, self.first(x)))


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float = D**-0.5) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1) @ v


# --- MobileViT ---


def patches(x: Tensor) -> Tensor:
    """(B, 4, N, C)"""
    x = x.reshape(x.shape[0], C, H // 2, 2, W // 2, 2)
    return x.permute(0, 3, 5, 2, 4, 1).reshape(x.shape[0], 4, -1, C)


def pixels(y: Tensor) -> Tensor:
    y = y.reshape(y.shape[0], 2, 2, H // 2, W // 2, C)
    return y.permute(0, 5, 3, 1, 4, 2).reshape(y.shape[0], C, H, W)


def chunks(m: Written, x: Tensor) -> Tensor:
    """As with einops: (b p n (h d))."""
    y = patches(x)
    q, k, v = (each.unflatten(-1, (HEADS, D)).transpose(2, 3) for each in m.qkv(m.norm(y)).chunk(3, dim=-1))
    return pixels(y + m.out(softmax(q, k, v).transpose(2, 3).flatten(3)))


def unbound(m: Written, x: Tensor) -> Tensor:
    """As in timm: phases are images."""
    y = patches(x).flatten(0, 1)
    q, k, v = m.qkv(m.norm(y)).reshape(*y.shape[:2], 3, HEADS, D).permute(2, 0, 3, 1, 4).unbind(0)
    z = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
    return pixels((y + m.out(z.transpose(1, 2).reshape(*y.shape))).unflatten(0, (-1, 4)))


def scaled_queries(m: Written, x: Tensor) -> Tensor:
    """As in ml-cvnets: transposed before heads, queries scaled."""
    y = patches(x).flatten(0, 1)
    qkv = m.qkv(y).reshape(*y.shape[:2], 3, HEADS, -1).transpose(1, 3).contiguous()
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    z = torch.matmul(F.softmax(torch.matmul(q * D**-0.5, k.transpose(-1, -2)), dim=-1), v)
    return pixels((y + m.out(z.transpose(1, 2).reshape(*y.shape))).unflatten(0, (-1, 4)))


def three_maps(m: Written, x: Tensor) -> Tensor:
    """As in transformers: a linear map each."""
    y = patches(x).flatten(0, 1)
    q, k, v = (each(y).view(*y.shape[:2], HEADS, D).transpose(1, 2) for each in m.three)
    z = F.dropout((torch.matmul(q, k.transpose(-1, -2)) / D**0.5).softmax(-1), 0.1, m.training) @ v
    return pixels((y + m.out(z.permute(0, 2, 1, 3).contiguous().view(*y.shape))).unflatten(0, (-1, 4)))


def heads_first(m: Written, x: Tensor) -> Tensor:
    """Of each head its queries, keys and values, side by side."""
    y = patches(x)
    q, k, v = m.qkv(y).unflatten(-1, (HEADS, 3 * D)).transpose(2, 3).split(D, dim=-1)
    return pixels(y + m.out(softmax(q, k, v).transpose(2, 3).flatten(3)))


def folded(m: Written, x: Tensor) -> Tensor:
    """nn.Unfold, nn.MultiheadAttention, nn.Fold."""
    y = F.unfold(x, 2, stride=2).reshape(x.shape[0], C, 4, -1).permute(0, 2, 3, 1).flatten(0, 1)
    y = y + m.multi(y, y, y)[0]
    return F.fold(y.unflatten(0, (-1, 4)).permute(0, 3, 1, 2).flatten(1, 2), (H, W), 2, stride=2)


def windows(m: Written, x: Tensor) -> Tensor:
    """Tensor.unfold; columns of patches before rows of them."""
    y = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 4, 5, 3, 2, 1).flatten(3, 4)
    q, k, v = (each(y).unflatten(-1, (HEADS, D)).transpose(3, 4) for each in m.three)
    y = m.out(softmax(q, k, v, 0.3).transpose(3, 4).flatten(4)).unflatten(3, (W // 2, H // 2))
    return x + y.permute(0, 5, 4, 1, 3, 2).reshape(x.shape)


MOBILEVIT = (chunks, unbound, scaled_queries, three_maps, heads_first, folded, windows)


# --- attention of all pixels ---


def tokens(m: Written, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    q, k, v = m.qkv(m.norm(y)).reshape(*y.shape[:2], 3, HEADS, D).permute(2, 0, 3, 1, 4)
    return (y + m.out(softmax(q, k, v).transpose(1, 2).flatten(2))).transpose(1, 2).reshape(x.shape)


def biased(m: Written, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    q, k, v = (each(y).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in m.three)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias[None])
    return (y + m.out(z.transpose(1, 2).flatten(2))).transpose(1, 2).unflatten(2, (H, W))


def talking(m: Written, x: Tensor) -> Tensor:
    """As in EfficientFormerV2."""
    q, k, v = (each(x.movedim(1, -1)).movedim(-1, 1).reshape(x.shape[0], HEADS, D, H * W) for each in m.three)
    weights = m.after(m.before(q.permute(0, 1, 3, 2) @ k * 0.4 + m.bias).softmax(dim=-1))
    return (weights @ v.permute(0, 1, 3, 2)).transpose(2, 3).reshape(x.shape) + x


def single_head(m: Written, x: Tensor) -> Tensor:
    """No dimension for heads, keys transposed by a view."""
    q, k, v = m.three[0](x.flatten(2).mT), m.three[1](x.flatten(2).mT).mT, m.three[2](x.flatten(2).mT)
    return torch.bmm((torch.bmm(q, k) * 0.2).softmax(2), v).mT.unflatten(2, (H, W)) + x


def sums(m: Written, x: Tensor) -> Tensor:
    """torch.einsum, heads behind pixels."""
    q, k, v = m.qkv(x.movedim(1, 3)).reshape(x.shape[0], H * W, 3, HEADS, D).unbind(2)
    weights = torch.einsum("bnhd,bmhd->bhnm", q * 0.1, k).softmax(-1)
    return torch.einsum("b h n m, b m h d -> b h d n", weights, v).reshape(x.shape) + x


def one_after_another(m: Written, x: Tensor) -> Tensor:
    """Channels of keys and values by turns, scores in a temperature that is a tensor."""
    y = x.flatten(2).mT
    q, kv = m.three[0](y).unflatten(-1, (HEADS, D)).transpose(1, 2), m.qkv(y)[..., : 2 * C].unflatten(-1, (HEADS, D, 2)).transpose(1, 2)
    z = (q @ kv[..., 0].mT * m.norm.weight[0]).softmax(-1) @ kv[..., 1]
    return z.transpose(1, 2).flatten(2).mT.unflatten(2, (H, W)) + x


# --- MobileViTv2 ---


def split(m: Written, x: Tensor) -> Tensor:
    y = F.unfold(x, 2, stride=2).reshape(x.shape[0], C, 4, -1)
    q, k, v = torch.split(m.separable(F.group_norm(y, 1)), [1, C, C], dim=1)
    context = (k * F.softmax(q, dim=-1)).sum(dim=-1, keepdim=True)
    y = y + m.last(F.relu(v) * context.expand_as(v))
    return F.fold(y.reshape(x.shape[0], C * 4, -1), (H, W), 2, stride=2)


def convolutions(m: Written, x: Tensor) -> Tensor:
    """A convolution each, on a map whose patches lie in front, and a product the other way around."""
    y = x.reshape(x.shape[0], C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(x.shape[0], C, 4, -1)
    q, k, v = (each(y) for each in m.maps)
    context = torch.sum(torch.softmax(q, -1) * k, -1, keepdim=True)
    y = m.last(context * v.relu()).reshape(x.shape[0], C, 2, 2, H // 2, W // 2)
    return y.permute(0, 1, 4, 2, 5, 3).reshape(x.shape)


def of_rows(m: Written, x: Tensor) -> Tensor:
    """In each row: of patches that are as high as the map."""
    q, k, v = torch.split(m.separable(x), [1, C, C], dim=1)
    return F.relu(v) * (k * q.softmax(-1)).sum(-1, keepdim=True)


NODES: dict[Callable[[Written, Tensor], Tensor], str] = {
    **dict.fromkeys(MOBILEVIT, "patch_attention"),
    tokens: "patch_attention",
    biased: "attention",
    talking: "attention",
    single_head: "attention",
    sums: "patch_attention",
    one_after_another: "attention",
    split: "separable_context",
    convolutions: "separable_context",
    of_rows: "separable_context",
}


def assert_the_same(model: nn.Module, program: Program, size: tuple[int, int, int]) -> None:
    for batch in (1, 3):
        x = torch.randn(batch, *size, dtype=torch.float64)
        with torch.no_grad():
            expected, actual = model.double()(x), run(program, x)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("attention", NODES, ids=lambda each: each.__name__)
def test_is_known(attention: Callable[[Written, Tensor], Tensor]) -> None:
    model = Written(attention).eval()
    program = optimize(capture(model, SIZE))
    count = kinds(program)
    assert count[NODES[attention]] == 1
    assert count["torch"] == count["cat"] == count["affine"] == 0
    if attention in MOBILEVIT:
        assert next(node for node in program if node.kind == "patch_attention").settings["patch"] == (2, 2)
    assert_the_same(model, program, SIZE)


@needs_native
@pytest.mark.parametrize("attention", [unbound, folded, talking, split], ids=lambda each: each.__name__)
def test_compiled(attention: Callable[[Written, Tensor], Tensor]) -> None:
    model, x = Written(attention).eval(), torch.randn(2, *SIZE)
    fast = mk.compile(model, x)
    assert not fast.report().fallbacks
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)


@needs_native
def test_quantized() -> None:
    """In integers, as those are of modules that are known."""
    model, x = Written(scaled_queries).eval(), torch.randn(4, *SIZE)
    quantized = mk.quantize(model, [x], progress=False)
    assert kinds(quantized.program(SIZE))["qpatch_attention"] == 1
    with torch.no_grad():
        expected = model(x)
    assert (quantized(x) - expected).abs().mean() <= 0.02 * expected.abs().mean()
    assert torch.equal(mk.convert(quantized)(x), quantized(x))


# --- what is something else ---


def neighbours_in_a_window(m: Written, x: Tensor) -> Tensor:
    """Attention inside of each patch."""
    y = patches(x).transpose(1, 2)
    q, k, v = (each(y).unflatten(-1, (HEADS, D)).transpose(2, 3) for each in m.three)
    return pixels((y + softmax(q, k, v).transpose(2, 3).flatten(3)).transpose(1, 2))


def other_pixels(m: Written, x: Tensor) -> Tensor:
    """Values in another order than keys."""
    y = patches(x)
    q, k = (each(y).unflatten(-1, (HEADS, D)).transpose(2, 3) for each in m.three[:2])
    v = m.three[2](y.unflatten(2, (H // 2, W // 2)).transpose(2, 3).flatten(2, 3)).unflatten(-1, (HEADS, D)).transpose(2, 3)
    return pixels(y + softmax(q, k, v).transpose(2, 3).flatten(3))


def other_images(m: Written, x: Tensor) -> Tensor:
    """Attention from image to image."""
    y = x.flatten(2).permute(2, 0, 1)
    q, k, v = (each(y) for each in m.three)
    return softmax(q, k, v).permute(1, 2, 0).unflatten(2, (H, W))


def of_channels(m: Written, x: Tensor) -> Tensor:
    """Scores of channels."""
    q, k, v = (each(x.flatten(2).mT).mT.unflatten(1, (HEADS, D)) for each in m.three)
    return softmax(q, k, v).flatten(1, 2).unflatten(2, (H, W))


def of_queries(m: Written, x: Tensor) -> Tensor:
    q, k, v = (each(x.flatten(2).mT).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in m.three)
    return ((q @ k.mT * 0.5).softmax(dim=-2) @ v).transpose(1, 2).flatten(2).mT.unflatten(2, (H, W))


def causal(m: Written, x: Tensor) -> Tensor:
    q, k, v = (each(x.flatten(2).mT).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in m.three)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).mT.unflatten(2, (H, W))


def masked_by_the_image(m: Written, x: Tensor) -> Tensor:
    q, k, v = (each(x.flatten(2).mT).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in m.three)
    mask = x.mean(1).flatten(1)[:, None, None]
    return ((q @ k.mT + mask).softmax(-1) @ v).transpose(1, 2).flatten(2).mT.unflatten(2, (H, W))


def heads_of_others(m: Written, x: Tensor) -> Tensor:
    """Queries of one head meet keys of another."""
    q, k, v = (each(x.flatten(2).mT).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in m.three)
    return softmax(q, k.roll(1, dims=1), v).transpose(1, 2).flatten(2).mT.unflatten(2, (H, W))


def without_relu(m: Written, x: Tensor) -> Tensor:
    y = F.unfold(x, 2, stride=2).reshape(x.shape[0], C, 4, -1)
    q, k, v = torch.split(m.separable(y), [1, C, C], dim=1)
    y = F.hardtanh(v) * (k * F.softmax(q, dim=-1)).sum(dim=-1, keepdim=True)
    return F.fold(y.reshape(x.shape[0], C * 4, -1), (H, W), 2, stride=2)


def contexts_of_phases(m: Written, x: Tensor) -> Tensor:
    """A softmax over one dimension, a sum over another."""
    y = F.unfold(x, 2, stride=2).reshape(x.shape[0], C, 4, -1)
    q, k, v = torch.split(m.separable(y), [1, C, C], dim=1)
    y = F.relu(v) * (k * F.softmax(q, dim=-1)).sum(dim=-2, keepdim=True)
    return F.fold(y.reshape(x.shape[0], C * 4, -1), (H, W), 2, stride=2)


def weights_of_images(m: Written, x: Tensor) -> Tensor:
    """A softmax over the images of a batch."""
    q, k, v = torch.split(m.separable(x), [1, C, C], dim=1)
    return F.relu(v) * (k * q.softmax(0)).sum(0, keepdim=True)


OTHERS = (
    neighbours_in_a_window, other_pixels, other_images, of_channels, of_queries, causal, masked_by_the_image, heads_of_others, without_relu,
    contexts_of_phases, weights_of_images,
)  # fmt: skip


def assert_something_else(model: nn.Module) -> None:
    program = optimize(capture(model, SIZE))
    assert not {"attention", "patch_attention", "separable_attention", "separable_context"} & set(kinds(program))
    assert_the_same(model, program, SIZE)


@pytest.mark.parametrize("attention", OTHERS, ids=lambda each: each.__name__)
def test_what_is_something_else(attention: Callable[[Written, Tensor], Tensor]) -> None:
    assert_something_else(Written(attention).eval())


class Bare(Written):
    """Attention alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self, x)


def three(m: Written, x: Tensor) -> list[Tensor]:
    return [each(x.flatten(2).mT) for each in m.three]


def bias_of_more_dimensions(m: Written, x: Tensor) -> Tensor:
    q, k, v = three(m, x)
    return (q @ k.mT + m.bias[None, :1]).softmax(-1) @ v


def bias_of_more_heads(m: Written, x: Tensor) -> Tensor:
    q, k, v = (each[:, None] for each in three(m, x))
    return (q @ k.mT + m.bias).softmax(-1) @ v


def bias_of_more_queries(m: Written, x: Tensor) -> Tensor:
    _, k, v = three(m, x)
    q = m.three[0](F.avg_pool2d(x, (H, W)).flatten(2).mT)
    return (q @ k.mT + m.bias[0]).softmax(-1) @ v


def sum_of_channels(m: Written, x: Tensor) -> Tensor:
    """A softmax over one channel is 1."""
    q, k, v = torch.split(m.separable(x), [1, C, C], dim=1)
    return F.relu(v) * (k * q.softmax(1)).sum(1, keepdim=True)


def product_of_a_line(m: Written, x: Tensor) -> Tensor:
    return x[:, :1].mean((2, 3)).flatten() @ x[:, :1].flatten(2).permute(2, 0, 1)


def linear_map_to_a_line(m: Written, x: Tensor) -> Tensor:
    return F.linear(x.flatten(2).mT, m.norm.weight)


ODD = (
    bias_of_more_dimensions, bias_of_more_heads, bias_of_more_queries, sum_of_channels, product_of_a_line, linear_map_to_a_line,
)  # fmt: skip


@pytest.mark.parametrize("attention", ODD, ids=lambda each: each.__name__)
def test_results_of_other_shapes(attention: Callable[[Written, Tensor], Tensor]) -> None:
    """What is attention, a context or a product but for the shape of its result."""
    assert_something_else(Bare(attention).eval())


class Two(Written):
    """What lies on the way is a result, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (each(x.flatten(2).mT).unflatten(-1, (HEADS, D)).transpose(1, 2) for each in self.three)
        scores = q @ k.mT * 0.5
        weights = scores.softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights, F.conv2d(scores, self.before.weight)


def test_scores_for_others() -> None:
    model = Two(tokens).eval()
    program = optimize(capture(model, SIZE))
    assert kinds(program)["attention"] == 1
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        for actual, expected in zip(run(program, x), model(x), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


class Mixer(nn.Module):
    """EfficientFormer's."""

    def __init__(self, scaled: bool, include: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=include)
        self.scale = nn.Parameter(torch.rand(C, 1, 1)) if scaled else 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.pool(x) - x) * self.scale


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_mixer(scaled: bool, include: bool) -> None:
    model = Mixer(scaled, include).eval()
    program = optimize(capture(model, SIZE))
    assert kinds(program)["pool_mixer"] == (not include)
    assert_the_same(model, program, SIZE)


# --- whole networks ---


def in_plain_ops(model: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """The graph that torch exports, which has no modules that anyone knows."""
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        return torch.export.export(model, (torch.zeros(2, *size),), dynamic_shapes=shapes, strict=False).module()


def assert_as_its_modules(model: nn.Module, size: tuple[int, int, int], torch_nodes: int = 0) -> None:
    model = random_statistics(model)
    modules, written = (optimize(capture(each, size)) for each in (model, in_plain_ops(model, size)))
    count = kinds(written)
    assert count["torch"] == torch_nodes
    assert len(written) <= len(modules) + 2 * torch_nodes  # each with the sum that takes its result
    x = torch.randn(2, *size)
    expected, actual = (torch.utils._pytree.tree_leaves(run(each, x))[0] for each in (modules, written))
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.slow
def test_our_networks(name: str) -> None:
    assert_as_its_modules(mk.create_model(name, num_classes=5), (3, 64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "efficientformer_l1", "efficientformerv2_s0"])
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    side = 224 if "former" in name else 112  # odd maps are resized
    assert_as_its_modules(timm.create_model(name, num_classes=5), (3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["MobileViT", "MobileViTV2"])
def test_networks_of_transformers(version: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{version}Config")()
    assert_as_its_modules(getattr(transformers, f"{version}ForImageClassification")(config), (3, 128, 128))
