"""Tables and JSON on stdout, warnings on stderr, and whether a file can be written at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_WIDTH_OF_FILES = 150


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table to stdout. The first `left` columns are text, the others numbers; a first text like the one above it is left out."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        text = index < left
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    above = None
    for row in rows:
        table.add_row("" if left and row[0] == above else row[0], *row[1:])
        above = row[0]
    width = None if sys.stdout.isatty() else _WIDTH_OF_FILES
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False)
    console.print(title, style="bold")
    console.print(table)
    console.print()


def warn(text: str) -> None:
    print(f"WARNING: {text}", file=sys.stderr)


def require_writable(flag: str, path: Path | None) -> None:
    """Raises ValueError, which names the flag, where no file can be written as `path`."""
    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
        raise ValueError(f"{flag}: expected a file in a folder that exists and may be written to, got {str(path)!r}")


def require_picture(flag: str, path: Path | None) -> None:
    """Raises ValueError, which names the flag, where matplotlib draws no files of that suffix; ImportError without matplotlib."""
    if path is None:
        return
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError(f"{flag}: expected matplotlib (in a clone, pip install '.[demo]'), got none") from error
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in kinds:
        raise ValueError(f"{flag}: expected a suffix that matplotlib draws, one of .{', .'.join(kinds)}, got {str(path)!r}")


def json_text(document: dict[str, Any] | list[Any]) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
