"""What a stage of gpu_check.py finds, a line of JSON each: what was written is kept, however the stage ends.

A record has values of the stage; or, with `of` (what it is about) and perhaps `part`, of one of its lines: {"begun": true} first, then its
values or an `error`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RECORDS, UNTIL = "MVIT_KERNELS_GPU_RECORDS", "MVIT_KERNELS_GPU_UNTIL"  # the file, and the time after which nothing more is begun

Record = dict[str, Any]


def write(record: Record) -> None:
    with open(os.environ[RECORDS], "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: str | Path) -> list[Record]:
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the last words of a process that was ended
            continue
    return records


def late() -> bool:
    return time.time() > float(os.environ[UNTIL])


def key(record: Record) -> tuple[str, ...]:
    return *map(str, record["of"].values()), record.get("part", "")


def gathered(records: list[Record]) -> tuple[Record, list[Record]]:
    """The values of the stage, and its lines: all parts of what they are about together. What was said first stays; what was begun and is
    not done has an error."""
    stage: Record = {}
    lines: dict[tuple[str, ...], Record] = {}
    begun = {key(record): "begun" in record for record in records if "of" in record}  # by the last word on each
    for record in records:
        if "of" not in record:
            stage |= record
            continue
        *about, _ = key(record)
        values = {name: value for name, value in record.items() if name not in ("of", "part", "begun")}
        lines[tuple(about)] = record["of"] | values | lines.get(tuple(about), {})
    for *about, part in (each for each, unfinished in begun.items() if unfinished):
        lines[tuple(about)].setdefault("error", f"{part}: not done when its process ended".removeprefix(": "))
    return stage, list(lines.values())


def broken() -> bool:
    """Whether the GPU computes nothing more for this process, as after an access out of bounds: whatever follows fails, too."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
