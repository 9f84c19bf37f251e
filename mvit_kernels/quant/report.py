"""What a quantized network is made of: a table of its nodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mvit_kernels.graph import Node, Program
from mvit_kernels.graph.integers import KINDS

from .decision import Decision
from .program import simulation_only

_COLUMNS = ("node", "kind", "result", "weight_bits", "bits", "scale", "zero_point")


@dataclass(frozen=True)
class QuantRow:
    """One node. scale and zero_point are None for floats, and for results whose channels have several."""

    node: str
    kind: str
    result: str  # float32, uint8 or int16
    weight_bits: int | None
    bits: int | None
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True)
class QuantReport:
    """A table when printed; `to_dict()` for programs.

    conversions: how often floats become integers or integers floats on the way. simulation_only: why, by the names of nodes that no kernel
    runs.
    """

    rows: tuple[QuantRow, ...]
    integer_nodes: int
    float_nodes: int
    conversions: int
    decisions: tuple[Decision, ...] = ()
    simulation_only: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        rows, decisions = [asdict(row) for row in self.rows], [each.to_dict() for each in self.decisions]
        counts = {name: getattr(self, name) for name in ("integer_nodes", "float_nodes", "conversions")}
        return {"rows": rows, **counts, "decisions": decisions, "simulation_only": dict(self.simulation_only)}

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [_COLUMNS]
        for row in self.rows:
            values = (getattr(row, column) for column in _COLUMNS)
            table.append(tuple("-" if each is None else f"{each:.6g}" if isinstance(each, float) else str(each) for each in values))
        widths = [max(len(line[column]) for line in table) for column in range(len(_COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        counts = f"{self.integer_nodes} nodes in integers, {self.float_nodes} in floats, {self.conversions} conversions between them"
        simulated = [f"simulation only: {name}, {reason}" for name, reason in self.simulation_only.items()]
        return "\n".join([*lines, counts, *simulated])


def report_of(program: Program, decisions: tuple[Decision, ...] = ()) -> QuantReport:
    rows: dict[str, QuantRow] = {}
    for node in program:
        rows[node.name] = _row(node, rows)
    conversions = sum(row.kind in ("quantize", "dequantize") for row in rows.values())
    simulated = sum(row.kind == "simulate" for row in rows.values())
    integer = sum(row.kind in KINDS or (row.kind == "cat" and row.result == "uint8") for row in rows.values()) - conversions
    floats = len(rows) - integer - conversions - simulated - sum(row.kind == "input" for row in rows.values())
    return QuantReport(tuple(rows.values()), integer, floats, conversions + simulated, decisions, simulation_only(program))


def _row(node: Node, rows: dict[str, QuantRow]) -> QuantRow:
    settings = node.settings
    if node.kind in ("qresize", "cat"):  # as their first input
        first = rows[node.inputs[0]]
        return QuantRow(node.name, node.kind, first.result, None, first.bits, first.scale, first.zero_point)
    if node.kind not in KINDS or node.kind == "dequantize":
        return QuantRow(node.name, node.kind, "float32", None, None, None, None)
    prefix = "" if node.kind == "quantize" else "out_"
    result = settings.get("out", "uint8")
    if result == "float32":
        return QuantRow(node.name, node.kind, result, settings.get("weight_bits"), None, None, None)
    bits = 16 if result == "int16" else settings.get(f"{prefix}bits")
    return QuantRow(
        node.name, node.kind, result, settings.get("weight_bits"), bits, settings.get(f"{prefix}scale"), settings.get(f"{prefix}zero_point")
    )  # fmt: skip
