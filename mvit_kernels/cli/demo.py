"""`mvit-kernels demo`: the main job on real input, in under two minutes on two cores."""

from __future__ import annotations

import argparse
import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.data import StandInTask, evaluation_view
from mvit_kernels.files import replace_file, write_text
from mvit_kernels.machine import conditions, machine_line

from . import compare
from .arguments import positive_int
from .compare import VARIANTS
from .network import Classifier, load_classifier
from .output import json_text, print_table, warn

FULL_SIZE = ("mobilevit_s", "mobilevitv2_100")
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
_SHOWN = 6
_BATCH = 20
_CALIBRATION = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for demo.png and demo.json (default: %(default)s)")
    parser.add_argument("--images", type=positive_int, default=200, help="held-out images of the stand-in task (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=30, help="timed rounds (default: %(default)s)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if missing := [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"the demo needs {' and '.join(missing)}: in a clone, pip install '.[demo]'")
    args.out.mkdir(parents=True, exist_ok=True)
    judged, table = [], []
    for name in checkpoints.SHIPPED:
        classifier = load_classifier(name, checkpoints.path(name))
        task = StandInTask("heldout", args.images, classifier.size)
        images, labels = next(iter(DataLoader(task, len(task))))
        judged.append(_judge(classifier, images, labels))
        table += _timed(classifier, list(images[:_SHOWN].split(1)), args.rounds)
    warn(f"{' and '.join(FULL_SIZE)} have UNTRAINED weights: they show latency and difference, and classify nothing.")
    for name in FULL_SIZE:
        classifier = load_classifier(name, None)
        table += _timed(classifier, _photographs(classifier.size), args.rounds)
    document = {
        "conditions": conditions(args.command),
        "rounds": args.rounds,
        "standin": judged,
        "photographs": PHOTOGRAPHS,
        "table": table,
        "files": [str(args.out / "demo.png"), str(args.out / "demo.json")],
    }
    replace_file(args.out / "demo.png", lambda path: _draw(document, path))
    write_text(args.out / "demo.json", json_text(document))
    return document


def show(document: dict[str, Any]) -> None:
    for each in document["standin"]:
        rows = [[p["truth"], p["pytorch"], p["swapped"], f"{100 * p['probability']:.1f} %"] for p in each["predictions"]]
        title = f"{each['model']}, trained: held-out images of the stand-in task at {each['size']} x {each['size']}"
        print_table(title, ("truth", "PyTorch eager", "swapped", "probability"), rows, left=3)
        print(
            f"accuracy on {each['images']} held-out images: PyTorch {100 * each['accuracy_pytorch']:.1f} %, "
            f"swapped {100 * each['accuracy_swapped']:.1f} % (same prediction on {100 * each['agreement']:.1f} %), "
            f"compiled in int8 {100 * each['accuracy_int8']:.1f} %\n"
        )
    print_table(_title(document), ("model", *compare.COLUMNS), _rows(document), left=2)
    print(compare.NOTE)
    print(f"{' and '.join(FULL_SIZE)}: photographs {' and '.join(document['photographs'])}, UNTRAINED weights.")
    print(machine_line(document["conditions"]))
    print(f"saved: {', '.join(document['files'])}")


@torch.inference_mode()
def _judge(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Predictions of the model as it is, swapped, and quantized and compiled."""
    names = classifier.class_names or StandInTask.class_names
    pytorch = _probabilities(classifier.model, images)
    swapped = _probabilities(mk.accelerate(copy.deepcopy(classifier.model)), images)
    calibration = next(iter(DataLoader(StandInTask("train", _CALIBRATION, classifier.size), _CALIBRATION)))[0]
    quantized = mk.quantize(classifier.model, calibration.split(_BATCH), mk.QuantConfig(method="minmax"), progress=False)
    integers = _probabilities(mk.compile(quantized, images[:1]), images).argmax(1)
    ours, theirs = swapped.argmax(1), pytorch.argmax(1)
    return {
        "model": classifier.name,
        "size": classifier.size,
        "images": len(images),
        "accuracy_pytorch": float((theirs == labels).float().mean()),
        "accuracy_swapped": float((ours == labels).float().mean()),
        "accuracy_int8": float((integers == labels).float().mean()),
        "agreement": float((ours == theirs).float().mean()),
        "predictions": [
            {"truth": names[labels[i]], "pytorch": names[theirs[i]], "swapped": names[ours[i]], "probability": float(swapped[i, ours[i]])}
            for i in range(min(_SHOWN, len(images)))
        ],
    }


def _probabilities(network: compare.Network, images: Tensor) -> Tensor:
    return torch.cat([network(batch).softmax(1) for batch in images.split(_BATCH)])


def _timed(classifier: Classifier, inputs: list[Tensor], rounds: int) -> list[dict[str, Any]]:
    rows = compare.compare(classifier.model, inputs, VARIANTS, rounds=rounds, label=classifier.name)
    return [{"model": classifier.name, "size": classifier.size, "trained": classifier.trained, **row} for row in rows]


def _photographs(size: int) -> list[Tensor]:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return [evaluation_view(Image.fromarray(load_sample_image(name)), size)[None] for name in PHOTOGRAPHS]


def _title(document: dict[str, Any]) -> str:
    return f"Latency of one image, float32, threads: {document['conditions']['threads']}, {document['rounds']} rounds in turn"


def _model(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['size']}px" + ("" if row["trained"] else " (untrained)")


def _rows(document: dict[str, Any]) -> list[list[str]]:
    return [[_model(row), *compare.cells(row)] for row in document["table"]]


def _draw(document: dict[str, Any], path: Path) -> None:
    """The table as a picture: bars, the numbers below them, the conditions at the foot."""
    from matplotlib.figure import Figure

    table = document["table"]
    models = list(dict.fromkeys(_model(row) for row in table))
    eager = [variant.name for variant in VARIANTS if variant.baseline]
    ours = [variant.name for variant in VARIANTS if variant.name not in eager]
    colours = {**{name: f"C{i}" for i, name in enumerate(ours)}, **{name: f"{0.8 - 0.2 * i}" for i, name in enumerate(eager)}}

    figure = Figure(figsize=(14, 3.6 + 0.22 * (len(table) + 1)), layout="constrained")
    figure.suptitle(_title(document), fontsize=14, fontweight="bold")
    bars, numbers = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 0.24 * (len(table) + 1))).flat
    for axes, model in zip(bars.subplots(1, len(models)), models, strict=True):
        rows = [row for row in table if _model(row) == model]
        drawn = axes.bar(range(len(rows)), [row["median_ms"] for row in rows], color=[colours[row["variant"]] for row in rows])
        axes.bar_label(drawn, [f"{row['median_ms']:.1f}" + ("" if row["variant"] in eager else f"\n{row['speedup']:.2f}x") for row in rows])
        axes.set_title(model, fontsize=10)
        axes.set_xticks([])
        axes.margins(y=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    bars.axes[0].set_ylabel("median, ms")
    handles = [bars.axes[0].patches[i] for i in range(len(VARIANTS))]
    bars.legend(handles, [variant.name for variant in VARIANTS], loc="outside lower center", ncols=len(VARIANTS), frameon=False)

    axes = numbers.subplots()
    axes.axis("off")
    grid = axes.table(
        _rows(document),
        colLabels=["model", *(column.replace("\n", " ") for column in compare.COLUMNS)],
        loc="center",
        cellLoc="right",
        edges="horizontal",
    )
    grid.auto_set_font_size(False)
    grid.set_fontsize(9)
    grid.auto_set_column_width(list(range(len(compare.COLUMNS) + 1)))
    for (_, column), cell in grid.get_celld().items():
        cell.set_linewidth(0.3)
        if column < 2:
            cell.set_text_props(ha="left")
    numbers.supxlabel(f"{compare.NOTE}\n{machine_line(document['conditions'])}", fontsize=8)
    figure.savefig(path, format="png", dpi=120)
