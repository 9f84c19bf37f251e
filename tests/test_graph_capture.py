"""A captured program computes what the model does, and is made of the nodes that it should be."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import mvit_kernels as mk
from mvit_kernels.graph import Program, capture, run


def random_statistics(model: nn.Module) -> nn.Module:
    """In evaluation, with norms that are not the identity."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def assert_the_same(model: nn.Module, size: tuple[int, int, int], batches: tuple[int, ...] = (1, 3)) -> Program:
    program = capture(model, size)
    model = model.double()
    for batch in batches:
        x = torch.randn(batch, *size, dtype=torch.float64)
        with torch.no_grad():
            expected, actual = model(x), run(program, x)
        assert type(actual) is type(expected)
        pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
        for y, exact in ((y, exact) for y, exact in pairs if exact is not None):
            assert y.shape == exact.shape
            assert (y - exact).abs().max() <= 1e-5 * exact.abs().max()  # folded weights are float32
    return program


def kinds(program: Program) -> Counter[str]:
    return Counter(node.kind for node in program)


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_our_models(name):
    program = assert_the_same(random_statistics(mk.create_model(name, num_classes=7)), (3, 64, 96))
    count = kinds(program)
    assert count["torch"] == count["affine"] == 0
    assert count["patch_attention" if name == "mobilevit_xxs" else "separable_attention"] == 9
    assert "stages.3.1.transformer.0.attn.out_proj" in program or "stages.3.1.transformer.0.attn.proj" in program
    assert program["input"].size == (3, 64, 96)


def test_names_stay_at_other_resolutions():
    model = mk.create_model("mobilevitv2_050", num_classes=7).eval()
    small, large = capture(model, (3, 64, 64)), capture(model, (3, 96, 128))
    names = [node.name for node in large]
    assert [node.name for node in small] == [name for name in names if not name.endswith("resize")]
    assert len(names) > len(small)  # 3 rows are resized to 4


def test_odd_maps_are_resized():
    """MobileViT resizes maps that its patches do not divide, and resizes them back."""
    program = assert_the_same(random_statistics(mk.create_model("mobilevit_xxs", num_classes=7)), (3, 112, 96))
    assert kinds(program)["resize"] == 4
    assert kinds(program)["torch"] == 0


def test_feature_pyramids():
    program = assert_the_same(random_statistics(mk.create_model("mobilevitv2_050", features_only=True)), (3, 64, 64))
    assert len(program.outputs) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in mk.list_models() if name.startswith("mobilevit")])
def test_every_model(name):
    size = (3, 128, 128)
    model = random_statistics(mk.create_model(name))
    program = assert_the_same(model, size, (1,))
    assert kinds(program)["torch"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv2_050 112"])
def test_timm(name):
    timm = pytest.importorskip("timm")
    name, _, side = name.partition(" ")
    side = int(side or 128)
    program = assert_the_same(random_statistics(timm.create_model(name, num_classes=7)), (3, side, side))
    assert kinds(program)["torch"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_transformers(version):
    transformers = pytest.importorskip("transformers")
    if version == 1:
        config = transformers.MobileViTConfig(
            hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320], expand_ratio=2.0
        )  # fmt: skip
        model = transformers.MobileViTForImageClassification(config)
    else:
        model = transformers.MobileViTV2ForImageClassification(transformers.MobileViTV2Config(width_multiplier=0.5))
    program = capture(random_statistics(model), (3, 128, 128))
    x = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = run(program, x), model.double()(x)
    assert type(actual) is type(expected)
    assert (actual.logits - expected.logits).abs().max() <= 1e-5 * expected.logits.abs().max()
    assert kinds(program)["torch"] == 0


class Plain(nn.Module):
    """A CNN with what programs know and some that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.GELU())
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = self.stem(x)
        x = x + self.conv(x)
        both = torch.cat([self.depthwise(x), torch.tanh(x[:, :, ::2, ::2])], dim=1)
        return self.head(self.norm(both)), {"features": both}


def test_what_no_rule_knows_runs_through_torch():
    program = assert_the_same(random_statistics(Plain()), (3, 32, 48))
    count = kinds(program)
    assert (count["conv2d"], count["depthwise_conv2d"], count["affine"], count["add"], count["cat"], count["linear"]) == (1, 1, 3, 1, 1, 1)
    targets = {str(node.settings["target"]) for node in program if node.kind == "torch"}
    assert {"aten.conv2d.default", "aten.max_pool2d.default", "aten.tanh.default"} <= targets
    assert "tanh" in str(program)


def test_the_model_is_left_as_it_is():
    model = mk.create_model("mobilevitv2_050", num_classes=7).eval()
    before = {name: (value, value._version) for name, value in model.state_dict(keep_vars=True).items()}
    classes = [type(module) for module in model.modules()]
    program = capture(model, (3, 64, 64))
    assert [type(module) for module in model.modules()] == classes
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert value._version == before[name][1]
    assert all(node.weights is not None for node in program)


def test_a_program_prints_and_counts():
    program = capture(mk.create_model("mobilevitv2_100").eval(), (3, 256, 256))
    assert round(program.macs() / 1e6) == 1812  # 1813 of the paper, less the products of separable attention
    text = str(program)
    assert len(text.splitlines()) == len(program) + 1
    assert "head.fc: 1000 = linear(stages.4.1.conv_proj.conv.avg_pool)  [weight 1000x512, bias 1000]" in text


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2, torch.ones(3)


def test_bad_input():
    with pytest.raises(ValueError, match="capture: model: expected results that depend on the image, got ones"):
        capture(Constant().eval(), (3, 8, 8))
    model = mk.create_model("mobilevitv2_050", num_classes=7)
    with pytest.raises(ValueError, match="capture: model: expected a model in evaluation"):
        capture(model, (3, 64, 64))
    with pytest.raises(ValueError, match=r"capture: model: expected one that torch.compile was given"):
        capture(torch.compile(model), (3, 64, 64))
    with pytest.raises(TypeError, match=r"capture: model: expected a torch.nn.Module, got int"):
        capture(3, (3, 64, 64))
    with pytest.raises(ValueError, match=r"capture: size: expected \(channels, height, width\), got \(3, 64\)"):
        capture(model.eval(), (3, 64))
    with pytest.raises(ValueError, match=r"capture: size: expected \(channels, height, width\), got 64"):
        capture(model, 64)


class Narrow(nn.Module):
    """A convolution, and what a function makes of its result."""

    def __init__(self, function=lambda y: y):
        super().__init__()
        self.stem, self.function = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), function

    def forward(self, x):
        return self.function(self.stem(x))


@dataclasses.dataclass
class Unregistered:
    y: torch.Tensor


@dataclasses.dataclass
class Registered:
    y: torch.Tensor


torch.export.register_dataclass(Registered)


class Branches(Narrow):
    def forward(self, x):
        return x if self.stem(x).sum() > 0 else -x


@pytest.mark.parametrize("model", [Branches(), Narrow(lambda y: y[:, : int(y.sum())])], ids=["branch", "shape"])
def test_what_depends_on_values_is_refused_in_one_line(capfd, model):
    message = rf"capture: model: expected the same operations and shapes for all images, got what depends on .* at {__file__}:\d+$"
    with pytest.raises(ValueError, match=message) as raised:
        capture(model.eval(), (3, 8, 8))
    assert "data-dependent" in str(raised.value.__cause__)
    assert "def forward(" not in capfd.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 5])
def test_graphs_of_one_batch(count):
    graph = torch.export.export(Narrow().eval(), (torch.zeros(count, 3, 8, 8),)).module()
    match = rf"^capture: model: expected one that takes any number of images, got one of {count} at a time \(export it with dynamic_shapes"
    with pytest.raises(ValueError, match=match):
        capture(graph, (3, 8, 8))
    with pytest.raises(ValueError, match=r"got one of 2 at a time$"):
        capture(Narrow(lambda y: y.reshape(2, -1)).eval(), (3, 8, 8))


class Images(nn.Module):
    """What concerns the images of a batch, not their channels."""

    def forward(self, x):
        y = x[: x.shape[0]] * torch.ones(()) / torch.tensor(4.0)
        return torch.cat([y.mean(1, keepdim=True).expand(x.shape[0], 2, -1, -1), y], dim=1)


def test_images_of_a_batch():
    model = Images()
    program, x = capture(model.eval(), (3, 8, 8)), torch.randn(3, 3, 8, 8)
    assert torch.equal(run(program, x), model(x))


class Halved(nn.Module):
    """A write, and a copy that has a shape of its own."""

    def forward(self, x):
        y = x.clone()
        y[:, :1].mul_(0.5)
        return y.unflatten(1, (2, 2)).flip(2).transpose(1, 3).flatten(2, 3)


def test_copies_in_another_shape():
    model = Halved().eval()
    program, x = capture(model, (4, 2, 3)), torch.randn(3, 4, 2, 3)
    assert torch.equal(run(program, x), model(x))


class Squeezed(nn.Module):
    """One image has no dimension of its own any more."""

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        return y.squeeze(), y.squeeze(0), y.squeeze(-4), y.squeeze(-1).squeeze(2), x.squeeze((0, 1))


@pytest.mark.parametrize("count", [1, 3])
def test_squeezed_images(count):
    model = Squeezed().eval()
    program, x = capture(model, (4, 8, 8)), torch.randn(count, 4, 8, 8)
    for actual, expected in zip(run(program, x), model(x), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.unflatten(1, (2, 2)).flatten(0, 1).split([x.shape[0], x.shape[0]])[1],
        lambda x: torch.cat([torch.ones(1, 1, 36).expand(2 * x.shape[0], -1, -1), x.unflatten(1, (2, 2)).flatten(0, 1).flatten(2)], dim=1),
    ],
)
def test_parts_of_as_many_images_are_refused(function):
    with pytest.raises(ValueError, match=r"^capture: \w+: expected no arithmetic on the size of the batch"):
        capture(Narrow(function).eval(), (3, 8, 8))


def test_results_of_an_unknown_type():
    with pytest.raises(ValueError, match=r"capture: model: expected results in tensors, .*register_dataclass knows, got Unregistered$"):
        capture(Narrow(Unregistered).eval(), (3, 8, 8))
    assert len(capture(Narrow(Registered).eval(), (3, 8, 8)).outputs) == 1


def test_images_of_other_channels():
    """The network's own error would blame a weight."""
    timm = pytest.importorskip("timm")
    for model, name in (
        (Narrow(), "stem.0"),
        (nn.Conv2d(3, 4, 1), "the model"),
        (timm.create_model("mobilevitv2_050"), "stem.conv"),
    ):
        match = rf"capture: images: expected 3 channels, which the first convolution \({name}\) takes, got 4"
        with pytest.raises(ValueError, match=match):
            capture(model.eval(), (4, 64, 64))
        assert not any(each._forward_pre_hooks for each in model.modules())
    ours = mk.create_model("mobilevitv2_050").eval()
    with pytest.raises(ValueError, match=r"capture: images: MobileViTv2: expected images \(B, 3, H, W\), got \(2, 4, 64, 64\)"):
        capture(ours, (4, 64, 64))
    x = torch.zeros(1, 4, 16, 16)
    for function, argument in ((mk.compile, x), (mk.quantize, [x])):
        with pytest.raises(ValueError, match=r"images: expected 3 channels, .*, got 4"):
            function(Narrow().eval(), argument)
    with pytest.raises(RuntimeError, match="3"):  # of a convolution that takes others than the images' channels: torch's own words
        capture(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(3, 4, 1)).eval(), (3, 8, 8))


def test_products_of_attention_count():
    program = capture(mk.create_model("mobilevit_xxs").eval(), (3, 256, 256))
    attention = [node.macs() for node in program if node.kind == "patch_attention"]
    # queries with keys, weights with values: 4 phases of 256, 64 and 16 pixels, 64, 80 and 96 channels, in 2, 4 and 3 layers
    assert attention == 2 * [2 * 4 * 256 * 256 * 64] + 4 * [2 * 4 * 64 * 64 * 80] + 3 * [2 * 4 * 16 * 16 * 96]


def test_errors_name_what_was_called():
    model, wrong = mk.create_model("mobilevitv2_050", num_classes=3).eval(), torch.randn(1, 2, 64, 64)
    with pytest.raises(ValueError, match=r"^quantize: images: "):
        mk.quantize(model, [wrong], mk.QuantConfig(method="minmax"))
    if mk.backends()["cpu"].usable:
        with pytest.raises(ValueError, match=r"^compile: images: "):
            mk.compile(model, wrong)
