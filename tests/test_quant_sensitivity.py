"""What each layer by itself costs, which to keep in floats, and processes that calibrate together."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_quant_search import Small, images, small
from torch import nn

import mvit_kernels as mk
from mvit_kernels.quant.share import Share

Tensor = torch.Tensor
HERE = Path(__file__).parent


def quantized(model: nn.Module, bits: int = 6, **settings: object) -> mk.QuantizedModel:
    return mk.quantize(model, [images(8, 16)], mk.QuantConfig(bits, bits, "minmax", **settings), progress=False)  # type: ignore[arg-type]


def fragile() -> nn.Module:
    """One channel of `far` is so large that bytes of one scale lose the others; `after` takes as much of each."""
    model = small()
    assert isinstance(model, Small)
    with torch.no_grad():
        model.far.bias.fill_(1.0)
        model.far.weight[3] *= 1000
        model.far.bias[3] *= 1000
        model.after.weight[:, 3] /= 1000
        model.after.weight *= 20
    return model


# --- layers by themselves ---


def test_the_layer_with_the_problem_comes_first() -> None:
    study = quantized(fragile()).sensitivity([images(16, 16, 3)], progress=False)
    assert study.images == 16
    assert study.rows[0].node == "after"  # which takes what `far` writes
    assert [row.effect for row in study.rows] == sorted((row.effect for row in study.rows), reverse=True)
    assert study.rows[0].effect > 20 * study.rows[-1].effect


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((images(4, 16), [1, 2, 3, 4]), r"labels: expected an integer for each of 4 images, got \[1, 2, 3, 4\]"),
        ((images(4, 16), torch.zeros(3, dtype=torch.int64)), r"labels: .* got torch.int64 of shape \(3,\)"),
        ((images(4, 16), torch.zeros(4, 5)), r"labels: .* got torch.float32 of shape \(4, 5\)"),
        (images(4, 16) / 0, "images: expected finite values, got NaN or infinity"),
    ],
    ids=["a list", "too few", "one-hot", "infinite"],
)
def test_images_and_labels_are_checked(batch: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"sensitivity: {message}"):
        quantized(small()).sensitivity([batch], progress=False)


def test_floats_of_another_network_are_refused(tmp_path: Path) -> None:
    """A file goes into any network of its structure, of which nothing but that is used; here integers are held to its weights."""
    model, x = small(), images(4, 16)
    mk.save_quantized(quantized(model), tmp_path / "q")
    rows = quantized(model).sensitivity([x], progress=False).rows
    assert mk.load_quantized(model, tmp_path / "q").sensitivity([x], progress=False).rows == rows
    torch.manual_seed(1)
    other = mk.load_quantized(Small().eval(), tmp_path / "q")
    assert torch.equal(other(x), quantized(model)(x))
    with pytest.raises(ValueError, match="sensitivity: model: expected the float weights that were quantized"):
        other.sensitivity([x], progress=False)


def test_one_layer_is_what_quantizing_it_alone_gives() -> None:
    """`head` takes float32 and has a rounded weight where activations stay float."""
    model, x = small(), images(6, 16, 3)
    q = mk.quantize(model, [images(8, 16)], mk.QuantConfig(6, None, "minmax"), progress=False)
    study = q.sensitivity([x[:2], x[2:]], progress=False)
    row = next(each for each in study.rows if each.node == "head")
    layer = q.layers["head"]
    with torch.no_grad():
        exact = model(x)
        model.head.weight.copy_(layer["weight"].float() * layer["weight_scale"][:, None])  # type: ignore[union-attr,operator]
        y = model(x)
    assert row.sqnr == pytest.approx(10 * math.log10(float(exact.square().sum() / (y - exact).square().sum())), abs=1e-3)
    divergence = nn.functional.kl_div(y.log_softmax(1), exact.log_softmax(1), reduction="batchmean", log_target=True)
    assert row.effect == pytest.approx(float(divergence), rel=1e-3, abs=1e-9)
    right = exact.argmax(1)
    assert row.drop == pytest.approx(100 * float((y.argmax(1) != right).float().mean()))
    labels = y.argmax(1)
    with_labels = q.sensitivity([(x, labels)], progress=False)
    row = next(each for each in with_labels.rows if each.node == "head")
    assert row.drop == pytest.approx(100 * float((exact.argmax(1) == labels).float().mean() - 1))


def test_which_to_keep_in_floats() -> None:
    model, memory = fragile(), torch.empty(16, 3, 16, 16)
    with torch.no_grad():
        exact = model(images(64, 16, 3))
    q = quantized(model)
    study = q.sensitivity([images(64, 16, 3)], target=2.0, progress=False)
    batches = images(64, 16, 3).split(16)
    assert q.sensitivity(batches, target=2.0, progress=False) == q.sensitivity(map(memory.copy_, batches), target=2.0, progress=False)
    assert study.drop is not None
    assert study.drop > 2.0
    assert study.keep_float
    kept = quantized(model, skip=study.keep_float)
    lost = (kept(images(64, 16, 3)).argmax(1) != exact.argmax(1)).float().mean()
    assert 100 * lost <= 2.0 + 100 / 64
    assert quantized(small(), 8).sensitivity([images(8, 16)], target=100.0, progress=False).keep_float == ()


def test_as_table_json_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    study = quantized(small()).sensitivity([images(4, 16)], target=50.0, progress=False)
    for row in study.rows:
        assert row.node in str(study)
    study.save_json(tmp_path / "study.json")
    document = json.loads((tmp_path / "study.json").read_text())
    assert document == study.to_dict()
    assert {row["node"] for row in document["rows"]} == {row.node for row in study.rows}
    study.save_picture(tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes()[1:4] == b"PNG"
    study.save_picture(tmp_path / "study.SVG")
    with pytest.raises(ValueError, match=r"Sensitivity: save_picture: path: expected a suffix among .*\.png, .*got '.*study.xyz'"):
        study.save_picture(tmp_path / "study.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.SVG", "study.json", "study.png"]


def test_best_and_files_have_it_too(tmp_path: Path) -> None:
    """Of a network whose channels were scaled."""
    q = mk.quantize(small(), [images(8, 16)], mk.QuantConfig(6, 6, "best"), progress=False)
    mk.save_quantized(q, tmp_path / "q")
    again = mk.load_quantized(small(), tmp_path / "q")
    x = images(4, 16, 3)
    assert again.sensitivity([x], progress=False).rows == q.sensitivity([x], progress=False).rows


def test_bad_images() -> None:
    q = quantized(small())
    with pytest.raises(ValueError, match="sensitivity: images: expected at least one, got none"):
        q.sensitivity([], progress=False)
    with pytest.raises(ValueError, match=r"sensitivity: images: expected a size of \(3, 16, 16\), .*got \(3, 8, 8\)"):
        q.sensitivity([images(1, 8)], progress=False)

    for bad, error, got in (
        (images(1, 16), TypeError, "an iterable of batches, got a tensor"),
        (3, TypeError, "an iterable of batches, got int"),
        ([images(1, 16)[0]], ValueError, r"batches of float images \(B, C, H, W\), got torch.float32 of shape \(3, 16, 16\)"),
        ([images(1, 16).int()], ValueError, r"batches of float images \(B, C, H, W\), got torch.int32"),
        (["image"], ValueError, r"batches of float images \(B, C, H, W\), got str"),
        ([()], ValueError, r"batches of float images \(B, C, H, W\), got tuple"),
    ):
        with pytest.raises(error, match=f"sensitivity: images: expected {got}"):
            q.sensitivity(bad, progress=False)
    assert q.sensitivity([(images(1, 16),)], progress=False).rows == q.sensitivity([images(1, 16)], progress=False).rows
    for target in (-1.0, 101, float("nan"), "1", True):
        with pytest.raises(ValueError, match=f"sensitivity: target: expected points of top-1 that may be lost, .*got {target!r}"):
            q.sensitivity([images(1, 16)], target=target, progress=False)

    class Map(Small):
        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x)

    q = quantized(Map().eval())
    study = q.sensitivity([images(2, 16)], progress=False)
    assert study.drop is None
    assert all(row.drop is None for row in study.rows)
    with pytest.raises(ValueError, match="sensitivity: target: expected a network that gives logits"):
        q.sensitivity([images(2, 16)], target=1.0, progress=False)


# --- processes ---

_PROGRAM = """
import os, sys; sys.path.insert(0, {tests!r})
import torch
from mvit_kernels.quant import samples
samples.PIXELS = 512  # two images
import mvit_kernels as mk
from test_quant_search import images, small

def found(method, **more):
    config = mk.QuantConfig(6, 6, method)
    q = mk.quantize(small(), [images(4, 16), images(5, 16, 1)], config, progress=False, **more)
    return q.representations, q.decisions, q(images(2, 16, 5)).tolist(), sorted(q.migration)
"""

_TOGETHER = """
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
for method in ("qhyvit", "best", "omse", "ptq4vit", "repqvit"):
    alone = found(method)
    assert found(method, distributed=True) == alone, method
    if method == "best":
        best = alone
kept = {tmp!r} + "/state"
assert found("best", distributed=True, state=kept) == best
if rank == 0:
    for name in os.listdir(kept):
        if name[:3] > "006" and name != "run.json":
            os.remove(kept + "/" + name)
torch.distributed.barrier()
assert found("best", distributed=True, state=kept) == best
try:
    found("qhyvit", distributed=True, state=kept)
except ValueError as error:
    assert "expected a run with method" in str(error)
    print("refused")
try:
    mk.quantize(small(), [images(4, 16, rank)], mk.QuantConfig(method="minmax"), progress=False, distributed=True)
except ValueError as error:
    assert "expected the same calibration images in every process" in str(error)
    print("refused")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_PROGRAM.format(tests=str(HERE)) + _TOGETHER.replace("{tmp!r}", repr(str(tmp_path))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("refused") == 4


def test_shares() -> None:
    pieces = list("abcde")
    shares = [dict(Share(rank, 2).of(pieces)) for rank in range(2)]
    assert shares == [{0: "a", 2: "c", 4: "e"}, {1: "b", 3: "d"}]
    assert Share().gathered({1: "b", 0: "a"}) == ["a", "b"]
    with pytest.raises(ValueError, match="quantize: distributed: expected an initialized process group"):
        mk.quantize(small(), [images(2, 16)], mk.QuantConfig(method="minmax"), progress=False, distributed=True)
