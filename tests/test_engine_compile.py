"""A compiled model gives what the model gives, whatever comes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
import torch.nn.functional as F
from op_checks import needs_native
from test_graph_capture import Plain, random_statistics
from torch import nn
from torch.utils import _pytree as pytree

import mvit_kernels as mk
from mvit_kernels.engine import plan, report
from mvit_kernels.engine.lower_integers import lower
from mvit_kernels.graph import Program, capture, optimize

pytestmark = needs_native
Tensor = torch.Tensor


def leaves(result: object) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(result) if each is not None]


def assert_runs_or_is_simulated(model: nn.Module, quantized: mk.QuantizedModel, x: Tensor) -> None:
    """Compiled with the same bits; or, by a method whose quantizers no kernel runs, near the float model and not compiled."""
    y = quantized(x)
    if not quantized.simulation_only():
        assert torch.equal(mk.compile(quantized, x)(x), y)
        return
    assert any(key.endswith(".softmax") for key in quantized.representations)
    with torch.no_grad():
        exact = model(x)
    assert (y - exact).norm() < 0.3 * exact.norm()
    with pytest.raises(ValueError, match=r"compile: model: expected quantizers that kernels run, got .* can only be simulated"):
        mk.compile(quantized, x)


def assert_compiled(model: nn.Module, fast: mk.CompiledModel, x: Tensor, *, rule: float | None = None) -> None:
    """By the float rule against eager; for results of stored 16 bits, within `rule` of the largest."""
    with torch.no_grad():
        actual, plain, exact = fast(x), model(x.float()), copy.deepcopy(model).double()(x.double())
    assert type(actual) is type(plain)
    for ours, theirs, right in zip(leaves(actual), leaves(plain), leaves(exact), strict=True):
        assert ours.shape == right.shape
        assert ours.dtype == x.dtype
        if rule is None:
            # Merged weights are rounded elsewhere than the model's own: a few roundings more where torch is lucky.
            slack = 2e-6 * right.abs().max()
            assert (ours - right).abs().max() <= 2 * (theirs - right).abs().max() + slack
        else:
            assert (ours - right).abs().max() <= rule * right.abs().max()


@pytest.fixture(scope="module", params=["mobilevitv2_050", "mobilevit_xxs"])
def network(request) -> tuple[nn.Module, mk.CompiledModel]:
    torch.manual_seed(0)
    model = random_statistics(families.small(request.param))
    return model, mk.compile(model, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_our_models(network, batch: int, isa: str, poison) -> None:
    model, fast = network
    assert_compiled(model, fast, torch.randn(batch, 3, 64, 64))


def test_the_same_bits_with_any_threads_and_batch(network, threads) -> None:
    _model, fast = network
    x = torch.randn(5, 3, 64, 64)
    expected = fast(x)
    for count in (1, 2, 3):
        threads(count)
        assert torch.equal(fast(x), expected)
        assert torch.equal(torch.cat([fast(image[None]) for image in x]), expected)


@functools.cache
def floats(name: str) -> Program:
    return optimize(capture(families.network(name), (3, 64, 64)))


@functools.cache
def integers(name: str) -> Program:
    return mk.quantize(families.network(name), [families.images(5)], mk.QuantConfig(method="minmax"), progress=False).program()


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", list(families.FAMILIES))
@pytest.mark.slow
def test_several_images_at_once(name: str, form: str, threads, monkeypatch) -> None:
    """All steps that can take them, to the same bits."""
    program = integers(name) if form == "int8" else floats(name)
    x = families.images(5)

    def compiled() -> mk.CompiledModel:
        """As `mk.compile` makes it of a model, which it would capture each time."""
        made = plan.assemble(lower(program, torch.bfloat16 if form == "bfloat16" else torch.float32))
        return mk.CompiledModel(None, {(3, 64, 64): made}, None)

    single = compiled()
    expected = torch.cat([single(image[None]) for image in x])
    assert torch.equal(single(x), expected)
    monkeypatch.setattr(plan, "_first_together", lambda steps: 0)
    together = compiled()
    (segment, *_) = together.plan((3, 64, 64)).parts
    assert segment.first == 0
    for count in (1, 2):
        threads(count)
        assert torch.equal(together(x), expected)


def test_weights_that_are_larger_than_maps_are_read_once() -> None:
    """The last stage of EfficientFormer-L1, but not the whole of a network whose weights are few."""
    large = mk.compile(mk.create_model("efficientformer_l1").eval(), torch.zeros(1, 3, 224, 224))
    (segment,) = large.plan((3, 224, 224)).parts
    assert segment.steps[segment.first].nodes[-1] == "stages.3.downsample.conv"
    small = mk.compile(mk.create_model("mobilevitv2_050").eval(), torch.zeros(1, 3, 256, 256), dtype=torch.bfloat16)
    (segment,) = small.plan((3, 256, 256)).parts
    assert segment.first == len(segment.steps)


def test_several_threads_share_a_model(network) -> None:
    _model, fast = network
    images = torch.randn(12, 2, 3, 64, 64)
    expected = [fast(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for y, right in zip(pool.map(fast, images), expected, strict=True):
                assert torch.equal(y, right)


def test_several_threads_compile() -> None:
    def compiled(seed: int) -> mk.CompiledModel:
        return mk.compile(nn.Sequential(nn.Conv2d(3, 4 + seed, 3, padding=1), nn.SiLU()).eval(), torch.zeros(1, 3, 8, 8))

    with ThreadPoolExecutor(4) as pool:
        for seed, fast in enumerate(pool.map(compiled, range(12))):
            assert fast(torch.zeros(1, 3, 8, 8)).shape == (1, 4 + seed, 8, 8)


def test_any_memory_and_no_images(network) -> None:
    _model, fast = network
    x = torch.randn(2, 3, 64, 64)
    expected = fast(x)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(fast(torch.cat([x, x], 3)[..., ::2].clone()[:, :, :, :64]), fast(torch.cat([x, x], 3)[..., ::2]))
    assert torch.equal(fast(x.requires_grad_()), expected)
    assert fast(x[:0]).shape == (0, 7)
    assert torch.equal(fast(x), expected)


def test_nan_reaches_the_result_of_its_image_only(network) -> None:
    _model, fast = network
    x = torch.randn(3, 3, 64, 64)
    expected = fast(x)
    x[1, :, 5, 5] = float("nan")
    y = fast(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


def test_other_sizes_are_compiled_when_they_come(network) -> None:
    model, fast = network
    assert_compiled(model, fast, torch.randn(1, 3, 112, 72))
    assert_compiled(model, fast, torch.randn(2, 3, 64, 64))


def test_sizes_that_nobody_wants_are_forgotten(monkeypatch) -> None:
    from mvit_kernels.engine import compiled

    monkeypatch.setattr(compiled, "MOST_PLANS", 3)
    fast = mk.compile(nn.Conv2d(3, 4, 1).eval(), torch.zeros(1, 3, 4, 4))
    for side in (5, 6, 5, 7, 5, 8):
        fast(torch.zeros(1, 3, side, side))
    assert [size[1] for size in fast._plans] == [4, 5, 8]


def test_results_do_not_alias(network) -> None:
    _model, fast = network
    x = torch.randn(1, 3, 64, 64)
    first = fast(x)
    kept = first.clone()
    fast(torch.randn(1, 3, 64, 64))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.slow
def test_sixteen_bits(network, dtype: torch.dtype) -> None:
    model, _ = network
    fast = mk.compile(model, torch.zeros(1, 3, 64, 64), dtype=dtype)
    assert_compiled(model, fast, torch.randn(2, 3, 64, 64), rule=0.1 if dtype == torch.bfloat16 else 0.02)
    assert_compiled(model, fast, torch.randn(2, 3, 64, 64).to(dtype), rule=0.1 if dtype == torch.bfloat16 else 0.02)


def test_the_model_may_change_later() -> None:
    model = random_statistics(families.small("mobilevitv2_050"))
    x = torch.randn(1, 3, 64, 64)
    fast = mk.compile(model, x)
    before = fast(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(fast(x), before)
    assert torch.equal(fast(torch.cat([x, x], 2))[0], mk.compile(fast._source.model, torch.cat([x, x], 2))(torch.cat([x, x], 2))[0])


def test_accelerated_models() -> None:
    model = random_statistics(families.small("mobilevitv2_050"))
    x = torch.randn(1, 3, 64, 64)
    expected = mk.compile(model, x)(x)
    assert torch.equal(mk.compile(mk.accelerate(model), x)(x), expected)


def test_feature_pyramids() -> None:
    model = random_statistics(families.small("mobilevitv2_050", features_only=True))
    x = torch.randn(2, 3, 64, 64)
    fast = mk.compile(model, x)
    assert_compiled(model, fast, x)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in fast(x)[:4])


def test_what_has_no_kernel_runs_through_torch() -> None:
    model = random_statistics(Plain())
    x = torch.randn(2, 3, 32, 48)
    fast = mk.compile(model, x)
    assert_compiled(model, fast, x)
    reasons = {row.op: row.reason for row in fast.report().fallbacks}
    assert reasons.keys() == {"aten.conv2d.default", "aten.max_pool2d.default", "aten.tanh.default", "aten.slice.Tensor"}
    assert set(reasons.values()) == {"no kernel for it"}


class Other(nn.Module):
    """What MobileViTs have not: sums and activations of their own, concatenations, a norm whose result is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(5, 16, 1, stride=2), nn.Conv2d(16, 16, 3, 2, 1)
        self.norm, self.third = nn.GroupNorm(1, 16), nn.Conv2d(16, 7, 1)
        self.depthwise = nn.Conv2d(7, 7, 3, 1, 1, groups=7)
        self.last = nn.Conv2d(14, 9, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = torch.relu(self.first(x) + nn.functional.interpolate(self.second(self.first(x)), self.first(x).shape[2:], mode="bilinear"))
        normal = self.norm(x)
        y = self.third(nn.functional.gelu(normal))
        both = torch.cat([y, torch.relu(self.depthwise(y))], 1)
        return self.last(both), both, normal, both.mean((2, 3))


@pytest.mark.parametrize("size", [(1, 5, 8, 8), (3, 5, 13, 9), (1, 5, 1, 1)], ids=str)
def test_other_networks(size, isa: str) -> None:
    model = Other().eval()
    x = torch.randn(size)
    fast = mk.compile(model, x)
    assert_compiled(model, fast, x)
    assert not fast.report().fallbacks or size[2] == 1


class Parts(nn.Module):
    """A network whose forward is given."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.norm, self.pointwise, self.flat = nn.LayerNorm(8, bias=False), nn.Conv2d(8, 8, 1), nn.Linear(8 * 64, 4)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("mask", torch.rand(8, 8, 8) > 0.5)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def largest_first(x: Tensor) -> Tensor:
    return x * x.max(1, keepdim=True)[0]


def without_autocast(m: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.second(m.first(x).float())


def with_gradients(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = m.first(x)
    return m.second(x).detach()


def written_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x = m.first(x).clone()
    x[:, 1:3] = 0.5
    return m.second(x)


def written_behind_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x = m.second(m.first(x)).tanh()
    flat = x.flatten(2)
    x.clamp_(min=0)
    return m.last(flat.transpose(1, 2))


def written_copy(m: nn.Module, x: Tensor) -> Tensor:
    x = m.first(x)
    return x + x.clone().tanh_()


def written_in_another_order(m: nn.Module, x: Tensor) -> Tensor:
    """Copies here, but views of maps whose channels are last."""
    x = m.first(x)
    pixels = x.permute(0, 2, 3, 1).contiguous().clamp_(min=0)
    last = nn.functional.leaky_relu(x.contiguous(memory_format=torch.channels_last), 0.5, inplace=True)
    return m.second(x) + pixels.permute(0, 3, 1, 2) + last


def written_constant(m: nn.Module, x: Tensor) -> Tensor:
    constant = torch.zeros(8, 1, 1)
    x = torch.tanh(m.first(x)) + constant
    constant.add_(1)
    return m.second(x) + constant


def written_number(m: nn.Module, x: Tensor) -> Tensor:
    number = torch.tensor([0.5, 2.0])
    number[1] = 3
    return m.second(m.first(x) * number[0]) + number[1]


ODD = {
    "parts without autocast": without_autocast,
    "parts with gradients": with_gradients,
    "a copy that is written": written_copy,
    "a copy that is written in another order": written_in_another_order,
    "a constant that is written between its uses": written_constant,
    "a number that is written": written_number,
    "floats that are written by a comparison": lambda m, x: m.second(m.first(x).clone().gt_(0.0)),
    "a factor in place": lambda m, x: m.second(m.first(x).mul_(2).add_(x.mean((1, 2, 3)).view(-1, 1, 1, 1))),
    "a view of one number": lambda m, x: m.first(x) * x.mean().view(()),
    "several copies that are written": lambda m, x: (lambda y: [torch._foreach_add_([y], 1.0), m.second(y)][1])(m.first(x).clone()),
    "slopes of training": lambda m, x: nn.functional.rrelu(m.first(x), training=False),
    "attention of torch": lambda m, x: (lambda y: nn.functional.scaled_dot_product_attention(y, y, y))(m.first(x)),
    "written through a view": written_through_a_view,
    "written behind a view": written_behind_a_view,
    "views by the number of images": lambda m, x: m.flat(m.first(x).view(x.size(0), -1)),
    "views of all but the images": lambda m, x: m.flat(m.first(x).view(-1, 8 * 64)),
    "views of as many rows as images and channels": lambda m, x: m.first(x).view(x.shape[0] * 8, 64).tanh().view(x.shape[0], 8, 8, 8),
    "rows of all images": lambda m, x: m.last(torch.tanh(rows(m.first(x)))),
    "images become more": lambda m, x: m.second(torch.cat([m.first(x), 2 * m.first(x)], 0)),
    "a mean over images": lambda m, x: m.first(x) + m.second(m.first(x)).mean(0, keepdim=True),
    "several results of one op": lambda m, x: m.second(torch.cat(m.first(x).chunk(2, 1)[::-1], 1)),
    "values and indices": lambda m, x: m.second(largest_first(m.first(x))),
    "masks": lambda m, x: torch.where(m.first(x) > 0, m.second(m.first(x)), -m.first(x)).masked_fill(m.mask, 0.5),
    "order of channels": lambda m, x: m.first(x[:, m.order]),
    "indices": lambda m, x: [m.first(x).argmax(1), m.last(m.first(x).mean((2, 3))).topk(2).indices],
    "a norm without bias": lambda m, x: m.pointwise(m.norm(m.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "halves of vectors": lambda m, x: m.first(x).mean((2, 3)).reshape(-1, 4),
    "flat maps": lambda m, x: m.flat(m.first(x).flatten(2).flatten(1)),
    "flat pixels": lambda m, x: m.flat(m.first(x).permute(0, 2, 3, 1).flatten(1)),
    "flat groups": lambda m, x: m.first(x).unflatten(1, (2, 4)).flatten(1, 2),
    "pooled rows": lambda m, x: m.last(nn.functional.adaptive_avg_pool1d(m.first(x).flatten(2), 1).flatten(1)),
    "the image, and one result twice": lambda m, x: (lambda y: [x, y, {"again": y}])(m.first(x)),
    "in place": lambda m, x: (lambda y: [y, m.second(y.relu_())])(m.first(x)),
    "one layer twice": lambda m, x: m.second(torch.relu(m.second(m.first(x)))) + m.second(m.first(x)),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_map_of_each_image(case: str) -> None:
    model = Parts(ODD[case]).eval()
    fast = mk.compile(model, torch.zeros(1, 3, 8, 8))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad(), torch.autocast("cpu", enabled=batch == 3):  # of which plans take no notice
            actual = fast(x)
        with torch.no_grad():
            expected = model(x)
        for y, right in zip(leaves(actual), leaves(expected), strict=True):
            assert y.dtype == right.dtype
            assert y.shape == right.shape
            assert torch.allclose(y, right, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in mk.list_models() if name.startswith("mobilevit")])
def test_every_model(name: str) -> None:
    model = random_statistics(mk.create_model(name))
    fast = mk.compile(model, torch.zeros(1, 3, 128, 128))
    assert not fast.report().fallbacks
    assert_compiled(model, fast, torch.randn(2, 3, 128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv2_050 112"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    name, _, side = name.partition(" ")
    side = int(side or 128)
    model = random_statistics(timm.create_model(name, num_classes=7))
    fast = mk.compile(model, torch.zeros(1, 3, side, side))
    assert not fast.report().fallbacks
    assert_compiled(model, fast, torch.randn(2, 3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ForImageClassification", "ForSemanticSegmentation"])
@pytest.mark.parametrize("version", ["MobileViT", "MobileViTV2"])
def test_transformers(version: str, task: str, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {
        "MobileViT": {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0},
        "MobileViTV2": {"width_multiplier": 0.5},
    }  # fmt: skip
    config = getattr(transformers, f"{version}Config")(**small[version])
    model = random_statistics(getattr(transformers, f"{version}{task}")(config))
    x = torch.randn(2, 3, 128, 128)
    fast = mk.compile(model, x)
    with torch.no_grad():
        expected, actual = model(x), fast(x)
    assert type(actual) is type(expected)
    assert (actual.logits - expected.logits).abs().max() <= 2e-5 * expected.logits.abs().max()
    fast.save(tmp_path / "plan")
    assert torch.equal(mk.load(tmp_path / "plan")(x).logits, actual.logits)


class Writing(nn.Module):
    """To a buffer or a parameter at each call, or to its images."""

    def __init__(self, to: str) -> None:
        super().__init__()
        self.conv, self.to = nn.Conv2d(3, 8, 1), to
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.to == "calls":
            self.calls.add_(1)
        if self.to == "conv.weight":
            self.conv.weight.detach().mul_(0.5)
        return self.conv(x.mul_(2))


def test_what_a_model_writes_to() -> None:
    x = torch.randn(2, 3, 4, 4)
    before, model = x.clone(), Writing("images").eval()
    fast = mk.compile(model, x)
    for _ in range(2):
        assert torch.allclose(fast(x), model.conv(2 * before), atol=1e-5)
    assert torch.equal(x, before)
    for to in ("calls", "conv.weight"):
        with pytest.raises(ValueError, match=f"^compile: model: expected one that keeps nothing of a call, got one that writes to {to}"):
            mk.compile(Writing(to).eval(), x)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("randn", lambda m, x: m.first(x) + torch.randn(8, 1, 1)),
        ("rand_like", lambda m, x: m.first(x) + torch.rand_like(m.first(x))),
        ("dropout", lambda m, x: nn.functional.dropout(m.first(x), 0.5, True)),
    ],
)
def test_random_numbers_are_refused(name: str, function) -> None:
    with pytest.raises(ValueError, match=f"^compile: {name}: expected the same results for the same images, got random numbers"):
        mk.compile(Parts(function).eval(), torch.zeros(1, 3, 8, 8))


def test_profiles_hold_floats_against_what_multiplies_them(network, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = network
    x = torch.zeros(1, 3, 64, 64)
    monkeypatch.setattr(report, "_ceilings", lambda threads, isa, bfloat16: {"float": 2.0 if bfloat16 else 1.0, "integer": 1.0})
    assert fast.profile(x, repeats=1).ceilings["float"] == 1.0
    assert mk.compile(model, x, dtype=torch.bfloat16).profile(x, repeats=1).ceilings["float"] == 2.0


def test_bad_input(network) -> None:
    model, fast = network
    x = torch.zeros(1, 3, 64, 64)
    for repeats in (0, "3"):
        with pytest.raises(ValueError, match=f"CompiledModel: repeats: expected at least 1, got {repeats!r}"):
            fast.profile(x, repeats=repeats)
    with pytest.raises(ValueError, match="CompiledModel: x: expected at least one image to time, got none"):
        fast.profile(x[:0])
    with pytest.raises(ValueError, match=r"CompiledModel: report: expected a size \(channels, height, width\), got 64"):
        fast.report(64)
    for sizes in (64, (64, 64), [(0, 64)], [(3, 64, 64)], [("a", "b")], []):
        with pytest.raises(ValueError, match=r"CompiledModel: save: sizes: expected one \(height, width\) or more, got"):
            fast.save("unused.plan", sizes=sizes)
    for bad, error, text in (
        (x[0], ValueError, r"x: expected shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (x[:, :2], ValueError, r"x: expected shape \(B, 3, H, W\), got \(1, 2, 64, 64\)"),
        (x[..., :0], ValueError, r"x: expected shape \(B, 3, H, W\), got \(1, 3, 64, 0\)"),
        (x.long(), TypeError, r"x: expected one of torch.float32, torch.bfloat16, torch.float16, got torch.int64"),
        (x.to("meta"), ValueError, r"x: expected a tensor on cpu, got one on meta"),
        (x.to_sparse(), ValueError, r"x: expected a dense tensor, got layout torch.sparse_coo"),
        ("x", TypeError, r"x: expected a torch.Tensor, got str"),
    ):
        with pytest.raises(error, match=f"CompiledModel: {text}"):
            fast(bad)
    for arguments, error, text in (
        ((3, x), TypeError, r"model: expected a torch.nn.Module, got int"),
        ((copy.deepcopy(model).train(), x), ValueError, r"model: expected a model in evaluation"),
        ((model, x[0]), ValueError, r"example_inputs: expected one batch of images \(B, C, H, W\), got shape \(3, 64, 64\)"),
        ((model, x[..., :0]), ValueError, r"example_inputs: expected one batch of images \(B, C, H, W\), got shape \(1, 3, 64, 0\)"),
        ((copy.deepcopy(model).to("meta"), x), ValueError, r"model: expected weights in memory, got .* on the meta device"),
        ((model, [x, x]), ValueError, r"example_inputs: expected one batch of images \(B, C, H, W\), got list"),
    ):
        with pytest.raises(error, match=f"compile: {text}"):
            mk.compile(*arguments)
    for settings, text in (
        ({"backend": "gpu"}, r'backend: expected "auto", "cpu" or "cuda", got \'gpu\''),
        ({"dtype": torch.float64}, r"dtype: expected one of .*, got torch.float64"),
        ({"num_threads": 0}, r"num_threads: expected a positive number or None, got 0"),
    ):
        with pytest.raises(ValueError, match=f"compile: {text}"):
            mk.compile(model, x, **settings)


def quantized(x: Tensor, scale: float, zero_point: int) -> Tensor:
    q = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, 0, 255, torch.uint8)
    return torch.ops.quantized_decomposed.dequantize_per_tensor(q, scale, zero_point, 0, 255, torch.uint8)


class WithQuantizers(nn.Module):
    """What torch.export of a prepared model has; no rewrite may cross them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(quantized(self.first(quantized(x, 0.03, 128)), 0.02, 120))


class OnTokens(nn.Module):
    """A function of tokens that a parameter was added to: torch's, and so is what follows until they are vectors."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear, self.norm = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8), nn.LayerNorm(8)
        self.position, self.scale = nn.Parameter(torch.randn(1, 16, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x).flatten(2).transpose(1, 2) + self.position)


def a_block(model: nn.Module, t: Tensor) -> Tensor:
    t = t + F.gelu(model.linear(model.norm(t)))
    return model.linear(t.mean(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda model, t: F.relu(t),
        lambda model, t: F.gelu(t),
        lambda model, t: t + model.linear(t),
        lambda model, t: t * 0.5,
        lambda model, t: t / 3,
        lambda model, t: F.silu(t.sum((1, 2))),
        lambda model, t: t.mean(1) * model.scale,
        a_block,
    ],
)
def test_tokens_that_torch_made(function) -> None:
    torch.manual_seed(0)
    model, x = OnTokens(function).eval(), torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
    actual = mk.compile(model, x)(x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_models_with_quantizers_of_their_own(tmp_path) -> None:
    import torch.ao.quantization.fx._decomposed  # defines the ops

    model = WithQuantizers().eval()
    x = torch.randn(2, 3, 9, 9)
    fast = mk.compile(model, x)
    with torch.no_grad():
        expected, actual = model(x), fast(x)
    # A rounding before a quantizer may be a step behind it.
    assert (actual - expected).abs().mean() <= 1e-3 * expected.abs().max()
    assert not fast.report().fallbacks
    assert sum(row.macs > 0 for row in fast.report().rows) == 2  # not one convolution that both were merged into
    fast.save(tmp_path / "plan")
    assert torch.equal(mk.load(tmp_path / "plan")(x), actual)
