"""The check on machines with a GPU: that a failure of it is one. What it finds there is no test."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import needs_native

from mvit_kernels.ops import cuda_support

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check

    return gpu_check


@pytest.fixture
def ran(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What was to be run, and its switches; all of it succeeds."""
    commands = []

    def run(command: list[str], limit: float | None = None, switches: dict[str, str] | None = None) -> dict[str, str]:
        commands.append((command, switches or {}))
        return {"command": shlex.join(command), "tail": "3 passed, 20 skipped"}

    monkeypatch.setattr(gpu_check, "_run", run)
    return commands


@pytest.mark.parametrize(("nvcc", "cuda"), [("/somewhere/nvcc", "1"), (None, "0")])
def test_kernels_that_can_be_built_must_be(gpu_check: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, nvcc: str | None, cuda: str) -> None:
    monkeypatch.setattr(gpu_check, "nvcc", lambda: nvcc)
    gpu_check.build()
    ((_, switches),) = ran
    assert switches == {"MVIT_KERNELS_NATIVE": "1", "MVIT_KERNELS_CUDA": cuda}


def test_switches_reach_the_command(gpu_check: Any) -> None:
    record = gpu_check._run(
        [sys.executable, "-c", "import os; print(os.environ['MVIT_KERNELS_CUDA'])"], switches={"MVIT_KERNELS_CUDA": "1"}
    )
    assert (record["tail"], "error" in record) == ("1\n", False)


@pytest.mark.parametrize("stage", ["tests", "sanitizer"])
def test_skipped_tests_of_missing_kernels_are_a_failure(gpu_check: Any, ran: Any, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name, **_: f"/somewhere/{name}")
    monkeypatch.setattr(cuda_support, "native", None)
    monkeypatch.setattr(cuda_support, "REASON", "not built (no module)")
    monkeypatch.delenv("CUDACXX", raising=False)
    record = getattr(gpu_check, stage)()
    assert record["error"] == "without the kernels of /somewhere/nvcc: not built (no module)"
    assert "FAILED (without the kernels of" in gpu_check._word(record)
    monkeypatch.setattr(cuda_support, "native", object())
    assert "error" not in getattr(gpu_check, stage)()
    monkeypatch.setattr(cuda_support, "native", None)
    monkeypatch.setattr(gpu_check, "nvcc", lambda: None)
    assert "error" not in getattr(gpu_check, stage)()


def test_a_failure_keeps_its_own_reason(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_support, "native", None)
    assert gpu_check._with_cuda_kernels({"error": "exit code 1"}) == {"error": "exit code 1"}
    assert "FAILED (without" in gpu_check._word(gpu_check._with_cuda_kernels({"lines": []}))


def test_what_is_sanitized_is_there(gpu_check: Any) -> None:
    *files, option, names = shlex.split(gpu_check.SANITIZED)
    assert option == "-k"
    assert "tests/gpu/test_cuda_kernels.py" in files
    texts = [(BENCHMARKS.parent / file).read_text() for file in files]
    found = [{name for name in names.split(" or ") if re.search(rf"def test_\w*{name}", text)} for text in texts]
    assert all(found)  # in every file
    assert set.union(*found) == set(names.split(" or "))


@needs_native
def test_every_case_is_computed_by_the_backends_that_have_it(gpu_check: Any) -> None:
    import gpu_cases

    for case in gpu_cases.cases("cpu", 1, 4, 8, torch.float32, ("cpu", "reference")):
        assert list(case.ours) == (["reference"] if case.name == "avg_pool norm" else ["cpu", "reference"])
        gpu_cases.check(case)
    both = {
        case.name for case in gpu_cases.cases("cpu", 1, 4, 8, torch.float32, gpu_check.BACKENDS) if list(case.ours) == ["cuda", "triton"]
    }
    halves = {"qfeed_forward group", "qfeed_forward layer", "qseparable_attention_block", "qnorm_gemm", "qpatch_attention"}
    assert both == {"separable_attention_block", "qgemm int8", "qgemm int6", *halves}


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

    monkeypatch.setattr(gpu_peers, "LIMIT", 0.2)
    monkeypatch.setattr(gpu_peers, "_in_turn", lambda ready: {label: [3.0, 1.0, 2.0] for label in ready})
    x = torch.ones(1, 4)
    first, last = gpu_peers.compared({"eager": torch.nn.Identity, "broken": broken, gpu_peers.SLOWEST: endless}, x, x)
    timed = {"variant": "eager", "prepare_s": 0.0, "off": 0.0, "median_ms": 2.0, "min_ms": 1.0}
    assert first == [timed, {"variant": "broken", "error": "RuntimeError: no such kernel"}]
    assert last == [*first, {"variant": gpu_peers.SLOWEST, "error": "TimeoutError: not ready when 0.2 s were over"}]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
