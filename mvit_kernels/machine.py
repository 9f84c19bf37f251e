"""The conditions of a measurement: without them a time means nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from mvit_kernels import __version__
from mvit_kernels.ops import backends


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit(clone: Path = Path(__file__).parents[1]) -> str | None:
    """Of the clone that this package runs in, with a + where its files are other ones; None where it is installed, or git is not.

    Results do not count among its files: those of one measurement are written before the next.
    """
    if not (clone / ".git").exists():
        return None

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, text=True, timeout=10, env=environment)

    try:
        head, changes = git("rev-parse", "--short", "HEAD"), git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if head.returncode else head.stdout.strip() + ("+" if changes.returncode else "")


def conditions(command: str) -> dict[str, Any]:
    """Machine, threads, versions, commit, date (UTC) and the command, with values that JSON holds."""
    cpu = backends()["cpu"]
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "cpu_backend": cpu.detail if cpu.usable else f"unavailable: {cpu.reason}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mvit_kernels": __version__,
        "commit": commit(),
    }


def machine_line(conditions: dict[str, Any]) -> str:
    return (
        f"{conditions['cpu']}, {conditions['threads']} of {conditions['cores']} cores, kernels {conditions['cpu_backend']}, "
        f"torch {conditions['torch']}, mvit_kernels {conditions['mvit_kernels']}, {conditions['date']}"
    )
