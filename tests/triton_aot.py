"""Compile what the ops launch, for GPUs that are not there: `python tests/triton_aot.py CALLS.py` prints a JSON line a kernel and target.

Without a GPU it also says which of two tiles is the better one: (instructions outside of the loop + loop x its turns) x warps, over pixels
of a tile, beside how many warps have the registers and the shared memory that they take.

The ops run as they are, on tensors of the CPU: a driver that stands in for a GPU's says what to compile for, and launches end when the
machine code is there. So every kernel is compiled with the arguments, alignments and tiles that a call has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sass import lengths, waits_first

TARGETS = (80, 90)


class Driver:
    """What Triton asks of a driver before it launches; `target` is the device, too."""

    def __init__(self) -> None:
        self.target = TARGETS[0]

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        return self.target

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of local memory (spilled registers and arrays that are indexed), instructions of all and of the longest
    loop, and what a kernel does first: touch memory or wait for those launched before it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    values = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    tensor = sorted(set(re.findall(r"\b(HMMA|IMMA|HGMMA|IGMMA|DMMA)\b", sass)))
    instructions, loop = lengths(sass)
    return {
        "registers": int(values["REG"]), "stack": int(values["STACK"]), "local": int(values["LOCAL"]), "tensor_cores": tensor,
        "instructions": instructions, "loop": loop, "waits": waits_first(sass),
    }  # fmt: skip


def _cuobjdump(*arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def compile_calls(calls: dict[str, Any]) -> list[dict[str, Any]]:
    """A record of every kernel that the calls launch, for each target."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from mvit_kernels.ops import triton_support

    stand_in, records = Driver(), []
    driver.set_active(stand_in)
    triton_support.refuse = lambda *_: None
    run, called = JITFunction.run, [""]

    def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **settings)
        records.append(
            {"call": called[0], "kernel": self.__name__, "target": stand_in.target, "warps": kernel.metadata.num_warps,
             "shared": kernel.metadata.shared, **resources(kernel.asm["cubin"])}
        )  # fmt: skip
        return kernel

    JITFunction.run = compiled
    for stand_in.target in TARGETS:
        for called[0], call in calls.items():
            call()
    return records


if __name__ == "__main__":
    import runpy

    for record in compile_calls(runpy.run_path(sys.argv[1])["CALLS"]):
        print(json.dumps(record))
