"""Plans in files: the same bits, or a clear refusal."""

from __future__ import annotations

import copy
import functools
import gc
import json
import struct
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import small
from op_checks import needs_native
from test_graph_capture import Plain, random_statistics
from torch import nn

import mvit_kernels as mk
from mvit_kernels.engine import compiling, files
from mvit_kernels.engine.device_plan import DevicePlan
from mvit_kernels.graph import Program, capture, optimize
from mvit_kernels.ops.backend import native

pytestmark = needs_native


@pytest.fixture(scope="module")
def fast() -> mk.CompiledModel:
    torch.manual_seed(0)
    model = random_statistics(small("mobilevitv2_050"))
    return mk.compile(model, torch.zeros(1, 3, 64, 64), num_threads=1)


def test_the_same_bits(fast, tmp_path) -> None:
    fast.save(tmp_path / "plan", sizes=[(64, 64), (96, 64)])
    loaded = mk.load(tmp_path / "plan")
    assert loaded.threads() == 1
    assert mk.load(tmp_path / "plan", num_threads=2).threads() == 2
    for size in ((2, 3, 64, 64), (1, 3, 96, 64)):
        x = torch.randn(size)
        assert torch.equal(loaded(x), fast(x))
    assert str(loaded.report()) == str(fast.report())
    with pytest.raises(ValueError, match=r"CompiledModel: x: expected images of one of the saved sizes .*, got \(3, 32, 32\)"):
        loaded(torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def of_bfloat16(tmp_path_factory) -> tuple[nn.Module, torch.Tensor, list[Path]]:
    """A network, images, and files of its plan, made on the least and on the most instruction set."""
    torch.manual_seed(0)
    model, x = random_statistics(small("mobilevit_xxs")), torch.randn(2, 3, 64, 96)
    before, folder = native.isa(), tmp_path_factory.mktemp("plans")
    paths = [folder / made_on for made_on in (native.isas_supported()[0], native.isas_supported()[-1])]
    for path in paths:
        assert native.set_isa(path.name)
        mk.compile(model, x, dtype=torch.bfloat16).save(path)
    assert native.set_isa(before)
    return model, x, paths


@torch.no_grad()
def test_bfloat16_of_any_instruction_set_runs_on_every_other(isa: str, of_bfloat16) -> None:
    """Weights have one form. As near the truth as plain torch in that dtype, twice its error at most."""
    model, x, paths = of_bfloat16
    exact = copy.deepcopy(model).double()(x.double())
    error = (copy.deepcopy(model).bfloat16()(x.bfloat16()).double() - exact).norm()
    assert native.isa() == isa
    for path in paths:
        assert (mk.load(path)(x).double() - exact).norm() <= 2 * error


def test_torch_nodes_and_structures(tmp_path) -> None:
    model = random_statistics(Plain())
    x = torch.randn(2, 3, 32, 48)
    fast = mk.compile(model, x)
    fast.save(tmp_path / "plan")
    (logits, features), (expected, others) = mk.load(tmp_path / "plan")(x), fast(x)
    assert torch.equal(logits, expected)
    assert torch.equal(features["features"], others["features"])


def test_torch_nodes_of_several_results_and_indices(tmp_path) -> None:
    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            first, second = x.chunk(2, 1)
            return first * second, x.argmax(1)

    x = torch.randn(2, 4, 5, 6)
    fast = mk.compile(Halves().eval(), x)
    fast.save(tmp_path / "plan")
    for y, right, expected in zip(mk.load(tmp_path / "plan")(x), fast(x), Halves()(x), strict=True):
        assert torch.equal(y, right)
        assert torch.equal(y, expected)
        assert y.dtype == expected.dtype


def test_structures_without_a_name(tmp_path) -> None:
    class Largest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.return_types.max:
            return x.max(1)

    with pytest.raises(ValueError, match="CompiledModel: save: expected results in a structure that a file can hold, got "):
        mk.compile(Largest().eval(), torch.zeros(1, 4, 5, 6)).save(tmp_path / "plan")


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 0, 65), (1, 0, -1), (2, 0, 129), (3, 1, 0), (4, -1, 0), (4, 0, 33), (5, 0, 0)], ids=str)
def test_places_outside_of_a_plan(place) -> None:
    with pytest.raises(ValueError, match=r"Plan: steps: expected places in the memory of a plan, got \(.*\) in add"):
        native.Plan([("add", {"count": 1, "a": place})], 64, 128, [32], [32])


@pytest.mark.parametrize("place", [(5, 1, 0), (5, -1, 0), (5, 0, 33)], ids=str)
def test_places_beside_those_of_other_images(place) -> None:
    native.Plan([("add", {"count": 1, "a": (5, 0, 32)})], 64, 128, [32], [32], ["count"], 0, [(64, 32)])
    with pytest.raises(ValueError, match=r"Plan: steps: expected places in the memory of a plan, got \(.*\) in add"):
        native.Plan([("add", {"count": 1, "a": place})], 64, 128, [32], [32], ["count"], 0, [(64, 32)])


def test_places_of_one_image_in_steps_of_several() -> None:
    native.Plan([("add", {"count": 1, "a": (1, 0, 32)})], 64, 128, [32], [32], ["count"], 1)
    with pytest.raises(ValueError, match=r"Plan: steps: expected places in the memory of a plan, got \(1, 0, 32\) in add"):
        native.Plan([("add", {"count": 1, "a": (1, 0, 32)})], 64, 128, [32], [32], ["count"], 0)


def test_arenas_beyond_any_memory() -> None:
    with pytest.raises(ValueError, match=r"Plan: arena_bytes: expected 0 to 2\^46, got 9223372036854775807"):
        native.Plan([("add", {"count": 1})], 2**63 - 1, 128, [32], [32])


_TOO_FAR = [(["dtype"], 0, []), (["nothing"], 0, []), ([""], -1, []), ([""], 0, [(-1, 4)]), ([""], 0, [(2**62, 2**62)])]


@pytest.mark.parametrize("arguments", _TOO_FAR, ids=str)
def test_images_at_once_that_a_plan_cannot_take(arguments) -> None:
    with pytest.raises(ValueError, match=r"Plan: (counts|first|side_by_side): expected "):
        native.Plan([("add", {"count": 1})], 64, 128, [32], [32], *arguments)


def test_damaged_and_foreign_files(fast, tmp_path) -> None:
    path = tmp_path / "plan"
    fast.save(path)
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = [8, 9, 20, 41, 100, len(good) - 1, *torch.randint(40, len(good), (40,), generator=generator).tolist()]
    length = struct.unpack_from("<Q", good, 16)[0]
    beyond = range(40 + length, -(-(40 + length) // 4096) * 4096)  # nothing is kept there
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        if place not in beyond:
            with pytest.raises(ValueError, match=f"load: {path}: "):
                mk.load(path)
    for bad in (b"", good[:7], good[:39], good[:200], good[:-1], good + b"\0", b"PK" + good[2:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"load: .*plan: (expected a file written by|the file is damaged)"):
            mk.load(path)
    path.write_bytes(good[:8] + struct.pack("<Q", 99) + good[16:])
    with pytest.raises(ValueError, match="expected version 3 of plan files, got 99"):
        mk.load(path)
    with pytest.raises(FileNotFoundError):
        mk.load(tmp_path / "nothing")


def test_bad_input(fast, tmp_path) -> None:
    fast.save(tmp_path / "plan")
    for threads in (0, -1, True, "2"):
        with pytest.raises(ValueError, match="load: num_threads: expected a positive number or None, got "):
            mk.load(tmp_path / "plan", num_threads=threads)
    for path, error, text in (
        ("", ValueError, "the path of a file, got ''"),
        (None, TypeError, "a path, got None"),
        (b"x", TypeError, "a path, got b'x'"),
    ):
        with pytest.raises(error, match=f"CompiledModel: save: path: expected {text}"):
            fast.save(path)
        with pytest.raises(error, match=f"load: path: expected {text}"):
            mk.load(path)
    for sizes in ([], [(3, 64, 64)]):
        with pytest.raises(ValueError, match=r"CompiledModel: save: sizes: expected one \(height, width\) or more, got "):
            fast.save(tmp_path / "plan", sizes=sizes)


def test_of_another_version_of_the_package(fast, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "__version__", "0.0.9")
        fast.save(tmp_path / "plan")
    with pytest.raises(ValueError, match=r"expected a plan of mvit_kernels .*, got one of 0\.0\.9; compile the model again"):
        mk.load(tmp_path / "plan")


def test_nothing_is_left_of_a_file_that_could_not_be_written(fast, tmp_path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        fast.save(tmp_path / "nowhere" / "plan")
    assert not list(tmp_path.iterdir())


# --- plans of a GPU, for which the CPU stands in ---

GPU = torch.device("cuda", 0)


def saved(path, *programs: Program, dtype: torch.dtype = torch.float32) -> list[DevicePlan]:
    """The plans that are in the file now."""
    plans = {program["input"].size: DevicePlan(program, dtype, torch.device("cpu")) for program in programs}
    mk.engine.CompiledModel(None, plans, None, GPU).save(path)
    return list(plans.values())


@pytest.fixture
def stand_in(monkeypatch) -> None:
    monkeypatch.setattr(files, "_place", lambda kind, device: torch.device("cpu"))


@functools.cache
def program(name: str, *size: int) -> Program:
    torch.manual_seed(0)
    return optimize(capture(random_statistics(small(name)), (3, *size)), device=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_plans_of_a_gpu_have_the_same_bits(dtype: torch.dtype, tmp_path, stand_in) -> None:
    programs = [program("mobilevitv2_050", *size) for size in ((64, 64), (96, 64))]
    plans = saved(tmp_path / "plan", *programs, dtype=dtype)
    loaded = mk.load(tmp_path / "plan")
    for plan, size in zip(plans, ((2, 3, 64, 64), (1, 3, 96, 64)), strict=True):
        x = torch.randn(size)
        assert torch.equal(loaded(x), plan.run(x)[0].float())
        assert str(loaded.report(size[1:])) == str(plan.report())
    with pytest.raises(ValueError, match=r"expected images of one of the saved sizes .*, got \(3, 32, 32\)"):
        loaded(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="load: num_threads: expected None with plans of a GPU, got 2"):
        mk.load(tmp_path / "plan", num_threads=2)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").stat().st_size == (tmp_path / "plan").stat().st_size


@pytest.mark.slow
def test_plans_of_a_gpu_keep_no_weights_on_the_host(tmp_path, stand_in, monkeypatch) -> None:
    """Where their model can make them again, for a file that has the same bits. Of float16, whose copies for the device are others."""
    programs: list[Program] = []

    def on_cpu(program: Program, dtype: torch.dtype, device: torch.device, again: Callable[[], Program]) -> DevicePlan:
        programs.append(program)
        return DevicePlan(program, dtype, torch.device("cpu"), again)

    monkeypatch.setattr(compiling, "DevicePlan", on_cpu)
    torch.manual_seed(0)
    model, x = random_statistics(small("mobile_former_26m")), torch.randn(2, 3, 64, 64)
    source = compiling.FloatSource(model, torch.float16, GPU)
    plan = source.plan((3, 64, 64))
    given = {id(weight): weight for weight in source.model.parameters()}  # the model keeps them for other sizes
    weights = [weight for node in programs.pop() for weight in node.weights.values() if id(weight) not in given]
    matrices = [weakref.ref(weight) for weight in weights if weight.ndim > 1 and weight.dtype == torch.float32]
    assert len(matrices) > 50
    del weights
    gc.collect()
    assert [each() for each in matrices if each() is not None] == []

    mk.engine.CompiledModel(source, {(3, 64, 64): plan}, None, GPU).save(tmp_path / "plan", sizes=[(64, 64), (96, 64)])
    loaded = mk.load(tmp_path / "plan")
    assert torch.equal(loaded(x), plan.run(x)[0].float())
    assert loaded.sizes == [(3, 64, 64), (3, 96, 64)]


@pytest.mark.slow
def test_plans_of_a_gpu_of_integers_torch_nodes_and_structures(tmp_path, stand_in) -> None:
    torch.manual_seed(0)
    model, x = random_statistics(small("mobilevit_xxs")), torch.randn(2, 3, 64, 64)
    quantized = mk.quantize(model, [torch.randn(4, 3, 64, 64)], mk.QuantConfig(method="minmax"), progress=False)
    programs = [quantized.program((3, *size)) for size in ((64, 64), (96, 64))]
    saved(tmp_path / "plan", *programs)
    loaded = mk.load(tmp_path / "plan")
    assert torch.equal(loaded(x), quantized(x))
    both, held = (tmp_path / "plan").stat().st_size, sum(weight.nbytes for node in programs[0] for weight in node.weights.values())
    assert held < both < 1.9 * held  # sizes share their weights

    plain, x = random_statistics(Plain()), torch.randn(2, 3, 32, 48)
    (plan,) = saved(tmp_path / "plan", optimize(capture(plain, (3, 32, 48)), device=True))
    assert any(call.foreign for call in plan.calls)
    (logits, features), (expected, right) = mk.load(tmp_path / "plan")(x), plan.run(x)
    assert torch.equal(logits, expected)
    assert torch.equal(features["features"], right)


def test_plans_run_on_the_device_that_they_were_made_for(fast, tmp_path) -> None:
    fast.save(tmp_path / "cpu")
    assert mk.load(tmp_path / "cpu", device="cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="load: device: expected the CPU, for which the plans are, got cuda:0"):
        mk.load(tmp_path / "cpu", device=GPU)
    with pytest.raises(ValueError, match="load: device: expected a device of torch, got 'gpu'"):
        mk.load(tmp_path / "cpu", device="gpu")
    with pytest.raises(ValueError, match=r"load: device: expected a device of torch, got 3\.5"):
        mk.load(tmp_path / "cpu", device=3.5)
    saved(tmp_path / "gpu", program("mobilevit_xxs", 32, 32))
    for device in ("cpu", torch.device("cpu")):
        with pytest.raises(ValueError, match="load: device: expected a GPU, for which the plans are, got cpu"):
            mk.load(tmp_path / "gpu", device=device)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="load: device: expected a GPU, for which the plans are, and no GPU is available"):
            mk.load(tmp_path / "gpu")


def test_damaged_plans_of_a_gpu(tmp_path, stand_in) -> None:
    path = tmp_path / "plan"
    saved(path, program("mobilevit_xxs", 32, 32))
    good = path.read_bytes()
    length = struct.unpack_from("<Q", good, 16)[0]
    for place in (20, 41, 40 + length // 2, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(ValueError, match=f"load: {path}: the file is damaged"):
            mk.load(path)


def test_reports(fast, tmp_path) -> None:
    report = fast.report()
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["op"] == "conv2d"
    assert {row.op for row in report.rows} >= {"separable_attention_block", "feed_forward", "inverted_residual", "gemm"}
    assert report.arena_bytes > 0
    assert "separable_attention_block" in str(report)
    profile = fast.profile(torch.randn(2, 3, 64, 64), repeats=3)
    assert all(row.seconds > 0 for row in profile.rows)
    assert all(row.share is None or row.share > 0 for row in profile.rows)
    assert "ms an image" in str(profile)
    assert [row.op for row in profile.rows] == [row.op for row in report.rows]
    json.dumps(profile.to_dict())
    pytest.importorskip("matplotlib")
    profile.save_picture(tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
