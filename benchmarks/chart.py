"""The chart of the README: how fast every variant of results/peers.json runs each network, beside PyTorch eager.

    python benchmarks/chart.py

writes results/peers.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mvit_kernels.files import replace_file
from mvit_kernels.machine import machine_line

RESULTS = Path(__file__).parent / "results"
BASELINE = "torch"
PEERS = {
    "inductor": "torch.compile, frozen",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime int8",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO bfloat16",
    "openvino-int8": "OpenVINO int8",
}
OURS = {
    "accelerate": "ours, eager",
    "compile": "ours, compiled",
    "compile-bf16": "ours, bfloat16",
    "compile-int8": "ours, int8",
    "compile-int6": "ours, 6-bit weights",
}


def draw(document: dict[str, Any], path: Path) -> None:
    """One panel a batch size, a group of bars a model; variants that ran nowhere are left out."""
    rows = {(row["model"], row["batch"], row["variant"]): row["min_ms"] for row in document["results"] if "reason" not in row}
    ran = {variant for _, _, variant in rows}
    names = {variant: name for variant, name in (PEERS | OURS).items() if variant in ran}
    peers, ours = (sum(variant in group for variant in names) for group in (PEERS, OURS))
    shades = [f"{0.85 - 0.5 * i / max(peers - 1, 1):.2f}" for i in range(peers)] + [f"C{i}" for i in range(ours)]
    colours = dict(zip(names, shades, strict=True))
    models = list(dict.fromkeys(model for model, _, _ in rows))
    batches = list(dict.fromkeys(batch for _, batch, _ in rows))
    context = document["conditions"]

    figure = Figure(figsize=(14, 1 + 3.5 * len(batches)), layout="constrained")
    title = f"Speed over PyTorch eager (channels_last), {context['size']} x {context['size']}, threads: {context['threads']}"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    width = 0.85 / max(len(names), 1)
    panels = figure.subplots(len(batches), 1, squeeze=False)[:, 0]
    for axes, batch in zip(panels, batches, strict=True):
        for index, (variant, name) in enumerate(names.items()):
            speeds = {
                place: rows[model, batch, BASELINE] / rows[model, batch, variant]
                for place, model in enumerate(models)
                if (model, batch, variant) in rows and (model, batch, BASELINE) in rows
            }
            places = [place + (index - (len(names) - 1) / 2) * width for place in speeds]
            drawn = axes.bar(places, list(speeds.values()), width, color=colours[variant], label=name)
            axes.bar_label(drawn, [f"{speed:.1f}" for speed in speeds.values()], fontsize=7)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel(f"batch {batch}: times as fast")
        axes.set_xticks(range(len(models)), models)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=(len(names) + 1) // 2, frameon=False)
    versions = ", ".join(f"{name} {number}" for name, number in context["versions"].items())
    panels[-1].set_xlabel(f"Of the shortest of many calls in turn, {machine_line(context)}\n{versions}", fontsize=8)
    figure.savefig(path, format="png", dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where peers.json is (default: beside this file)")
    folder = parser.parse_args(arguments).results
    document = json.loads((folder / "peers.json").read_text(encoding="utf-8"))
    replace_file(folder / "peers.png", lambda path: draw(document, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
