"""torch.compile(model, backend="mvit_kernels") reaches the plan that mk.compile makes."""

from __future__ import annotations

import copy

import pytest
import torch
from families import small
from op_checks import needs_native
from test_graph_capture import Plain, random_statistics
from torch import nn

import mvit_kernels as mk

pytestmark = needs_native


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@torch.no_grad()
def test_the_same_plan() -> None:
    model = random_statistics(small("mobilevitv2_050"))
    fast = torch.compile(model, backend="mvit_kernels")
    plan = mk.compile(model, torch.zeros(1, 3, 64, 64))
    for size in ((1, 3, 64, 64), (3, 3, 64, 64)):
        x = torch.randn(size)
        assert torch.equal(fast(x), plan(x))


@torch.no_grad()
def test_features_and_other_networks() -> None:
    x = torch.randn(2, 3, 64, 64)
    for model in (small("mobilevitv2_050", features_only=True), nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()), Plain()):
        model = random_statistics(model)
        expected, actual = model(x), torch.compile(model, backend="mvit_kernels")(x)
        pairs = zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True)
        assert all((y - right).abs().max() <= 1e-5 * right.abs().max() for y, right in pairs)


@torch.no_grad()
def test_a_part_of_a_network() -> None:
    """The graph ends before the model does: what is compiled is the graph."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            torch._dynamo.graph_break()
            return self.second(x)

    model, x = Broken().eval(), torch.randn(2, 3, 9, 9)
    assert torch.allclose(torch.compile(model, backend="mvit_kernels")(x), model(x), atol=1e-5)


@torch.no_grad()
def test_weights_that_change() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()).eval(), torch.randn(2, 3, 9, 9)
    fast = torch.compile(model, backend="mvit_kernels")
    before = fast(x)
    model[0].weight.mul_(1.5)
    assert not torch.allclose(fast(x), before)
    assert torch.allclose(fast(x), model(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_several_models_of_one_class() -> None:
    """To Dynamo they are the same code: one graph gets the weights of each."""
    models = [random_statistics(small("mobilevitv2_050")) for _ in range(2)]
    x = torch.randn(2, 3, 64, 64)
    fast = [torch.compile(model, backend="mvit_kernels") for model in models]
    plans = [mk.compile(model, x)(x) for model in models]
    for i in (0, 1, 0):
        assert torch.equal(fast[i](x), plans[i])
    other = copy.deepcopy(models[0])  # whose memory may be that of one that is gone
    models[0] = fast[0] = None
    other.head.fc.bias.add_(1.0)
    assert torch.equal(torch.compile(other, backend="mvit_kernels")(x), mk.compile(other, x)(x))


@torch.no_grad()
def test_functions_around_a_model_are_none_of_it() -> None:
    model, x = random_statistics(Plain()), torch.rand(2, 3, 64, 64)
    for around in (lambda model, x: model(x)[0].clamp(max=1e3), lambda model, x: model(x.clamp(0, 1))[0]):
        fast = torch.compile(around, backend="mvit_kernels")
        for images in (x, 1e3 * x):
            right = around(model, images)
            assert (fast(model, images) - right).abs().max() <= 1e-3 * right.abs().max()


@torch.no_grad()
def test_the_rest_of_a_forward_is_none_of_its_graph() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            torch._dynamo.graph_break()
            return y.clamp(max=10.0)

    model, x = Bounded().eval(), torch.randn(2, 3, 9, 9)
    fast = torch.compile(model, backend="mvit_kernels")
    for images in (x, 1e3 * x):
        assert torch.allclose(fast(images), model(images), atol=1e-3)


@torch.no_grad()
def test_parts_that_are_compiled_already() -> None:
    """None of them waits for another."""
    part, x = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU()).eval(), backend="mvit_kernels"), torch.randn(2, 3, 9, 9)
    right = part(x)
    assert torch.allclose(torch.compile(nn.Sequential(part).eval(), backend="mvit_kernels")(x), right, atol=1e-5)


@torch.no_grad()
def test_weights_that_are_replaced() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(2, 3, 9, 9)
    fast = torch.compile(model, backend="mvit_kernels")
    fast(x)
    model[0].weight.data = torch.randn(8, 3, 3, 3)
    assert torch.allclose(fast(x), model(x), atol=1e-5)


@torch.no_grad()
def test_parameters_that_a_forward_leaves_out() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.unused = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4), nn.Linear(3, 3)

        def forward(this, x: torch.Tensor) -> torch.Tensor:
            return this.last(this.first(x).mean((2, 3)).reshape(x.shape[0], -1))

    model, x = Partly().eval(), torch.randn(2, 3, 9, 9)
    assert torch.equal(torch.compile(model, backend="mvit_kernels")(x), mk.compile(model, x)(x))


@torch.no_grad()
def test_what_a_forward_keeps_beside_its_results() -> None:
    """As the attention of EfficientFormers keeps the biases that it gathers."""

    class Keeping(nn.Module):
        def __init__(self, of_images: bool) -> None:
            super().__init__()
            self.convolution, self.bias, self.kept, self.of_images = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(8, 1, 1)), {}, of_images

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            if not self.kept:
                self.kept["bias"] = y.mean((2, 3))[:1, :, None, None] if self.of_images else self.bias[[3, 1, 2, 0, 7, 6, 5, 4]]
            return (y + self.kept["bias"]).reshape(x.shape[0], -1)

    model, x = Keeping(of_images=False).eval(), torch.randn(2, 3, 9, 9)
    right = copy.deepcopy(model)
    fast = torch.compile(model, backend="mvit_kernels")
    for images in (x, x, x + 1):
        assert torch.allclose(fast(images), right(images), atol=1e-5)
        assert torch.equal(model.kept["bias"], right.kept["bias"])
    with pytest.raises(RuntimeError, match="made for 2 alone; and the model is not compiled: "):
        torch.compile(Keeping(of_images=True).eval(), backend="mvit_kernels")(x)


@torch.no_grad()
@pytest.mark.parametrize("case", ["bfloat16", "float16", "nan", "no images", "indices"])
def test_first_images_of_all_kinds(case: str) -> None:
    class Indices(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    layers = nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()
    model, x = (Indices(*layers) if case == "indices" else nn.Sequential(*layers)).eval(), torch.randn(2, 3, 9, 9)
    if case in ("bfloat16", "float16"):
        dtype = getattr(torch, case)
        model, x = model.to(dtype), x.to(dtype)
    fast = torch.compile(model, backend="mvit_kernels")
    first = x.clone()
    first[0, 0, 4, 4] = float("nan") if case == "nan" else 0
    first = first[:0] if case == "no images" else first
    for images in (first, x):
        actual, expected = fast(images), model(images)
        assert actual.dtype == expected.dtype
        assert torch.allclose(actual, expected, rtol=0, atol=0.02 if x.dtype != torch.float32 else 1e-5, equal_nan=True)


@torch.no_grad()
@pytest.mark.slow
def test_no_images_after_others() -> None:
    """Dynamo compiles anew for them, and the graph's sizes say 0."""
    model, x = random_statistics(small("mobilevit_xxs")), torch.randn(2, 3, 32, 32)
    fast = torch.compile(model, backend="mvit_kernels")
    for batch in (2, 1, 0, 2):
        assert torch.allclose(fast(x[:batch]), model(x[:batch]), atol=1e-5)


@torch.no_grad()
def test_models_that_are_refused() -> None:
    x = torch.randn(2, 3, 32, 32)
    model = small("mobilevit_xxs").eval()
    quantized = mk.quantize(model, [x], mk.QuantConfig(method="minmax"), progress=False)
    with pytest.raises(RuntimeError, match=r"expected a float model, got a quantized one; mk.compile takes it"):
        torch.compile(quantized, backend="mvit_kernels")(x)
    with pytest.raises(RuntimeError, match=r"expected a model in evaluation \(call model.eval\(\)\), got one in training"):
        torch.compile(model.train(), backend="mvit_kernels")(x)


@torch.no_grad()
def test_a_graph_of_one_image_alone() -> None:
    """Of a function there is no model to compile in the graph's place."""
    model = small("mobilevit_xxs").eval()
    with pytest.raises(RuntimeError, match="expected a graph of any number of images, got one that Dynamo made for 1 alone"):
        torch.compile(lambda x: 2 * model(x), backend="mvit_kernels")(torch.randn(1, 3, 32, 32))


def test_no_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU()).eval()
    with pytest.raises(RuntimeError, match=r"expected inference, under torch\.no_grad"):
        torch.compile(model, backend="mvit_kernels")(torch.randn(1, 3, 8, 8))
