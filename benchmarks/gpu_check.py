"""Everything that only a GPU can show, on a machine with one and without a network: `make gpu-check`, in under eight minutes.

Builds in place; runs the tests of the GPU kernels, some of them under compute-sanitizer; times every op against the same in plain torch,
eager and compiled, and whole networks; writes results/gpu-check.json after every stage and prints a table. A stage that cannot run says
why, and one that takes too long is ended; the exit code is 0 where none failed. Where nvcc is found, CUDA kernels that are missing are
a failure.

    python benchmarks/gpu_check.py --only ops            # one stage
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = "gpu-check.json"
BATCHES = (1, 128)
NETWORK_BATCHES = (1, 256)
MAPS = ((128, 32), (192, 16), (256, 8))  # (dim, side) of the attention blocks of MobileViTv2-1.0 at 256 x 256
MODELS = ("mobilevitv2_100", "mobilevit_s")
TESTS = ("tests/test_triton_*.py", "tests/gpu")
SANITIZED = (
    "tests/test_triton_qgemm.py tests/test_triton_separable_attention.py tests/gpu/test_cuda_kernels.py"
    " -k 'strides or empty or epilogues or bits_are_those or float_rule'"
)
BACKENDS = ("cuda", "triton")

Record = dict[str, Any]


def build() -> Record:
    cuda = nvcc() is not None
    switches = {"MVIT_KERNELS_NATIVE": "1", "MVIT_KERNELS_CUDA": str(int(cuda))}  # what is not built is an error, not a warning
    record = _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], switches=switches)
    return record | {"summary": "with CUDA kernels" if cuda else "without CUDA kernels: no nvcc was found"}


def tests() -> Record:
    files = sorted(str(each.relative_to(ROOT)) for pattern in TESTS for each in ROOT.glob(pattern))
    return _with_cuda_kernels(_pytest([*files, "-m", "gpu or not slow", "-n", str(min(12, os.cpu_count() or 1))]))


def sanitizer() -> Record:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    checked = _pytest([*shlex.split(SANITIZED), "-m", "not slow", "-x"], [tool, "--tool", "memcheck", "--error-exitcode", "7"])
    return _with_cuda_kernels(checked)


def ops() -> Record:
    """Microseconds of one call inside a CUDA graph, and of the peers; share of what memory or tensor cores allow."""
    import torch
    import triton
    from gpu_cases import RESIDUALS, check

    copy, product = _copy_rate(), _product_rate()
    time_of = functools.partial(triton.testing.do_bench_cudagraph, rep=10, return_mode="median")
    everything = [(batch, *size) for batch in BATCHES for size in MAPS] + [(BATCHES[-1], *block) for block in RESIDUALS]
    with concurrent.futures.ProcessPoolExecutor(len(everything), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_all, everything))  # into caches on disk: compilers take most of the time
    lines = []
    for batch, *size in everything:
        for case, contenders in _contenders(batch, *size):
            check(case)
            torch._dynamo.reset()
            times = {}
            for name, function in contenders.items():
                function()
                times[f"{name}_us"] = round(1e3 * time_of(function), 3)
            floor = 1e6 * max(case.bytes / copy, case.operations / product)
            lines.append({"op": case.name, "batch": batch, "map": "x".join(map(str, size)), **times, "floor_us": round(floor, 3)})
    return _with_cuda_kernels({"copy_gb_s": round(copy / 1e9), "fp16_tflop_s": round(product / 1e12), "lines": lines})


def _contenders(batch: int, *size: int) -> Iterator[tuple[Any, dict[str, Callable[[], object]]]]:
    """Of one of MAPS, or of the inverted residuals of gpu_cases.py."""
    import torch
    from gpu_cases import cases, int_mm, integer_residual, residual

    from mvit_kernels.ops import cuda_support

    usable = tuple(each for each in BACKENDS if each != "cuda" or cuda_support.native is not None)
    dim, side, *block = size
    if block:
        of_map = iter((residual("cuda", batch, size, torch.float16, usable), integer_residual("cuda", batch, size, usable)))
    else:
        of_map = cases("cuda", batch, side, dim, torch.float16, usable)
    for case in of_map:
        contenders = {**case.ours, "eager": case.plain}
        if case.exact and case.operations:
            contenders = {**case.ours, "inductor": int_mm("cuda", batch * side * side, dim)}
        elif not case.peer:
            contenders = dict(case.ours)
        elif not case.exact:
            contenders["inductor"] = torch.compile(case.plain, dynamic=False)
        yield case, contenders


def _compile_all(sizes: tuple[int, ...]) -> None:
    for _, contenders in _contenders(*sizes):
        for function in contenders.values():
            function()


def networks() -> Record:
    """Milliseconds of one batch, float16, channels_last, by CUDA events: PyTorch eager, swapped, and compiled in float16 and int8."""
    with concurrent.futures.ProcessPoolExecutor(len(MODELS), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_network, MODELS))  # into caches on disk, as above
    lines = []
    for name in MODELS:
        for batch, label, model, x, off in _networks(name):
            line = {"model": name, "batch": batch, "variant": label, "ms": _milliseconds(functools.partial(model, x))}
            lines.append(line | {"off": round(off, 5)})
    return {"lines": lines}


def _networks(name: str) -> Iterator[tuple[int, str, Any, Any, float]]:
    """(batch, variant, network, images, largest difference of a logit from eager's over the largest logit)."""
    import torch
    from gpu_peers import quantized

    import mvit_kernels as mk

    plain = mk.create_model(name).cuda().half().eval().to(memory_format=torch.channels_last)
    copies = [mk.create_model(name).eval() for _ in range(3)]
    for each in copies:
        each.load_state_dict(plain.state_dict())
    image = torch.empty(1, 3, 256, 256, device="cuda")
    contenders = {
        "eager": plain, "accelerate": mk.accelerate(copies[0].cuda().half().to(memory_format=torch.channels_last)),
        "compile": mk.compile(copies[1].cuda().half(), image), "compile, int8": mk.compile(quantized(copies[2], 256), image),
    }  # fmt: skip
    for batch in NETWORK_BATCHES:
        x = torch.randn(batch, 3, 256, 256, device="cuda", dtype=torch.float16).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            right = plain(x).float()
            for label, model in contenders.items():
                off = float((model(x).float() - right).abs().max() / right.abs().max())
                if not off < (0.5 if "int8" in label else 0.05):
                    raise AssertionError(f"{name} {label}: logits are off by {off:g} of the largest")
                yield batch, label, model, x, off


def _compile_network(name: str) -> None:
    for _ in _networks(name):
        pass


STAGES: dict[str, tuple[Callable[[], Record], int]] = {
    "build": (build, 100), "tests": (tests, 130), "sanitizer": (sanitizer, 45), "ops": (ops, 95), "networks": (networks, 95),
}  # fmt: skip
"""Each with the seconds that it may take: 465 of the 480."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", choices=STAGES, action="append", help="stages to run; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # in a process of its own, to --results
    args = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_check: expected a machine with a GPU, torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    if args.stage:
        args.results.write_text(json.dumps(STAGES[args.stage][0]()))
        return 0
    return _all(args.only or list(STAGES), args.results)


def _all(names: list[str], folder: Path) -> int:
    document: Record = {"stages": {}}
    for name in names:
        started = time.monotonic()
        record = _apart(name)
        document["stages"][name] = record | {"seconds": round(time.monotonic() - started, 1)}
        print(f"{name}: {_word(record)} in {document['stages'][name]['seconds']} s", flush=True)
        if name == "build" or "conditions" not in document:  # the versions are those of what was built
            document = {"conditions": _conditions(names), **{key: value for key, value in document.items() if key != "conditions"}}
        _write(folder / RESULT, document)
    _show(document)
    return int(any("error" in each for each in document["stages"].values()))


def _apart(name: str) -> Record:
    """A stage in a process that can be ended, and that leaves nothing on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = _run([sys.executable, str(Path(__file__)), "--stage", name, "--results", str(result)], STAGES[name][1])
        if "error" in done or not result.exists():
            return done
        return json.loads(result.read_text())


def nvcc() -> str | None:
    """Where setup.py finds it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def _with_cuda_kernels(record: Record) -> Record:
    """The record; an error where CUDA kernels could be built and are not there: tests of them are skipped then, and so are timings."""
    from mvit_kernels.ops import cuda_support

    if nvcc() is None or cuda_support.native is not None:
        return record
    return {"error": f"without the kernels of {nvcc()}: {cuda_support.REASON}"} | record


def _pytest(arguments: list[str], before: list[str] | None = None) -> Record:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    record = _run([*(before or []), *command])
    lines = record["tail"].splitlines()
    return record | {"summary": lines[-1] if lines else ""}


def _run(command: list[str], limit: float | None = None, switches: dict[str, str] | None = None) -> Record:
    """The command, and the end of what it printed; an error where it failed or was not done in time."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | (switches or {})
    started = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )  # fmt: skip
    try:
        output, _ = started.communicate(timeout=limit)
        error = f"exit code {started.returncode}" if started.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, 9)
        output, _ = started.communicate()
        error = f"not done in {limit:g} s"
    record = {"command": shlex.join(command), "tail": output[-4000:]}
    return record | {"error": error} if error else record


def _conditions(names: list[str]) -> Record:
    import torch
    import triton

    from mvit_kernels.machine import conditions

    properties = torch.cuda.get_device_properties(0)
    return conditions(shlex.join(["python", "benchmarks/gpu_check.py", *(f"--only={name}" for name in names)])) | {
        "gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 2**30), "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda, "triton": triton.__version__,
    }  # fmt: skip


def _copy_rate() -> float:
    """Bytes a second, read and written, of torch's copy."""
    import torch
    import triton

    source, target = (torch.empty(2**29, dtype=torch.uint8, device="cuda") for _ in range(2))
    return 2 * source.numel() / (1e-3 * triton.testing.do_bench(lambda: target.copy_(source), return_mode="median"))


def _product_rate() -> float:
    """Operations a second of torch's product of large float16 matrices."""
    import torch
    import triton

    a = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    return 2 * 8192**3 / (1e-3 * triton.testing.do_bench(lambda: a @ a, return_mode="median"))


def _milliseconds(function: Callable[[], object]) -> float:
    import torch

    times = []
    for turn in range(23):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(begin.elapsed_time(end))
    return round(statistics.median(times), 3)


def _write(path: Path, document: Record) -> None:
    from mvit_kernels.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _word(record: Record) -> str:
    if "skipped" in record:
        return f"skipped ({record['skipped']})"
    if "error" in record:
        return f"FAILED ({record['error']})\n{record.get('tail', '')[-1500:]}"
    return record.get("summary") or "done"


def _show(document: Record) -> None:
    from mvit_kernels.cli.output import print_table

    stages = document["stages"]
    columns = (*BACKENDS, "eager", "inductor", "floor")
    if lines := stages.get("ops", {}).get("lines"):
        rows = [[each["op"], str(each["batch"]), each["map"], *(str(each.get(f"{key}_us", "")) for key in columns)] for each in lines]
        print_table("ops, float16, us inside a CUDA graph", ("op", "batch", "map", *columns), rows)
    if lines := stages.get("networks", {}).get("lines"):
        rows = [[each["model"], str(each["batch"]), each["variant"], str(each["ms"])] for each in lines]
        print_table("networks, float16, ms a batch", ("model", "batch", "variant", "ms"), rows)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
