"""Everything that only a GPU can show, on a machine with one and without a network: `make gpu-check`, in under eight minutes.

Builds in place; times whole networks, and every op against the same in plain torch, eager and compiled, all after a look at what they
compute; runs the tests of the GPU kernels, and the CUDA kernels under compute-sanitizer. What measures comes first: it checks what it
measures, and no test that hangs can cost it. Tests have a time of their own, and what the others leave. Each result is on disk as soon as
it is there, in results/gpu-check/, and a stage that takes too long is ended; after each stage all of it is in results/gpu-check.json, and
at the end come tables. The exit code is 0 where nothing failed. Where nvcc is found, CUDA kernels that are missing are a failure.

    python benchmarks/gpu_check.py --only ops            # one stage
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gpu_records as records

ROOT = Path(__file__).resolve().parents[1]
RESULT = "gpu-check.json"
SECONDS = 468  # for all stages
TABLES = (
    ("networks", "networks, float16, ms a batch", ("model", "batch", "variant", "ms", "off")),
    ("ops", "ops, float16, us inside a CUDA graph",
     ("op", "batch", "map", "cuda_us", "triton_us", "eager_us", "inductor_us", "floor_us", "floor / ours")),
)  # fmt: skip
NAMES = ("test", "model", "op", "batch", "map", "variant", "case")  # of a line
MARK = "MVIT_KERNELS_GPU_STAGE"  # in the environment of every process of a stage

Record = records.Record


class Command(NamedTuple):
    words: list[str]
    switches: dict[str, str] = {}  # noqa: RUF012


def build() -> Command:
    switches = {"MVIT_KERNELS_NATIVE": "1", "MVIT_KERNELS_CUDA": str(int(found("nvcc") is not None))}  # what is not built is an error
    return Command([sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", "2"], switches)


def networks() -> Command:
    return Command(_computing("networks"))


def ops() -> Command:
    return Command(_computing("ops"), {"TORCHINDUCTOR_COMPILE_THREADS": "1"})  # in each of many processes


def tests() -> Command:
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_triton_*.py") if path.stem != "test_triton_aot")
    workers = max(1, min(15, (os.cpu_count() or 1) - 1))
    words = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-p", "gpu_pytest", "-m", ""]
    words += ["-n", str(workers), "--maxschedchunk", "1", "-o", "faulthandler_timeout=60"]
    return Command([*words, "tests/gpu", *files], {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"})


def sanitizer() -> Command | None:
    tool = found("compute-sanitizer")
    memcheck = ["--tool", "memcheck", "--error-exitcode", "7", "--destroy-on-device-error", "kernel"]
    # Each tensor by itself: of torch's blocks of 2 MiB, which hold many, what lies beside one can be read unnoticed.
    return Command([tool, *memcheck, *_computing("sanitizer")], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}) if tool else None


def _computing(stage: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_stages.py"), stage]


class Stage(NamedTuple):
    command: Callable[[], Command | None]  # None where it cannot run here
    seconds: int  # that it may take, however long the others did
    last: int = 8  # of them, in which nothing more is begun
    goes_on: bool = True  # behind what ended its process


STAGES = {
    "build": Stage(build, 95, goes_on=False), "networks": Stage(networks, 110, last=20), "ops": Stage(ops, 95, last=20),
    "tests": Stage(tests, 125, last=20, goes_on=False), "sanitizer": Stage(sanitizer, 40),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", choices=STAGES, action="append", help="stages to run; all by default")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    args = parser.parse_args(arguments)
    started = time.time()
    import torch

    if not torch.cuda.is_available():
        print(f"gpu_check: expected a machine with a GPU, torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, lambda number, _: sys.exit(128 + number))  # which ends the stage, too
    return _all(args.only or list(STAGES), _writable(args.results.resolve()), started + SECONDS)


def _writable(folder: Path) -> Path:
    """The folder, or a temporary one where nothing can be written to it."""
    try:
        (folder / "gpu-check").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "gpu-check"):
            return folder
    except OSError as error:
        instead = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        print(f"gpu_check: {error}; results are in {instead}", file=sys.stderr)
        return instead


def _all(names: list[str], folder: Path, end: float) -> int:
    document: Record = {"stages": {}}
    (folder / "gpu-check").mkdir(parents=True, exist_ok=True)
    commands = {name: STAGES[name].command() for name in names}
    ended = 0
    for index, (name, command) in enumerate(commands.items()):
        started = time.time()
        kept = sum(STAGES[later].seconds for later in names[index + 1 :] if commands[later])
        record: Record = {"skipped": "it is not installed"}
        if command is not None:
            try:
                record = _apart(name, command, end - kept, folder / "gpu-check")
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # Ctrl-C and signals end all; what was found until then stays
                record = _found(name, command, folder / "gpu-check", [f"{type(error).__name__}: {error}".removesuffix(": ")])
                ended = 0 if isinstance(error, Exception) else error.code if isinstance(error, SystemExit) else 130
        document["stages"][name] = record | {"seconds": round(time.time() - started, 1)}
        print(f"{name}: after {document['stages'][name]['seconds']} s {_word(record)}", flush=True)
        if name == "build" or "conditions" not in document:  # the versions are those of what was built
            document = {"conditions": _conditions(names), **{key: value for key, value in document.items() if key != "conditions"}}
        try:
            _write(folder / RESULT, document)
        except OSError as error:  # a full disk: tables are printed
            print(f"gpu_check: {error}", file=sys.stderr)
        if ended:
            break
    _show(document)
    return ended or int(any("error" in each for each in document["stages"].values()))


def _apart(name: str, command: Command, end: float, folder: Path) -> Record:
    """A stage in processes of its own, which leave nothing on the GPU: what it has recorded, and an error where anything failed."""
    stage, file, log = STAGES[name], folder / f"{name}.jsonl", folder / f"{name}.log"
    file.write_text("")
    log.write_text("")
    print(f"{name}: {end - time.time():.0f} s at most, in {log}", flush=True)
    switches = command.switches | {records.RECORDS: str(file), records.UNTIL: str(end - stage.last)}
    errors, seen = [], 0
    while error := _run(command.words, switches, log, end):
        errors.append(error)
        values, lines = records.gathered(written := records.read(file))
        begun = sum("of" in record for record in written)
        if not stage.goes_on or begun == seen or len(lines) == values.get("planned") or time.time() > end - stage.last:
            break
        seen = begun
    if name != "build":
        errors.append(_without_cuda_kernels())
    return _found(name, command, folder, errors)


def _found(name: str, command: Command, folder: Path, errors: list[str]) -> Record:
    """What a stage has written down, and an error where anything failed."""
    file, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    values, lines = records.gathered(records.read(file) if file.exists() else [])
    if values.get("planned") and not lines:
        errors.append("nothing was begun")
    failed = sorted((line for line in lines if "error" in line), key=_late)
    for word, count in (("failed", len(failed) - sum(map(_late, failed))), ("had no time", sum(map(_late, failed)))):
        errors.append(f"{count} {word}" if count else "")
    record = {"command": shlex.join(command.words), "summary": _summary(values, lines), **values}
    record |= {"lines": failed if name == "tests" else lines} if lines else {}
    if errors := list(dict.fromkeys(filter(None, errors))):
        record |= {"error": "; ".join(errors), "tail": log.read_text(errors="replace")[-4000:] if log.exists() else ""}
    return record


def _run(words: list[str], switches: dict[str, str], log: Path, end: float) -> str:
    """Why the command failed, or nothing. When it ends, or the time is over, all that it started and left ends with it."""
    mark = secrets.token_hex(16)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", MARK: mark} | switches
    begun = time.time()
    with log.open("ab") as output:
        started = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        code = started.wait(max(0.0, end - begun))
        return f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"not done in {end - begun:.0f} s"
    finally:
        started.kill()
        _end(mark)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold on to what used the GPU
            started.wait(5)


def _end(mark: str) -> None:
    """Every process that has the mark in its environment: whatever group or session it is in, and whoever started it."""
    for _ in range(50):
        if not (marked := list(_marked(mark))):
            return
        for pid in marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # one of them may have started another meanwhile


def _marked(mark: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                yield int(path.parent.name)


def found(tool: str) -> str | None:
    """Where setup.py finds nvcc, or another tool of the toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    given = os.environ.get("CUDACXX") if tool == "nvcc" else None
    return given or shutil.which(tool) or shutil.which(tool, path=f"{home}/bin") or shutil.which(tool, path=f"{home}/{tool}")


def _without_cuda_kernels() -> str:
    """An error where CUDA kernels could be built and are not there: tests of them are skipped then, and so are timings."""
    if found("nvcc") is None:
        return ""
    from mvit_kernels.ops import cuda_support

    return "" if cuda_support.native is not None else f"without the kernels of {found('nvcc')}: {cuda_support.REASON}"


def _summary(values: Record, lines: list[Record]) -> str:
    counts = Counter("failed" if "error" in line and not _late(line) else line.get("outcome", "done") for line in lines)
    counts["not begun"] = values.get("planned", 0) - len(lines)
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count > 0)


def _late(line: Record) -> bool:
    return line.get("outcome") == "late"


def _conditions(names: list[str]) -> Record:
    import torch
    import triton

    from mvit_kernels.machine import conditions

    properties = torch.cuda.get_device_properties(0)
    return conditions(shlex.join(["python", "benchmarks/gpu_check.py", *(f"--only={name}" for name in names)])) | {
        "gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 2**30), "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda, "triton": triton.__version__,
    }  # fmt: skip


def _write(path: Path, document: Record) -> None:
    from mvit_kernels.files import write_text

    write_text(path, json.dumps(document, indent=1) + "\n")


def _word(record: Record) -> str:
    if "skipped" in record:
        return f"skipped ({record['skipped']})"
    if "error" not in record:
        return f"done: {record['summary']}" if record["summary"] else "done"
    failed = [line for line in record.get("lines", ()) if "error" in line]
    said = [f"  {' '.join(str(line[name]) for name in NAMES if name in line)}: {line['error']}" for line in failed[:20]]
    return "\n".join([f"FAILED ({record['error']}), {record['summary']}", *(said or [record["tail"][-1500:]])])


def _show(document: Record) -> None:
    from mvit_kernels.cli.output import print_table

    stages = document["stages"]
    for name, title, columns in TABLES:
        if lines := stages.get(name, {}).get("lines"):
            rows = [[str(({"floor / ours": _share(line)} | line).get(column, "")) for column in columns] for line in lines]
            print_table(title, columns, rows)
    results = [[name, str(each["seconds"]), each.get("error") or each.get("skipped") or each["summary"]] for name, each in stages.items()]
    print_table("stages", ("stage", "s", "result"), results)


def _share(line: Record) -> str:
    ours = [line[key] for key in ("cuda_us", "triton_us") if key in line]
    return f"{line['floor_us'] / min(ours):.0%}" if ours and "floor_us" in line else ""


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
