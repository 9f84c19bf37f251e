"""`mvit-kernels info`."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import mvit_kernels as mk
from mvit_kernels import checkpoints
from mvit_kernels.machine import conditions

from .output import print_table

_NOT_BUILT = (
    "Without the native kernels every op runs on plain PyTorch (backend reference): same results, slower.\n"
    "To get them: install a C++20 compiler (g++ 11 or newer), then in a clone pip install --force-reinstall --no-deps .;\n"
    "MVIT_KERNELS_NATIVE=1 makes a failed build an error that shows what the compiler said."
)
_SWITCHES = ("MVIT_KERNELS_BACKEND", "MVIT_KERNELS_ISA", "OMP_NUM_THREADS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "conditions": conditions(args.command),
        "backends": {name: vars(backend) for name, backend in mk.backends().items()},
        "isas": _isas(),
        "openmp_runtimes": _openmp_runtimes(),
        "environment": {name: os.environ[name] for name in _SWITCHES if name in os.environ},
        "models": mk.list_models(),
        "checkpoints": {name: str(checkpoints.path(name)) for name in checkpoints.SHIPPED if checkpoints.path(name).is_file()},
    }


def show(document: dict[str, Any]) -> None:
    rows = [[name, str(value)] for name, value in document["conditions"].items() if value is not None]
    rows += [["OpenMP", ", ".join(document["openmp_runtimes"]) or "none loaded"]]
    rows += [[name, value] for name, value in document["environment"].items()]
    rows += [["models", ", ".join(document["models"])]]
    rows += [[f"checkpoint {name}", path] for name, path in document["checkpoints"].items()]
    print_table("Installation", ("what", "value"), rows, left=2)
    rows = [[name, "yes" if b["usable"] else "no", b["detail"] or b["reason"]] for name, b in document["backends"].items()]
    print_table("Backends", ("backend", "usable", "detail"), rows, left=3)
    if isas := document["isas"]:
        rows = [[isa, "yes" if isa in isas["supported"] else "no", "yes" if isa == isas["active"] else ""] for isa in isas["built"]]
        print_table("Instruction sets of the cpu backend", ("built", "this processor has it", "active"), rows, left=3)
    else:
        print(_NOT_BUILT)


def _isas() -> dict[str, Any] | None:
    """The instruction sets that the native kernels were built for; None where they were not built."""
    try:
        from mvit_kernels import _cpu
    except ImportError:
        return None
    return {"built": _cpu.isas_built(), "supported": _cpu.isas_supported(), "active": _cpu.isa()}


def _openmp_runtimes() -> list[str]:
    """Those loaded into this process; two of them would fight over the cores."""
    maps = Path("/proc/self/maps")
    return sorted(set(re.findall(r"/\S*/lib[gi]?omp\S*", maps.read_text()))) if maps.is_file() else []
