"""Quantizations that are interrupted go on where they were, to the same bits."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow
from test_quant_search import images, small

import mvit_kernels as mk
from mvit_kernels.quant import reconstruction, search, state
from mvit_kernels.quant.methods import base

Tensor = torch.Tensor
HERE = Path(__file__).parent
BATCHES = [images(4, 16), images(2, 16, 1)]


def quantized(method: str = "best", **more: Any) -> mk.QuantizedModel:
    config = mk.QuantConfig(6, 6, method)
    return mk.quantize(small(), BATCHES, **{"config": config, "progress": False, **more})


@functools.cache
def uninterrupted(method: str) -> mk.QuantizedModel:
    return quantized(method)


def assert_equal(q: mk.QuantizedModel, expected: mk.QuantizedModel) -> None:
    assert q.representations == expected.representations
    assert q.decisions == expected.decisions
    assert q.migration.keys() == expected.migration.keys()
    for name, layer in expected.layers.items():
        assert all(torch.equal(q.layers[name][key], value) for key, value in layer.items()), name
    x = images(3, 16, 5)
    assert torch.equal(q(x), expected(x))


def stages(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("every", [5, slow(1)])
@pytest.mark.parametrize("method", ["best", slow("qhyvit"), slow("ptq4vit"), slow("minmax")])
def test_after_every_stage(method: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal(quantized(method, state=tmp_path / "whole"), uninterrupted(method))
    made = stages(tmp_path / "whole")
    names = [name.partition("-")[2].removesuffix(".safetensors") for name in made]
    rounds = ["round-1", "round-2", "round-3", "confirmation"]
    layers = ["stem", "expand", "depthwise", "reduce", "far", "after", "head"]
    before = ["ranges", "ranges", "mean-squares"]  # of all images, of half of them
    before += ["ranges", "ranges"]  # with channels made alike
    expected = {"qhyvit": [*before, *rounds], "best": [*before, *rounds, *layers], "ptq4vit": ["ranges", *rounds], "minmax": ["ranges"]}
    assert names == expected[method]
    written = state.write_stored

    def interrupt(count: int, *args: Any) -> None:
        if args[0].name == made[count]:
            raise KeyboardInterrupt
        written(*args)

    for count in range(0, len(made), every):
        folder = tmp_path / str(count)
        monkeypatch.setattr(state, "write_stored", functools.partial(interrupt, count))
        with pytest.raises(KeyboardInterrupt):
            quantized(method, state=folder)
        monkeypatch.setattr(state, "write_stored", written)
        assert stages(folder) == made[:count]
        assert_equal(quantized(method, state=folder), uninterrupted(method))
        assert stages(folder) == made


def test_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uninterrupted("best")
    quantized(state=tmp_path / "q")
    for module, name in (
        (search.Search, "sample"), (search.Search, "_confirm"), (reconstruction, "_reconstruct"), (base, "ranges"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("looked again"))
    assert_equal(quantized(state=tmp_path / "q"), expected)


_KILLED = """
import sys; sys.path.insert(0, {tests!r})
import os, signal, torch
from test_quant_state import quantized
kill, replace, count = int(sys.argv[2]), os.replace, 0

def replaced(*args):
    global count
    count += 1
    if count == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

os.replace = replaced
quantized(state=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [1, 2, 6, 11])
def test_killed_while_it_writes(kill: int, tmp_path: Path) -> None:
    """With a file that is written and has no name yet."""
    script, folder = tmp_path / "script.py", tmp_path / "q"
    script.write_text(_KILLED.format(tests=str(HERE)))
    run = subprocess.run([sys.executable, str(script), str(folder), str(kill)], capture_output=True, text=True, timeout=240)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert len(list(folder.iterdir())) == kill
    assert_equal(quantized(state=folder), uninterrupted("best"))


def other_model() -> torch.nn.Module:
    model = small()
    with torch.no_grad():
        model.head.bias[0] += 1e-3  # type: ignore[index,union-attr,operator]
    return model


def a_loss(y: Tensor, exact: Tensor) -> Tensor:
    return (y - exact).square().sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: mk.quantize(other_model(), BATCHES, mk.QuantConfig(6, 6, "minmax"), state=folder), "a run with model"),
        (lambda folder: mk.quantize(small(), BATCHES[:1], mk.QuantConfig(6, 6, "minmax"), state=folder), "a run with images .* of 4, got"),
        (lambda folder: mk.quantize(small(), BATCHES, mk.QuantConfig(8, 6, "minmax"), state=folder), "a run with weight_bits 8, .* with 6"),
        (lambda folder: quantized("qhyvit", state=folder), 'a run with method "qhyvit", got .* of one with "minmax"; remove it or name'),
        (lambda folder: quantized("minmax", loss=a_loss, state=folder), "a run with loss test_quant_state.a_loss, got .* with None"),
    ],
    ids=["model", "images", "bits", "method", "loss"],
)  # fmt: skip
def test_another_run_is_refused(call: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "q"
    quantized("minmax", state=folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=f"quantize: state: expected {message}"):
        call(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_another_version_is_refused(tmp_path: Path) -> None:
    quantized("minmax", state=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"versions": "mvit_kernels 0.0, torch 2.9"}))
    with pytest.raises(ValueError, match=r"expected a run with versions mvit_kernels .*, got .* of one with mvit_kernels 0.0, torch 2.9"):
        quantized("minmax", state=tmp_path)


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        quantized("minmax", state=tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        quantized("minmax", state=tmp_path / "no" / "q")
    with pytest.raises(ValueError, match=r"expected an empty folder or that of an interrupted run, got .*, which holds file"):
        quantized("minmax", state=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_damaged_stages_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "q"
    quantized("minmax", state=folder)
    (ranges,) = folder.glob("001-*.safetensors")
    whole = ranges.read_bytes()
    for damaged, message in ((whole[:-3], "damaged or none"), (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged"), (b"", "damaged")):
        ranges.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"quantize: state: expected .*{message}"):
            quantized("minmax", state=folder)
    shutil.rmtree(folder)
    quantized("qhyvit", state=folder)
    (first,), (second,) = folder.glob("001-*"), folder.glob("*-round-1.safetensors")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"quantize: state: expected round 1 in .*-round-1.safetensors, got ranges"):
        quantized("qhyvit", state=folder)
