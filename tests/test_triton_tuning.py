"""The table of measured tiles, and the search that fills it: all but its clock, which needs a GPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from triton_checks import DEVICE, randn

import mvit_kernels as mk
from mvit_kernels.engine.lower_calls import Call
from mvit_kernels.engine.steps import Value
from mvit_kernels.ops import fastest, triton_support
from mvit_kernels.triton_kernels import tuning as tuning_

OWN, OTHER = {"BLOCK": 1}, {"BLOCK": 2}
KEY = ("sm_90", "gemm", "float16 1024 7 group")


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tuning_, "capability", lambda x: 90)
    monkeypatch.setattr(tuning_, "table", lambda: {KEY: OTHER})
    return tuning_


@pytest.fixture
def gpu_tune(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import gpu_tune

    return gpu_tune


def choose(tuning: Any, rows: int = 1024, columns: int = 7, dtype: torch.dtype = torch.float16) -> dict[str, int]:
    return tuning.choose("gemm", torch.empty(0, dtype=dtype), (rows, columns, "group"), OWN, lambda: [OTHER])


def test_measured_sizes_get_their_tile_and_others_the_kernels_own(tuning: Any) -> None:
    assert [choose(tuning, rows) for rows in (512, 513, 1000, 1024, 1025)] == [OWN, OTHER, OTHER, OTHER, OWN]
    assert choose(tuning, columns=8) == OWN
    assert [choose(tuning, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)] == [OTHER, OWN]


def test_backends_come_in_the_order_that_was_measured(tuning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_, "table", lambda: {("sm_90", "op backend", "float16 256 7"): {"cuda": 0}})
    monkeypatch.setattr(triton_support, "refuse_gpu", lambda device: None)
    x: Any = SimpleNamespace(dtype=torch.float16, device=torch.device("cuda", 0), is_cuda=True)

    def first(images: Any, cuda: bool) -> str:
        return fastest.in_order("op", x, (images, 7), cuda)[0]

    assert [first(images, True) for images in (128, 129, 256, 257)] == ["cuda", "triton", "triton", "cuda"]
    assert [first(images, False) for images in (128, 256)] == ["triton", "triton"]
    shapes = ShapeEnv()
    any_size = FakeTensorMode(shape_env=shapes).from_tensor(
        torch.empty(200), symbolic_context=StatelessSymbolicContext([DimDynamic.DYNAMIC])
    ).shape[0]  # fmt: skip
    assert first(any_size, True) == "cuda"
    assert not shapes.guards
    seen = []
    with tuning.watched(lambda key, own, others: seen.append((key, own, others())) or {"cuda": 1}):
        assert first(200, False) == "cuda"
    assert seen == [(("sm_90", "op backend", "float16 256 7"), {"cuda": 0}, [{"cuda": 1}])]
    monkeypatch.setattr(triton_support, "refuse_gpu", lambda device: "Triton is not installed")
    assert first(256, True) == "cuda"


def test_who_watches_makes_the_choice(tuning: Any) -> None:
    seen = []

    def watch(key: Any, guess: Any, candidates: Any) -> Any:
        seen.append((key, guess, candidates()))
        return {"BLOCK": 3}

    with tuning.watched(watch):
        assert choose(tuning) == {"BLOCK": 3}
    assert seen == [(KEY, OWN, [OTHER])]
    assert choose(tuning) == OTHER


def test_the_table_is_read_as_it_is_written(tuning: Any, gpu_tune: Any, tmp_path: Path) -> None:
    tiles = {KEY: OTHER, ("sm_90", "feed_forward", "float16 1"): {}, ("sm_80", "gemm", "uint8 1"): OWN}
    path = tmp_path / "tuned.json"
    assert gpu_tune.written(path) == {}
    path.write_text(gpu_tune.text_of(tiles))
    assert gpu_tune.written(path) == tiles


def test_a_tile_that_fails_is_named_and_others_are_measured(gpu_tune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(tile: Any) -> None:
        if tile == OTHER:
            raise RuntimeError("nobody compiles this")

    assert [gpu_tune.tried(KEY, tile, run, lambda tile: 2.0) for tile in (OWN, OTHER)] == [2.0, None]
    assert "gpu_tune: sm_90 gemm float16 1024 7 group with {'BLOCK': 2}: RuntimeError: nobody compiles this" in capsys.readouterr().err


def test_what_is_nearly_as_fast_stays(gpu_tune: Any) -> None:
    assert gpu_tune.best([(1.0, OWN), (0.98, OTHER)]) == OWN
    assert gpu_tune.best([(1.0, OWN), (0.9, OTHER), (2.0, {})]) == OTHER


def test_only_what_is_better_than_the_kernels_own_is_written(gpu_tune: Any) -> None:
    key, another = ("sm_90", "gemm", "float16 1"), ("sm_90", "gemm", "float16 2")
    better, same = [(1.0, OWN), (0.5, OTHER)], [(1.0, OWN), (0.99, OTHER)]
    assert gpu_tune.merged({KEY: OTHER, another: OTHER}, {key: better, another: same}) == {KEY: OTHER, key: OTHER}


def test_norms_get_the_parts_that_their_producers_collect(gpu_tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def take(x: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        taken.append(tuple(parts.shape))
        return x

    make = lambda x: (x, torch.ones(x.shape[0], 5, 3))  # noqa: E731
    value = Value((8, 5, 6), torch.float16)
    calls = [Call("conv2d", ("a",), ("input",), make, value, collects=True), Call("gemm", ("b",), ("a", "a.moments"), take, value)]
    gpu_tune.walk(SimpleNamespace(calls=calls, input=value, device=torch.device(DEVICE)), 2, False, lambda *_: None)
    assert taken == [(2, 5, 3)]


def test_the_shipped_table_names_tiles_of_kernels() -> None:
    for (device, _, call), tile in tuning_.read(tuning_.TABLE).items():
        assert device.startswith("sm_")
        assert call.split()[0] in ("float16", "uint8")
        assert all(isinstance(value, int) for value in tile.values())


def test_the_search_sees_every_choice_once_and_makes_it(gpu_tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two calls of the same sizes; each kernel is launched with the tile that is wanted."""
    from mvit_kernels.triton_kernels.launch import launch

    launched: list[dict[str, Any]] = []
    for kernels in ("gemm", "depthwise_conv2d"):
        recording = lambda *args, **settings: (launched.append(settings), launch(*args, **settings))  # noqa: E731
        monkeypatch.setattr(f"mvit_kernels.triton_kernels.{kernels}.launch", recording)
    parameters = [randn(*size, dtype=torch.float16) for size in ((24, 8, 1, 1), (24,), (24, 1, 3, 3), (24,), (16, 24, 1, 1), (16,))]
    run, seen = (lambda x: mk.ops.inverted_residual(x, *parameters, backend="triton")), []

    def visit(key: tuple[str, ...], tiles: list[Any], with_tile: Callable[[Any], Any]) -> None:
        for wanted in tiles[:2]:
            launched.clear()
            assert gpu_tune.tried(key, wanted, with_tile, lambda tile: 7) == 7
            assert {name: launched[len(seen)][name] for name in wanted} == wanted
        seen.append(key[1])

    result = Value((16, 5, 6), torch.float16)
    calls = [Call("inverted_residual", (name,), (source,), run, result) for name, source in (("first", "input"), ("again", "input"))]
    gpu_tune.walk(SimpleNamespace(calls=calls, input=Value((8, 5, 6), torch.float16), device=torch.device(DEVICE)), 1, False, visit)
    assert seen == ["gemm", "depthwise_conv2d", "gemm"]


def test_the_search_sees_the_choices_of_gradients(gpu_tune: Any) -> None:
    """Of calls that have kernels for them; each runs by itself, and gives what it gave."""
    x, qkv = Value((16, 4, 6), torch.float32), Value((24, 4, 6), torch.float32)
    weights = [randn(*size) / 4 for size in ((16,), (16,), (33, 16), (33,), (16, 16), (16,))]

    def attention(x: torch.Tensor) -> Any:
        return mk.ops.separable_attention_block(x, *weights, patch_size=(2, 2), collect=True, backend="triton")

    calls = [
        Call("gemm", ("a",), ("input",), lambda x: x, x), Call("conv2d", ("b",), ("input",), lambda x: x, qkv),
        Call("separable_attention_block", ("c",), ("input",), attention, x, collects=True),
        Call("separable_attention_block", ("d",), ("a",), attention, x, collects=True),
        Call("group_norm", ("e",), ("a",), lambda x: mk.ops.group_norm(x, *weights[:2], backend="triton"), x),
        Call("patch_attention", ("f",), ("b",), lambda x: mk.ops.patch_attention(x, 2, backend="triton"), Value((8, 4, 6), torch.float32)),
    ]  # fmt: skip
    seen: dict[str, list[Any]] = {}

    def visit(key: tuple[str, ...], tiles: list[Any], with_tile: Callable[[Any], Any]) -> None:
        assert key[1] not in seen
        seen[key[1]] = tiles
        results = [with_tile(tile) for tile in tiles[:2]]
        for one, other in zip(*results, strict=True) if len(results) == 2 else ():
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    gpu_tune.walk(SimpleNamespace(calls=calls, input=x, device=torch.device(DEVICE)), 2, True, visit)
    assert set(seen) == {
        "value_out_bwd", "gated_bwd", "maps_bwd", "mixed_bwd", "group_norm_bwd", "patch_attention_bwd_query", "patch_attention_bwd_key",
    }  # fmt: skip
    assert len(seen["group_norm_bwd"]) > 1


def norm_and_weights(dim: int) -> list[torch.Tensor]:
    return [randn(*size) / (dim**0.5 if len(size) > 1 else 1) for size in ((dim,), (dim,), (1 + 2 * dim, dim), (1 + 2 * dim,), (dim, dim))]


def half(*size: int) -> torch.Tensor:
    return randn(*size, dtype=torch.float16, fmt="nhwc")


# Function, its arguments, and the settings of a call that names its backend.
FLOAT_OPS: dict[str, Callable[[], tuple[Any, list[Any], dict[str, Any]]]] = {
    "gemm": lambda: (mk.ops.gemm, [randn(70, 40, dtype=torch.float16), randn(48, 40) / 6], {"activation": "silu"}),
    "depthwise_conv2d": lambda: (mk.ops.depthwise_conv2d, [half(1, 40, 9, 11), randn(40, 1, 3, 3)], {}),
    "feed_forward": lambda: (
        mk.ops.feed_forward, [half(1, 40, 5, 9), randn(40), randn(40), randn(80, 40) / 6, randn(80), randn(40, 80) / 9, randn(40)],
        {"norm": "layer"},
    ),
}  # fmt: skip
BACKWARD = torch.ops.mvit_kernels
GRADIENTS: dict[str, Callable[[], tuple[Any, list[Any]]]] = {
    "separable_attention_bwd": lambda: (BACKWARD.separable_attention_backward, [half(1, 40, 16, 18), half(1, 81, 16, 18), (2, 2)]),
    "separable_attention_bwd nchw": lambda: (
        BACKWARD.separable_attention_backward, [half(1, 40, 16, 18).contiguous(), half(1, 81, 16, 18).contiguous(), (2, 2)],
    ),
    "patch_attention_bwd_query": lambda: (BACKWARD.patch_attention_backward, [half(1, 24, 14, 14), half(1, 72, 14, 14), 2, (2, 2), None]),
    "group_norm_bwd": lambda: (BACKWARD.group_norm_backward, [half(2, 40, 17, 31), half(2, 40, 17, 31), randn(40), 1e-5]),
    "group_norm_bwd nchw": lambda: (
        BACKWARD.group_norm_backward, [half(2, 40, 17, 31).contiguous(), half(2, 40, 17, 31).contiguous(), randn(40), 1e-5],
    ),
    "layer_norm_bwd": lambda: (BACKWARD.layer_norm_backward, [half(2, 40, 5, 9).movedim(1, -1)] * 2 + [randn(40), 1e-5]),
    "gated_bwd": lambda: (
        BACKWARD.separable_attention_block_backward,
        [half(1, 60, 10, 12), half(1, 60, 10, 12), *norm_and_weights(60), randn(60), None, 1e-5, (2, 2)],
    ),
}  # fmt: skip


def check_candidates(run: Callable[[str], Any], kernel: str) -> None:
    """run: with a backend."""
    plain = run("reference")
    found: dict[Any, list[Any]] = {}

    def look(key: Any, guess: Any, candidates: Any) -> Any:
        found[key] = candidates()
        assert len(found[key]) <= 8
        return guess

    with tuning_.watched(look):
        run("triton")
    for key, tiles in found.items():
        for tile in tiles:
            with tuning_.watched(lambda each, guess, _, key=key, tile=tile: tile if each == key else guess):
                results = run("triton")
            for y, right in zip(*((each,) if isinstance(each, torch.Tensor) else each for each in (results, plain)), strict=True):
                assert (y - right).abs().max() <= 4e-3 * right.abs().max() + 1e-6, (key, tile)
    assert len(found[next(each for each in found if each[1] == kernel)]) > 3


@pytest.mark.slow
@pytest.mark.parametrize("op", FLOAT_OPS)
@pytest.mark.parametrize("busy", [True, False])
def test_every_candidate_computes_the_same(op: str, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of many programs, which a GPU of one multiprocessor has at once, and those of few."""
    for kernels in ("gemm", "depthwise_conv2d", "feed_forward"):
        monkeypatch.setattr(f"mvit_kernels.triton_kernels.{kernels}.processors", lambda x: 0 if busy else 132)
    function, inputs, settings = FLOAT_OPS[op]()
    check_candidates(lambda backend: function(*inputs, **settings, backend=backend), op)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_every_candidate_computes_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tensor cores of sm_90, too."""
    monkeypatch.setattr("mvit_kernels.triton_kernels.separable_attention_block_backward.by_warpgroups", lambda x: True)
    function, inputs = GRADIENTS[name]()
    check_candidates(lambda backend: function(*inputs, backend), name.split()[0])


@pytest.mark.parametrize("gradients", [False, True])
def test_when_the_time_is_over_no_call_is_run(gradients: bool, gpu_tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for its choices: what it launches may not be compiled yet."""
    ran: list[int] = []
    value = Value((8, 5, 6), torch.float32)
    call = Call("group_norm", ("a",), ("input",), lambda x: ran.append(1) or mk.ops.group_norm(x, *randn(2, 8)), value)
    plan = SimpleNamespace(calls=[call], input=value, device=torch.device(DEVICE))
    monkeypatch.setattr(gpu_tune, "plan_of", lambda _: plan)
    found: dict[Any, Any] = {}
    assert gpu_tune.time_choices("of any name", 1, gradients, None, found, time.time() - 1) == 0
    assert (ran, found) == ([], {})


def test_a_tile_that_computes_something_else_is_not_chosen(
    gpu_tune: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, count = torch.randn(64), torch.arange(5)
    results = {1: (right, count), 2: (right * 1.001, count), 3: (right * 1.1, count), 4: (right, count + 1), 5: (right / 0, count)}
    times, run_of = iter((9.0, 4.0, 7.0)), []

    def walk(plan: Any, batch: int, gradients: bool, visit: Any, ops: Any, end: float) -> None:
        visit(KEY, [{"BLOCK": block} for block in results], lambda tile, table: run_of.append(tile["BLOCK"]) or results[tile["BLOCK"]])

    monkeypatch.setattr(gpu_tune, "walk", walk)
    monkeypatch.setattr(gpu_tune, "plan_of", lambda model: None)
    monkeypatch.setattr(gpu_tune, "seconds", lambda run: next(times))
    found: dict[Any, Any] = {}
    assert gpu_tune.time_choices("of any name", 1, False, None, found, time.time() + 60) == 3
    assert found == {KEY: [(7.0, {"BLOCK": 1}), (4.0, {"BLOCK": 2})]}  # its own once more at the end: 7 rather than 9
    told = capsys.readouterr().err
    assert told.count("its results are off by") == 3
    assert set(run_of) == set(results)


def test_moments_of_other_tiles_are_the_same(gpu_tune: Any) -> None:
    """Of one result, in parts of rows and of columns."""
    y = 3 * torch.randn(2, 64, 32) + torch.arange(32)

    def parts(pieces: torch.Tensor) -> torch.Tensor:
        mean = pieces.mean(2)
        return torch.stack([torch.full_like(mean, pieces.shape[2]), mean, (pieces - mean[..., None]).square().sum(2)], 2)

    by_rows, by_columns = parts(y.reshape(2, 8, -1)), parts(y.transpose(1, 2).reshape(2, 8, -1))
    values = [gpu_tune.values_of((y, each)) for each in (by_rows, by_columns)]
    assert gpu_tune.how_far(*values) < 1e-5
    assert gpu_tune.how_far([by_rows], [by_columns]) > gpu_tune.MOST_OFF
    assert gpu_tune.how_far(values[0], gpu_tune.values_of((y, 1.5 * by_columns))) > gpu_tune.MOST_OFF


def test_what_overflows_in_the_same_places_is_the_same(gpu_tune: Any) -> None:
    x = torch.tensor([1.0, float("inf"), float("nan"), 2.0])
    assert gpu_tune.how_far([x], [x.clone()]) == 0
    assert gpu_tune.how_far([x], [x.roll(1)]) == float("inf")
    assert gpu_tune.how_far([torch.tensor([1.5, float("inf"), float("nan"), 2.0])], [x]) == 0.25
    assert gpu_tune.how_far([x[:0]], [x[:0]]) == 0


@pytest.mark.parametrize("rule", [0, 1])
def test_cuda_is_held_against_tritons_best_tile(tuning: Any, gpu_tune: Any, monkeypatch: pytest.MonkeyPatch, rule: int) -> None:
    x, ran = torch.zeros(4), []

    def run() -> torch.Tensor:
        cuda = tuning.choose("gemm backend", x, (4,), {"cuda": rule}, lambda: [{"cuda": 1 - rule}])["cuda"]
        ran.append(("cuda", 0) if cuda else ("triton", tuning.choose("gemm", x, (4,), {"BLOCK": 1}, lambda: [{"BLOCK": 2}])["BLOCK"]))
        return x

    monkeypatch.setattr(tuning, "capability", lambda x: 90)
    found_by: dict[Any, Any] = gpu_tune.choices(run)
    tile, backend = found_by
    assert (tile[1], backend[1]) == ("gemm", "gemm backend")
    for key, wanted, expected in (
        (tile, {"BLOCK": 2}, ("triton", 2)),
        (backend, {"cuda": 1}, ("cuda", 0)),
        (backend, {"cuda": 0}, ("triton", 1)),
    ):
        gpu_tune.run_with(key, run, wanted)
        assert ran[-1] == expected
    gpu_tune.run_with(backend, run, {"cuda": 0}, {tile: {"BLOCK": 2}})
    assert ran[-1] == ("triton", 2)


def test_a_network_that_fails_costs_no_other(gpu_tune: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def time_choices(model: str, batch: int, gradients: bool, ops: Any, found: dict[Any, Any], end: float) -> int:
        found["sm_90", "gemm", f"float16 {batch}"] = [(1.0, OWN), (0.5, OTHER)]
        if batch == 1:
            raise MemoryError("too large")
        return 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_tune, "time_choices", time_choices)
    shared: list[Any] = []
    monkeypatch.setattr(gpu_tune, "beside_each_other", lambda function, tasks, end: shared.extend(tasks))
    table = tmp_path / "tuned.json"
    assert gpu_tune.main(["--models", "mobilevit_s", "--batches", "1", "2", "--output", str(table)]) == 1
    assert {call for _, _, call in tuning_.read(table)} == {"float16 1", "float16 2"}
    assert {task[:4] for task in shared} == {("mobilevit_s", batch, gradients, None) for batch in (1, 2) for gradients in (False, True)}


def test_a_search_of_some_ops_without_gradients(
    gpu_tune: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_tune, "usable_cores", lambda: 6)
    monkeypatch.setattr(gpu_tune, "time_choices", lambda *network: asked.append(network[:4]) or 0)
    shared: list[Any] = []
    monkeypatch.setattr(gpu_tune, "beside_each_other", lambda function, tasks, end: shared.extend(tasks))
    given = ["--models", "mobilevit_s", "--batches", "2", "--ops", "gemm", "feed_forwrd", "--no-gradients"]
    assert gpu_tune.main([*given, "--output", str(tmp_path / "tuned.json")]) == 1  # nothing was timed
    assert "no call of gemm, feed_forwrd was timed" in capsys.readouterr().err
    network = "mobilevit_s", 2, False, ["gemm", "feed_forwrd"]
    assert asked == [network]
    assert shared == [(*network, share, 6) for share in range(6)]


def test_only_calls_of_wanted_ops_are_run(gpu_tune: Any) -> None:
    ran: list[str] = []
    value = Value((8, 5, 6), torch.float16)
    calls = [Call(op, (op,), ("input",), lambda x, op=op: ran.append(op) or x, value) for op in ("gemm", "conv2d", "feed_forward")]
    plan = SimpleNamespace(calls=calls, input=value, device=torch.device(DEVICE))
    gpu_tune.walk(plan, 2, False, lambda *_: None, ["gemm", "feed_forward"])
    gpu_tune.walk(plan, 2, False, lambda *_: None, begin=0.5)
    assert ran == ["gemm", "feed_forward", "conv2d", "feed_forward", "gemm"]


def test_processes_compile_every_candidate_once(gpu_tune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own choice is run by all of them, on the way to the others."""
    parameters = [randn(*size, dtype=torch.float16) for size in ((24, 8, 1, 1), (24,), (24, 1, 3, 3), (24,), (16, 24, 1, 1), (16,))]
    run, value = (lambda x: mk.ops.inverted_residual(x, *parameters, backend="triton")), Value((8, 5, 6), torch.float16)
    call = Call("inverted_residual", ("a",), ("input",), run, Value((16, 5, 6), torch.float16))
    plan = SimpleNamespace(calls=[call], input=value, device=torch.device(DEVICE))
    compiled: list[Any] = []
    monkeypatch.setattr(gpu_tune, "plan_of", lambda _: plan)
    monkeypatch.setattr(gpu_tune, "tried", lambda key, tile, run, measure: compiled.append((key, sorted(tile.items()))))
    wanted: list[Any] = []
    gpu_tune.walk(plan, 1, False, lambda key, tiles, run: wanted.extend((key, sorted(tile.items())) for tile in tiles[1:]))
    by_share = []
    for share in range(3):
        before = len(compiled)
        gpu_tune.compile_share("of any name", 1, False, None, share, 3)
        by_share.append(len(compiled) - before)
    assert len(wanted) > 3
    assert sorted(map(str, compiled)) == sorted(map(str, wanted))
    assert all(by_share)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_tune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_tune.main([]) == 2
    assert "expected a machine with a GPU" in capsys.readouterr().err
    assert "gpu_tune" in sys.modules
