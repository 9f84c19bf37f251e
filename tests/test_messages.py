"""Errors say what they got in one line, and every function that reads or writes a file its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_checks import needs_native

import mvit_kernels as mk
from mvit_kernels.messages import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3), "a tensor of shape (2, 3)"),
        (torch.tensor(0.5), "tensor(0.5000)"),
        (torch.nn.Linear(2, 2), "a Linear"),
        ([torch.zeros(2), 3], "[a tensor of shape (2,), 3]"),
        ({"a": ([[torch.zeros(2, 2)]], np.zeros((3, 1)))}, "{'a': ([[a tensor of shape (2, 2)]], an array of shape (3, 1))}"),
        (["a", (1, 2.5)], "['a', (1, 2.5)]"),
        (None, "None"),
        (torch.device("cpu"), "device(type='cpu')"),
    ],
    ids=str,
)
def test_values(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value", [list(range(1000)), "x" * 1000, b"x" * 1000, [torch.zeros(1, 2)] * 50, {i: i for i in range(1000)}, 10**300]
)
def test_long_values_are_cut(value: object) -> None:
    assert len(shown(value)) < 250
    assert "\n" not in shown(value)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


@needs_native
def test_files_that_cannot_be(network, tmp_path) -> None:
    x = torch.randn(1, 3, 8, 8)
    fast, qmodel = mk.compile(network, x), mk.quantize(network, [x], mk.QuantConfig(method="minmax"))
    vit = mk.create_model("mobilevitv2_050", num_classes=2).eval()
    write = {
        "CompiledModel: save: path": fast.save,
        "save_quantized: path": lambda path: mk.save_quantized(qmodel, path),
        "export_onnx: path": lambda path: mk.export_onnx(qmodel, path),
        "save_checkpoint: path": lambda path: mk.save_checkpoint(vit, path),
    }
    for what, call in write.items():
        with pytest.raises(FileNotFoundError, match=f"^{what}: expected a file in a folder that exists, got .*none/file.pt'$"):
            call(tmp_path / "none" / "file.pt")
        with pytest.raises(IsADirectoryError, match=f"^{what}: expected a file, got the folder '.*'$"):
            call(tmp_path)
        with pytest.raises(TypeError, match=rf"^{what}: expected a path, got a tensor of shape \(1, 3, 8, 8\)$"):
            call(x)
    read = {
        "load: path": mk.load,
        "load_quantized: path": lambda path: mk.load_quantized(network, path),
        "load_checkpoint: path": lambda path: mk.load_checkpoint(vit, path),
    }
    for what, call in read.items():
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(FileNotFoundError, match=f"^{what}: expected a file, got '"):
                call(path)
    with pytest.raises(FileNotFoundError, match=r"^quantize: state: expected a folder in one that exists, got '.*none/state'$"):
        mk.quantize(network, [x], state=tmp_path / "none" / "state")
    assert not list(tmp_path.iterdir())


@needs_native
def test_tensors_in_place_of_sizes(network, tmp_path) -> None:
    x = torch.randn(1, 3, 8, 8)
    fast, qmodel = mk.compile(network, x), mk.quantize(network, [x], mk.QuantConfig(method="minmax"))
    for call in (
        lambda: mk.export_onnx(qmodel, tmp_path / "network.onnx", x),
        lambda: fast.report(x),
        lambda: mk.ops.unfold_patches(x, x),
        lambda: mk.create_model("mobilevitv2_050", num_classes=x),
    ):
        with pytest.raises((TypeError, ValueError), match=r"got a tensor of shape \(1, 3, 8, 8\)$"):
            call()
