"""Every kernel compiles for sm_80 and sm_90, keeps what it computes in registers, and multiplies on tensor cores where it should."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """In a process where kernels are not interpreted."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, FOLDER / "triton_aot.py", FOLDER / "triton_calls.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_are_compiled_for_every_target(records) -> None:
    """By the same kernels, but for the gradient that fits into registers on sm_90 only."""
    kernels = {target: {(each["call"], each["kernel"]) for each in records if each["target"] == target} for target in (80, 90)}
    assert len(kernels[80]) > 40
    assert {kernel for _, kernel in kernels[80] ^ kernels[90]} == {"value_out_bwd_kernel", "gated_bwd_kernel", "maps_bwd_kernel"}


def test_every_kernel_is_compiled(records) -> None:
    """Whoever writes one adds a call of it to triton_calls.py."""
    sources = (FOLDER.parent / "mvit_kernels" / "triton_kernels").glob("*.py")
    kernels = {name for each in sources for name in re.findall(r"^def (\w+_kernel)\(", each.read_text(encoding="utf-8"), re.MULTILINE)}
    assert len(kernels) > 40
    assert kernels == {each["kernel"] for each in records}


def test_nothing_is_spilled(records) -> None:
    assert [each for each in records if each["stack"] or each["local"]] == []


def test_nothing_touches_memory_before_its_turn(records) -> None:
    """Where kernels are launched before those in front of them are done: triton_kernels/launch.py."""
    assert [each for each in records if each["waits"] != (each["target"] >= 90)] == []


def test_loops_are_found(records) -> None:
    """By which tiles are compared where no GPU is at hand."""
    walking = [each for each in records if each["kernel"] in ("feed_forward_kernel", "value_out_kernel", "normed_gemm_kernel")]
    assert walking
    assert all(64 < each["loop"] < each["instructions"] for each in walking)


def test_shared_memory_is_there(records) -> None:
    limit = {80: 163 * 1024, 90: 227 * 1024}
    assert [each for each in records if each["shared"] > limit[each["target"]]] == []


@pytest.mark.parametrize(("kernel", "instructions"), [
    ("qgemm_kernel", {"IMMA", "IGMMA"}),
    ("qpatch_attention_kernel", {"IMMA", "IGMMA"}),
    ("patch_attention_fwd_kernel", {"HMMA", "HGMMA"}),
    ("patch_attention_bwd_query_kernel", {"HMMA", "HGMMA"}),
    ("patch_attention_bwd_key_kernel", {"HMMA", "HGMMA"}),
    ("value_out_kernel", {"HMMA", "HGMMA"}),
    ("gated_kernel", {"HMMA", "HGMMA"}),
    ("value_out_bwd_kernel", {"HGMMA"}),
    ("gated_bwd_kernel", {"HMMA", "HGMMA"}),
    ("maps_bwd_kernel", {"HMMA", "HGMMA"}),
    ("mixed_bwd_kernel", {"HMMA", "HGMMA"}),
    ("gemm_kernel", {"HMMA", "HGMMA"}),
    ("gathered_conv2d_kernel", {"HMMA", "HGMMA"}),
    ("feed_forward_kernel", {"HMMA", "HGMMA"}),
])  # fmt: skip
def test_products_run_on_tensor_cores(records, kernel: str, instructions: set[str]) -> None:
    of_kernel = [each for each in records if each["kernel"] == kernel and "float32" not in each["call"]]
    assert {each["target"] for each in of_kernel} == ({90} if instructions == {"HGMMA"} else {80, 90})
    assert [each for each in of_kernel if not instructions & set(each["tensor_cores"])] == []
