"""The check on machines with a GPU: that a failure of it is one. What it finds there is no test."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from op_checks import needs_native

import mvit_kernels.machine
from mvit_kernels import reference
from mvit_kernels.ops import cuda_support

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check

    monkeypatch.setattr(gpu_check, "found", lambda tool: None)
    return gpu_check


@pytest.fixture
def records(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, for what this process does as a stage that has a minute."""
    import gpu_records

    (tmp_path / "records.jsonl").touch()
    monkeypatch.setenv(gpu_records.RECORDS, str(tmp_path / "records.jsonl"))
    monkeypatch.setenv(gpu_records.UNTIL, str(time.time() + 60))
    return gpu_records


@pytest.fixture
def gpu_stages(records: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stages on the CPU, whose clock says 5 us."""
    import gpu_stages

    for name, value in {
        "DEVICE": "cpu", "DTYPE": torch.float32, "BACKENDS": ("cpu", "reference"), "BATCHES": (2, 1), "MAPS": ((8, 4),),
        "RESIDUALS": ((4, 8, 16, 8, 1),), "microseconds": lambda function: function() is None or 5.0,
        "_copy_rate": lambda: 1e9, "_product_rate": lambda: 1e9,
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu_stages, name, value)
    monkeypatch.setattr(gpu_stages, "_by_inductor", lambda function: function)
    return gpu_stages


@pytest.fixture
def stage(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, Any]]:
    """Runs a command or a program as a stage; the exit code of all, and its record."""

    def run(program: Any, seconds: float = 60, name: str = "ops", **settings: Any) -> tuple[int, Any]:
        command = gpu_check.Command([sys.executable, "-c", program]) if isinstance(program, str) else program
        monkeypatch.setitem(gpu_check.STAGES, name, gpu_check.Stage(lambda: command, 1, **{"last": 0, **settings}))
        monkeypatch.setattr(gpu_check, "_conditions", lambda names: {})
        code = gpu_check._all([name], tmp_path, time.time() + seconds)
        return code, json.loads((tmp_path / gpu_check.RESULT).read_text())["stages"][name]

    return run


def processes(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in path.read_bytes().decode():
                found.append(int(path.parent.name))
    return found


def line(**values: Any) -> dict[str, Any]:
    return {"of": {"op": "gemm"}, **values}


# --- stages and their processes ---


def test_all_that_a_stage_started_ends_with_it_and_what_it_said_stays(stage: Any, tmp_path: Path) -> None:
    """In whatever group or session it is, and if who started it is gone."""
    seconds = f"1000.{os.getpid()}"
    program = f"""
import os, subprocess, time, gpu_records
for settings in ({{}}, {{"preexec_fn": os.setpgrp}}, {{"start_new_session": True}}):
    subprocess.Popen(["sleep", "{seconds}"], **settings)
subprocess.Popen(["sh", "-c", "setsid sleep {seconds} & exit"]).wait()
gpu_records.write({{"of": {{"op": "gemm"}}, "cuda_us": 3}})
gpu_records.write({{"of": {{"op": "conv2d"}}, "begun": True}})
print("so far", flush=True)
time.sleep(1000)
"""
    code, record = stage(program, 3)
    assert processes(seconds) == []
    assert code == 1
    assert record["error"] == "not done in 3 s; 1 failed"
    assert record["tail"] == (tmp_path / "gpu-check" / "ops.log").read_text() == "so far\n"
    assert record["lines"] == [{"op": "gemm", "cuda_us": 3}, {"op": "conv2d", "error": "not done when its process ended"}]


def test_what_a_stage_leaves_ends_with_it(stage: Any) -> None:
    seconds = f"1001.{os.getpid()}"
    code, record = stage(f"import subprocess; subprocess.Popen(['sleep', '{seconds}'], start_new_session=True)")
    assert processes(seconds) == []
    assert (code, "error" in record) == (0, False)


def test_a_stage_goes_on_behind_what_ended_its_process(stage: Any) -> None:
    program = """
import os, gpu_records as records
records.write({"planned": 3})
seen = [each["of"]["op"] for each in records.read(os.environ[records.RECORDS]) if "of" in each]
for op in ("one", "two", "three"):
    if op not in seen:
        records.write({"of": {"op": op}, "begun": True})
        if op == "two":
            os.kill(os.getpid(), 9)
        records.write({"of": {"op": op}, "cuda_us": 3})
"""
    code, record = stage(program)
    assert code == 1
    assert record["error"] == "exit code -9; 1 failed"
    assert record["summary"] == "2 done, 1 failed"
    assert [each.get("cuda_us") for each in record["lines"]] == [3, None, 3]
    code, record = stage(program, goes_on=False)
    assert record["summary"] == "1 done, 1 failed, 1 not begun"
    code, record = stage("raise SystemExit(4)")  # with nothing done, it would be the same again
    assert (code, record["error"]) == (1, "exit code 4")
    code, record = stage("import gpu_records; gpu_records.write({'planned': 3}); raise SystemExit(4)")
    assert (code, record["error"]) == (1, "exit code 4; nothing was begun")
    code, record = stage("import gpu_records; gpu_records.write({'planned': 3})")
    assert (code, record["error"], record["summary"]) == (1, "nothing was begun", "3 not begun")


@pytest.mark.slow
def test_a_task_that_hangs_costs_no_other(stage: Any) -> None:
    program = """
import sys, time, gpu_stages
gpu_stages.LONGEST = 1
sys.exit(gpu_stages.perform(({"op": str(seconds)}, "", lambda: time.sleep(seconds) or {"cuda_us": 3}) for seconds in (0, 1000, 0.1)))
"""
    _, record = stage(program)
    assert record["error"] == "exit code 1; 1 failed"
    assert "time.sleep" in record["tail"] or "<lambda>" in record["tail"]  # where it was
    assert {each["op"]: each.get("cuda_us") for each in record["lines"]} == {"0": 3, "1000": None, "0.1": 3}


def test_later_stages_have_their_time_and_failures_cost_nothing(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {}

    def apart(name: str, command: Any, end: float, folder: Path) -> dict[str, Any]:
        given[name] = round(end - time.time())
        return {"summary": "", **({"error": "exit code 1", "tail": ""} if name == "networks" else {})}

    monkeypatch.setattr(gpu_check, "_apart", apart)
    monkeypatch.setattr(gpu_check, "_conditions", lambda names: {})
    for name, each in gpu_check.STAGES.items():
        monkeypatch.setitem(gpu_check.STAGES, name, each._replace(command=lambda: gpu_check.Command(["true"])))
    assert gpu_check._all(list(gpu_check.STAGES), tmp_path, time.time() + gpu_check.SECONDS) == 1
    own = {name: each.seconds for name, each in gpu_check.STAGES.items()}
    assert sum(own.values()) <= gpu_check.SECONDS <= 470
    names = list(own)
    assert given == {name: gpu_check.SECONDS - sum(own[later] for later in names[index + 1 :]) for index, name in enumerate(names)}
    monkeypatch.setitem(gpu_check.STAGES, names[-1], gpu_check.STAGES[names[-1]]._replace(command=lambda: None))
    gpu_check._all(names, tmp_path, time.time() + gpu_check.SECONDS)
    assert given[names[-2]] == gpu_check.SECONDS
    document = json.loads((tmp_path / gpu_check.RESULT).read_text())
    assert document["stages"][names[-1]]["skipped"] == "it is not installed"


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (SystemExit(143), 143, "SystemExit: 143"),
        (OSError(8, "Exec format error"), 1, "OSError: [Errno 8] Exec format error"),
    ],
    ids=["Ctrl-C", "SIGTERM", "a tool that does not start"],
)
def test_what_was_found_before_the_end_stays(
    gpu_check: Any, records: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    ending: BaseException, code: int, said: str,
) -> None:  # fmt: skip
    def run(words: list[str], switches: dict[str, str], log: Path, end: float) -> str:
        Path(switches[records.RECORDS]).write_text(json.dumps(line(cuda_us=3)) + "\n")
        raise ending

    monkeypatch.setattr(gpu_check, "_run", run)
    monkeypatch.setattr(gpu_check, "_conditions", lambda names: {})
    monkeypatch.setattr(gpu_check, "found", lambda tool: None)
    for name in ("ops", "tests"):
        monkeypatch.setitem(gpu_check.STAGES, name, gpu_check.STAGES[name]._replace(command=lambda: gpu_check.Command(["true"])))
    assert gpu_check._all(["ops", "tests"], tmp_path, time.time() + 60) == code
    stages = json.loads((tmp_path / gpu_check.RESULT).read_text())["stages"]
    assert list(stages) == (["ops"] if code > 1 else ["ops", "tests"])
    assert stages["ops"]["lines"] == [{"op": "gemm", "cuda_us": 3}]
    assert stages["ops"]["error"] == said
    assert "gemm" in capsys.readouterr().out  # the table


def test_results_go_elsewhere_where_nothing_can_be_written(gpu_check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check._writable(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    instead = gpu_check._writable(tmp_path / "file")
    assert instead.is_dir()
    assert str(instead) in capsys.readouterr().err
    instead.rmdir()


def test_a_disk_that_is_full_costs_no_table(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gpu_check, "_write", full)
    monkeypatch.setattr(gpu_check, "_conditions", lambda names: {})
    monkeypatch.setattr(gpu_check, "_apart", lambda *_: {"summary": "1 done", "lines": [{"op": "gemm", "cuda_us": 3}]})
    assert gpu_check._all(["ops"], tmp_path, time.time() + 60) == 0
    told = capsys.readouterr()
    assert "No space left" in told.err
    assert "gemm" in told.out


@pytest.mark.parametrize(("nvcc", "cuda"), [("/somewhere/nvcc", "1"), (None, "0")])
def test_kernels_that_can_be_built_must_be(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, nvcc: str | None, cuda: str) -> None:
    monkeypatch.setattr(gpu_check, "found", lambda tool: nvcc)
    assert gpu_check.build().switches == {"MVIT_KERNELS_NATIVE": "1", "MVIT_KERNELS_CUDA": cuda}


def test_missing_kernels_are_a_failure(gpu_check: Any, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "found", lambda tool: f"/somewhere/{tool}")
    monkeypatch.setattr(cuda_support, "native", None)
    monkeypatch.setattr(cuda_support, "REASON", "not built (no module)")
    assert stage("print('done')")[1]["error"] == "without the kernels of /somewhere/nvcc: not built (no module)"
    monkeypatch.setattr(cuda_support, "native", object())
    assert "error" not in stage("print('done')")[1]
    monkeypatch.setattr(cuda_support, "native", None)
    monkeypatch.setattr(gpu_check, "found", lambda tool: None)
    assert "error" not in stage("print('done')")[1]


def test_tools_are_found_where_the_toolkit_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check

    for name in ("CUDACXX", "PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.found("nvcc") is None
    assert gpu_check.sanitizer() is None
    for path in ("bin/nvcc", "compute-sanitizer/compute-sanitizer"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).touch(0o755)
        assert gpu_check.found(Path(path).name) == str(tmp_path / path)
    assert gpu_check.sanitizer().words[0] == str(tmp_path / "compute-sanitizer/compute-sanitizer")


def test_the_folder_of_results_is_that_of_the_caller(gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stages run in that of the project."""
    folders = []
    monkeypatch.setattr(gpu_check, "_all", lambda names, folder, end: folders.append(folder) or 0)
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main(["--results", "here"]) == 0
    assert folders == [tmp_path / "here"]


def test_tables(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ops = [
        {"op": "gemm", "batch": 1, "map": "8x4", "floor_us": 2.0, "cuda_us": 8.0, "triton_us": 4.0},
        {"op": "inputs", "batch": 1, "map": "8x4", "error": "no memory"},
    ]
    networks = [{"model": "s", "batch": 1, "variant": "compile", "error": "broken"}]
    gpu_check._show({"stages": {
        "ops": {"lines": ops, "error": "1 failed", "seconds": 3}, "networks": {"lines": networks, "summary": "1 failed", "seconds": 4},
        "sanitizer": {"skipped": "it is not installed", "seconds": 0},
    }})  # fmt: skip
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("50%", "1 failed", "it is not installed"))
    word = gpu_check._word({"error": "1 failed", "summary": "1 failed", "lines": ops, "tail": ""})
    assert "  inputs 1 8x4: no memory" in word


# --- what is recorded ---


def test_records_of_one_line_are_one_and_what_was_said_first_stays(records: Any) -> None:
    for record in (
        {"planned": 3}, line(part="ours", begun=True), line(part="ours", cuda_us=3, error="first"), line(part="inductor", begun=True),
        {"of": {"op": "conv2d"}, "part": "ours", "begun": True}, line(part="inductor", inductor_us=4, error="second"), {"planned": 4},
    ):  # fmt: skip
        records.write(record)
    path = os.environ[records.RECORDS]
    with open(path, "a") as file:
        file.write('{"of": {"op": "cut o')
    values, lines = records.gathered(records.read(path))
    assert values == {"planned": 4}
    assert lines == [
        {"op": "gemm", "cuda_us": 3, "error": "first", "inductor_us": 4},
        {"op": "conv2d", "error": "ours: not done when its process ended"},
    ]


def test_a_task_that_fails_costs_no_other(gpu_stages: Any, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def task(name: str) -> dict[str, Any]:
        done.append(name)
        if name in ("wrong", "broken"):
            raise ValueError(name)
        return {"cuda_us": 3}

    def perform(*names: str) -> tuple[int, list[str]]:
        done.clear()
        return gpu_stages.perform(({"op": name}, "", functools.partial(task, name)) for name in names), list(done)

    assert perform("one", "wrong", "two") == (0, ["one", "wrong", "two"])
    monkeypatch.setattr(records, "broken", lambda: True)
    assert perform("two", "broken", "three") == (1, ["broken"])  # another process is for what is left
    assert perform("two", "broken", "three") == (0, ["three"])
    monkeypatch.setenv(records.UNTIL, str(time.time() - 1))
    assert perform("four") == (0, [])
    _, lines = records.gathered(records.read(os.environ[records.RECORDS]))
    assert {each["op"]: each.get("error") for each in lines} == {
        "one": None, "wrong": "ValueError: wrong", "two": None, "broken": "ValueError: broken", "three": None,
    }  # fmt: skip


def test_a_gpu_that_computes_nothing_more(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not records.broken()
    monkeypatch.setattr(torch.cuda, "synchronize", failing)
    assert not records.broken()  # it was not used
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert records.broken()


# --- what is computed ---


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the latter is what a GPU is given
def test_every_case_is_right_by_the_backends_that_have_it(gpu_stages: Any, dtype: torch.dtype) -> None:
    import gpu_cases

    for case in gpu_cases.cases("cpu", 1, 4, 8, dtype, ("cpu", "reference")):
        assert list(case.ours) == (["reference"] if case.name == "avg_pool norm" else ["cpu", "reference"])
        assert gpu_cases.wrong(case) == {}, case.name


@needs_native
def test_cases_of_both_backends_of_a_gpu(gpu_stages: Any) -> None:
    import gpu_cases

    both = {
        case.name for case in gpu_cases.cases("cpu", 1, 4, 8, torch.float32, ("cuda", "triton")) if list(case.ours) == ["cuda", "triton"]
    }
    halves = {"qfeed_forward group", "qfeed_forward layer", "qseparable_attention_block", "qnorm_gemm", "qpatch_attention"}
    assert both == {"separable_attention_block", "qgemm int8", "qgemm int6", "qgemm int8 segments", *halves}


def test_the_product_of_torch_is_the_same_function(gpu_stages: Any) -> None:
    import gpu_cases

    compared = [case for case in gpu_cases.cases("cpu", 2, 8, 32, torch.float32, ("reference",)) if case.name.startswith("qgemm int8")]
    assert len(compared) == 2
    for case in compared:
        assert case.compiled is not None
        ours, theirs = (each().int() for each in (case.plain, case.compiled))
        assert len(ours.unique()) > 50
        assert int((ours - theirs).abs().max()) <= 1  # SiLU by segments or a curve, and roundings


def test_what_is_timed_against_us_can_be_captured() -> None:
    """A copy from the host cannot: on a GPU nothing that plain torch makes is on the CPU. Here the GPU is torch's meta device."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnTheHost(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = op(*args, **(kwargs or {}))
            seen.append(result.is_cpu if isinstance(result, torch.Tensor) else False)
            return result

    x, seen = torch.empty(1, 8, 4, 4, device="meta"), list[bool]()
    with OnTheHost():
        reference.resize(x, (8, 8), False, "gelu")
    assert len(seen) > 10
    assert not any(seen)


@needs_native
def test_every_op_is_timed_before_what_is_compiled(gpu_stages: Any, records: Any) -> None:
    assert gpu_stages.perform(gpu_stages.ops()) == 0
    written = records.read(os.environ[records.RECORDS])
    values, lines = records.gathered(written)
    assert values["planned"] == len(lines) > 60
    assert [each for each in lines if "error" in each] == []
    assert all({"cpu_us", "reference_us"} & set(each) and each["floor_us"] >= 0 for each in lines)
    compiled = {each["op"] for each in lines if "inductor_us" in each}
    assert compiled == {
        "separable_attention", "separable_attention backward", "separable_attention_block", "separable_attention_block backward",
        "group_norm", "qgemm int8", "qgemm int8 segments",
    }  # fmt: skip
    order = [(each["of"]["batch"], each["part"]) for each in written if "of" in each]
    assert list(dict.fromkeys(order)) == [(2, "ours"), (2, "inductor"), (1, "ours"), (1, "inductor")]


@needs_native
def test_a_backend_that_fails_costs_no_other(gpu_stages: Any) -> None:
    import gpu_cases

    def failing() -> torch.Tensor:
        raise RuntimeError("no such kernel")

    one = torch.ones(3)
    case = gpu_cases.Case("gemm", {"right": one.clone, "off": (2 * one).clone, "broken": failing}, one.clone, 12)
    assert gpu_stages._op_times(case, "ours", 1e9, 1e9) == {
        "floor_us": 0.012, "right_us": 5.0, "eager_us": 5.0,
        "error": "off: AssertionError: off by 1 of 1; broken: RuntimeError: no such kernel",
    }  # fmt: skip
    exact = case._replace(exact=True)
    assert gpu_cases.wrong(exact)["off"].endswith("not the bits of plain torch")


def test_inputs_that_cannot_be_made_cost_no_other_map(gpu_stages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(device: str, batch: int, side: int, *_: Any) -> Iterator[Any]:
        yield SimpleNamespace(name="first", compiled=None)
        if side == 4:
            raise MemoryError("too large")
        yield SimpleNamespace(name="second", compiled=None)

    monkeypatch.setattr(gpu_stages, "cases", cases)
    monkeypatch.setattr(gpu_stages, "MAPS", ((8, 4), (8, 2)))
    monkeypatch.setattr(gpu_stages, "RESIDUALS", ())
    found = [(of["op"], of["map"]) for of, part, _ in gpu_stages._parts() if part == "ours" and of["batch"] == 2]
    assert found == [("first", "8x4"), ("inputs", "8x4"), ("first", "8x2"), ("second", "8x2")]
    assert isinstance(next(case for of, _, case in gpu_stages._parts() if of["op"] == "inputs"), MemoryError)


@pytest.mark.slow
@needs_native
def test_networks_are_timed_and_judged(gpu_stages: Any, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_stages, "MODELS", ("mobilevitv2_050",))
    monkeypatch.setattr(gpu_stages, "SIZE", 64)
    monkeypatch.setattr(gpu_stages, "NETWORK_BATCHES", (2,))
    monkeypatch.setattr(gpu_stages, "_milliseconds", lambda function: 7.0)
    for each in (gpu_stages._network, gpu_stages._images, gpu_stages._logits):
        each.cache_clear()
    assert gpu_stages.perform(gpu_stages.networks()) == 0
    values, lines = records.gathered(records.read(os.environ[records.RECORDS]))
    assert values["planned"] == len(lines)
    assert {each["variant"]: each["ms"] for each in lines} == dict.fromkeys(gpu_stages.VARIANTS, 7.0)
    assert [each for each in lines if "error" in each] == []
    assert {each["variant"] for each in lines if each["off"] > 1e-4} == {"compile, int8"}


def test_compilers_end_when_their_time_is_over(gpu_stages: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "asleep.py").write_text("import time\ndef asleep(share, shares):\n    time.sleep(1000 * share)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import asleep

    begun = time.time()
    gpu_stages.beside_each_other(asleep.asleep, [(0, 2), (1, 2)], begun + 2)
    assert 1.9 < time.time() - begun < 60
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(cuda_support.native is None, reason="the CUDA kernels are not built: no nvcc was found")
def test_what_is_sanitized_is_every_op_in_turn(gpu_stages: Any, records: Any) -> None:
    import cuda_cases

    tasks = list(gpu_stages.sanitizer())
    ops = [of["op"] for of, _, _ in tasks]
    assert len(set(ops)) == len(set(ops[: len(set(ops))]))
    assert {*cuda_cases.CASES, "separable_attention_block", "inverted_residual"} == set(ops)
    assert records.read(os.environ[records.RECORDS]) == [{"planned": len(tasks)}]
    assert len({records.key({"of": of}) for of, _, _ in tasks}) == len(tasks)


# --- tests ---


@pytest.fixture
def pytest_apart(gpu_check: Any, stage: Any, tmp_path: Path) -> Callable[..., Any]:
    """Runs a file of tests as gpu_check.py does; the record."""

    def run(text: str, seconds: float = 60) -> Any:
        (tmp_path / "test_it.py").write_text(f"import gpu_records, os, pytest, time\n{text}")
        words = gpu_check.tests().words
        words = [*words[: words.index("tests/gpu")], "-c", "pyproject.toml", str(tmp_path / "test_it.py")]
        words[words.index("-n") + 1] = "2"
        return stage(gpu_check.Command(words), seconds, "tests", goes_on=False)[1]

    return run


def test_failures_are_kept_and_tests_have_their_order(pytest_apart: Any, records: Any, tmp_path: Path) -> None:
    record = pytest_apart("""
@pytest.mark.slow
def test_slow():
    pass

def test_plain():
    assert 1 + 1 == 3, "wrong sum"

@pytest.mark.parametrize("index", range(4))
@pytest.mark.gpu
def test_gpu(index):
    if index == 2:
        pytest.skip("no second one")

@pytest.fixture
def left():
    yield
    raise OSError("left open")

def test_teardown(left):
    pass
""")
    assert set(record["summary"].split(", ")) == {"4 passed", "1 skipped", "2 failed"}
    assert record["error"] == "exit code 1; 2 failed"
    errors = {each["test"].partition("::")[2]: (each["error"], each["text"]) for each in record["lines"]}
    assert errors["test_plain"][0] == "AssertionError: wrong sum"
    assert "1 + 1 == 3" in errors["test_plain"][1]
    assert errors["test_teardown"][0] == "OSError: left open"
    begun = [each["of"]["test"] for each in records.read(tmp_path / "gpu-check" / "tests.jsonl") if "begun" in each]
    order = [each.partition("::")[2].partition("[")[0] for each in begun]
    assert order[:2] == ["test_gpu"] * 2  # one each
    assert order.index("test_slow") >= 5


@pytest.mark.slow
def test_what_hangs_is_named_and_what_was_done_before_stays(pytest_apart: Any) -> None:
    record = pytest_apart("""
@pytest.mark.parametrize("index", range(5))
def test_it(index):
    assert index != 1
    if index == 3:
        time.sleep(1000)
""", 12)  # fmt: skip
    errors = {each["test"].partition("::")[2]: each["error"] for each in record["lines"]}
    assert errors == {"test_it[1]": "assert 1 != 1", "test_it[3]": "not done when its process ended"}
    assert {"2 failed"} < set(record["summary"].split(", ")) <= {"2 passed", "3 passed", "2 failed", "1 not begun"}  # one waits behind it
    assert "not done in 12 s" in record["error"]


def test_no_test_is_begun_when_the_time_is_over(pytest_apart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = pytest_apart("""
os.environ[gpu_records.UNTIL] = "0"

def test_it():
    raise AssertionError

@pytest.mark.slow
def test_slow():
    raise AssertionError

def test_other():
    raise AssertionError
""")
    assert record["summary"] == "3 late"
    assert record["error"] == "2 had no time"  # what is slow is what may be left out
    assert {each["error"] for each in record["lines"]} == {"no time was left to begin it"}


def test_a_test_that_breaks_the_gpu_is_the_last_of_its_process(pytest_apart: Any) -> None:
    record = pytest_apart("""
@pytest.mark.parametrize("index", range(8))
def test_it(index):
    if gpu_records.broken():
        raise RuntimeError("CUDA error")
    if index == 2:
        gpu_records.broken = lambda: True
        raise RuntimeError("illegal memory access")
""")
    assert set(record["summary"].split(", ")) == {"7 passed", "1 failed"}
    assert [each["error"] for each in record["lines"]] == ["RuntimeError: illegal memory access"]


# --- gpu_peers.py ---


@pytest.mark.parametrize("tries", [1, 2])
def test_a_variant_that_takes_too_long_costs_no_other_its_time(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    def endless() -> None:
        for _ in range(tries - 1):
            with contextlib.suppress(Exception):  # as one who tries choices, of which some fail
                time.sleep(60)
        time.sleep(60)

    def broken() -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_peers, "_in_turn", lambda ready: {label: [3.0, 1.0, 2.0] for label in ready})
    x = torch.ones(1, 4)
    made = {"eager": torch.nn.Identity, "broken": broken, gpu_peers.SLOWEST: endless}
    first, second, last = gpu_peers.compared(made, x, x, time.monotonic() + 0.2)
    timed = {"variant": "eager", "prepare_s": 0.0, "off": 0.0, "median_ms": 2.0, "min_ms": 1.0}
    assert first == [timed]
    assert second == [timed, {"variant": "broken", "error": "RuntimeError: no such kernel"}]
    assert last[:2] == second
    assert last[2]["variant"] == gpu_peers.SLOWEST
    assert re.fullmatch(r"TimeoutError: not ready in the 0\.[12] s that were left", last[2]["error"])
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_wrong_logits_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    assert gpu_peers.judged("mk.compile", 0.01) == {"off": 0.01}
    assert gpu_peers.judged("mk.compile, int8", 0.3) == {"off": 0.3}
    assert gpu_peers.judged("mk.compile", 0.3) == {"off": 0.3, "error": "logits are off by 0.3 of the largest, expected 0.05 at most"}
    assert gpu_peers.judged("mk.compile, int8", float("nan")) == {"error": "logits are off by nan of the largest, expected 0.5 at most"}


class Beside:
    """Of a variant: fails at the call of that number."""

    def __init__(self, number: float) -> None:
        self.left = number

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return 2 * x


def test_what_was_measured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever variant fails, at whatever call."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    monkeypatch.setattr(gpu_peers, "_by_events", lambda call: [2.0, float(bool(call() is None))])
    x, whole = torch.ones(1, 4), math.inf
    alone = 3 + gpu_peers.ROUNDS  # calls of one that is timed by itself
    made = {"a": lambda: Beside(whole), "b": lambda: Beside(4), "c": lambda: Beside(alone + 5), "d": lambda: Beside(whole)}
    *others, last = gpu_peers.compared(made, x, 2 * x)
    assert [len(each) for each in others] == [1, 2, 3, 4]
    assert all("error" not in others[-1][index] and others[-1][index]["median_ms"] == 1.0 for index in (0, 2, 3))
    assert [row.get("error") for row in last] == [None, "RuntimeError: out of memory", "it failed beside the others", None]
    assert all("median_ms" in row for row in last if row["variant"] != "b")
    monkeypatch.setattr(gpu_peers.records, "broken", lambda: True)
    *_, last = gpu_peers.compared(made, x, 2 * x)
    since = "the GPU computes nothing more since b"
    assert [row.get("error") for row in last] == [None, "RuntimeError: out of memory", since, since]
    monkeypatch.setattr(gpu_peers.records, "broken", lambda: False)
    ((row,),) = gpu_peers.compared({"a": lambda: Beside(whole)}, x, x)
    assert (row["error"], row["median_ms"]) == ("logits are off by 1 of the largest, expected 0.05 at most", 1.0)


def test_weights_of_what_is_compared_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors made in inference mode nobody knows whether they change."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    made = []

    def make() -> torch.nn.Module:
        made.append(torch.nn.Linear(4, 4))
        return made[-1]

    monkeypatch.setattr(gpu_peers, "_by_events", lambda call: [1.0])
    x = torch.ones(1, 4)
    with torch.inference_mode():
        list(gpu_peers.compared({"eager": make}, x, x))
    assert not any(each.is_inference() for each in made[0].parameters())


def test_names_of_results_are_of_what_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    assert gpu_peers.result_name("mobilevit_s", 8, 256, "float16", None) == "gpu-peers-mobilevit_s-8.json"
    assert gpu_peers.result_name("mobilevit_s", 8, 224, "bfloat16", ["eager"]) == "gpu-peers-mobilevit_s-8-224-bfloat16-some.json"


@pytest.mark.parametrize(
    ("rows", "code"), [([{"variant": "eager", "median_ms": 1.0}, {"error": "no"}], 0), ([{"variant": "eager", "error": "no"}], 1)]
)
def test_a_comparison_without_times_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[dict[str, Any]], code: int
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(gpu_peers, "measure", lambda *_: iter([rows]))
    monkeypatch.setattr(mvit_kernels.machine, "conditions", lambda command: {})
    pytest.importorskip("triton")
    assert gpu_peers.main(["--results", str(tmp_path)]) == code
    assert json.loads((tmp_path / "gpu-peers-mobilevitv2_100-1.json").read_text())["results"] == rows


def test_networks_of_random_weights_keep_the_size_of_their_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_peers

    model = gpu_peers.settled("mobilevitv2_050", 64)
    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(each.training for each in norms)
    assert {each.momentum for each in norms} == {0.1}
    seen: list[float] = []
    for each in norms:
        each.register_forward_hook(lambda _, __, y: seen.append(float(y.std())))
    with torch.no_grad():
        model(gpu_peers._images(64))
    assert 0.5 < min(seen) <= max(seen) < 2
