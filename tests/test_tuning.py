"""The table of measured tiles, and the search that fills it: all but its clock, which needs a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

OWN, OTHER = {"BLOCK": 1}, {"BLOCK": 2}
KEY = ("sm_90", "gemm", "float16 1024 7 group")


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    from mvit_kernels.triton_kernels import tuning

    monkeypatch.setattr(tuning, "capability", lambda x: 90)
    monkeypatch.setattr(tuning, "table", lambda: {KEY: OTHER})
    return tuning


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


def test_what_is_nearly_as_fast_stays(gpu_tune: Any) -> None:
    assert gpu_tune.best([(1.0, OWN), (0.98, OTHER)]) == OWN
    assert gpu_tune.best([(1.0, OWN), (0.9, OTHER), (2.0, {})]) == OTHER


def test_the_shipped_table_names_tiles_of_kernels() -> None:
    from mvit_kernels.triton_kernels import tuning

    for (device, _, call), tile in tuning.read(tuning.TABLE).items():
        assert device.startswith("sm_")
        assert call.split()[0] in ("float16", "uint8")
        assert all(isinstance(value, int) for value in tile.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_tune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_tune.main([]) == 2
    assert "expected a machine with a GPU" in capsys.readouterr().err
    assert "gpu_tune" in sys.modules
