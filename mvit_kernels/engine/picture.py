"""A profile as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Profile

_COLOURS = {"float": "tab:blue", "integer": "tab:green", "copy": "tab:gray", "torch": "tab:red"}


def draw(profile: Profile, path: Path) -> None:
    """Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, (bars, roof) = plt.subplots(1, 2, figsize=(16, 0.16 * len(profile.rows) + 3))
    places = range(len(profile.rows))
    bars.barh(places, [1e6 * (row.seconds or 0.0) for row in profile.rows], color=[_COLOURS[row.kind] for row in profile.rows])
    bars.set_yticks(places, [f"{row.op}  {row.node[-40:]}" for row in profile.rows], fontsize=6)
    bars.invert_yaxis()
    bars.set_xlabel("us an image")
    bars.set_title(f"{profile.seconds * 1e3:.2f} ms an image, {profile.machine}")
    kinds = sorted({row.kind for row in profile.rows})
    bars.legend(handles=[Patch(color=_COLOURS[kind], label=kind) for kind in kinds])
    for kind in kinds:
        points = [row for row in profile.rows if row.kind == kind and row.macs and row.bytes and row.seconds]
        roof.scatter(
            [2 * row.macs / row.bytes for row in points], [2 * row.macs / (row.seconds or 1.0) / 1e9 for row in points],
            color=_COLOURS[kind], s=14,
        )  # fmt: skip
    for kind, ceiling in profile.ceilings.items():
        if kind in kinds:
            roof.axhline(ceiling, color=_COLOURS[kind], linewidth=1)
            roof.annotate(f"{kind}: {ceiling:.0f}", (0.02, ceiling), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    roof.set_xscale("log")
    roof.set_yscale("log")
    roof.set_xlabel("operations a byte")
    roof.set_ylabel("GOP/s")
    roof.set_title("each product against the arithmetic ceiling")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
