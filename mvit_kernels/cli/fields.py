"""A flag for each field of a dataclass whose fields have docstrings."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Collection
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_fields(parser: argparse.ArgumentParser, kind: type, *, without: Collection[str] = ()) -> None:
    """Add the flags of all fields of `kind` but `without`."""
    types, summaries = get_type_hints(kind), _summaries(kind)
    for field in dataclasses.fields(kind):
        if field.name in without:
            continue
        hint = types[field.name]
        options: dict[str, Any] = {"help": summaries[field.name].replace("%", "%%")}
        if hint is bool:
            options["action"] = "store_true"
        elif get_origin(hint) is Literal:
            options["choices"] = get_args(hint)
        else:
            options["type"] = next(each for each in get_args(hint) or (hint,) if each is not NoneType)
        if field.default is dataclasses.MISSING:
            options["required"] = True
        elif field.default is not None:
            options["default"] = field.default
            options["help"] += "" if hint is bool else " (default: %(default)s)"
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)


def _summaries(kind: type) -> dict[str, str]:
    """The docstring under each field, which Python itself does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    summaries = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            summaries[field.target.id] = str(ast.literal_eval(text.value))
    return summaries
