"""Builds two extensions with ninja: mvit_kernels._cpu, the files of csrc/cpu/isa once an instruction set and the rest once, and, where
nvcc is found (CUDACXX, PATH, CUDA_HOME), mvit_kernels._cuda, which needs neither a GPU nor its driver to be built and imported.

The kernels of the CPU are compiled as csrc/Makefile compiles them, with the same flags and into the same files of build/csrc: after an
installation, `make -C csrc test` compiles its tests and no kernel.

MVIT_KERNELS_NATIVE=0 leaves the native kernels of the CPU out, =1 makes a failed build an error; by default a failed build leaves a package
that runs on its plain torch implementations and says so. MVIT_KERNELS_CUDA does the same for those of GPUs; without nvcc they are missing
from a package that is complete otherwise. MVIT_KERNELS_WERROR=1 makes compiler warnings errors, as csrc/Makefile always does.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in {"x86_64", "amd64"}
WERROR = os.environ.get("MVIT_KERNELS_WERROR") == "1"
CUDA_BINDING = "bind_cuda.cpp"
NOT_BUILT = """
mvit_kernels: the native CPU kernels were NOT built ({reason}).
The package works without them, on plain PyTorch; importing it names the ops concerned. To get the kernels, install a C++20 compiler
(g++ 11 or newer) and install the package again.
"""
NO_CUDA = "mvit_kernels: the CUDA kernels were not built ({reason}); nothing else needs them."


def isa_sources() -> Iterator[tuple[Path, str, list[str]]]:
    """Files of csrc/cpu/isa, the instruction sets that each is compiled for, and the flags. A line of flags.txt: a set, which names of
    files, its flags."""
    for line in (CSRC / "cpu/isa/flags.txt").read_text().splitlines():
        isa, names, *flags = line.split()
        if X86 or isa == "scalar":
            for path in sorted(CSRC.glob("cpu/isa/*.cpp")):
                if re.fullmatch(names, path.stem):
                    yield path, isa, [f"-DMVIT_ISA={isa}", f"-DMVIT_ISA_{isa.upper()}", *flags]


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        build, switch, missing = {
            "mvit_kernels._cpu": (self.build_cpu, "MVIT_KERNELS_NATIVE", NOT_BUILT),
            "mvit_kernels._cuda": (self.build_cuda, "MVIT_KERNELS_CUDA", NO_CUDA),
        }[ext.name]
        required = os.environ.get(switch)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)  # one of an earlier build would be installed in place of one that fails
        if required == "0":
            announce(missing, f"{switch}=0")
            return
        try:
            build(target)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if required == "1" or not CSRC.is_dir():  # without its sources, what is being built is damaged
                raise
            announce(missing, str(error))

    def run(self) -> None:
        if self.inplace:  # nor shall one beside the sources stand for it
            for ext in self.extensions:
                (ROOT / Path(*ext.name.split(".")[:-1]) / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)
        super().run()

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib)
        self.extensions = [ext for ext in self.extensions if (built / self.get_ext_filename(ext.name)).exists()]
        super().copy_extensions_to_source()

    def build_cpu(self, target: Path) -> None:
        objects, build = self.objects(), Path(self.build_temp).resolve()
        x86 = ["-DMVIT_BUILD_X86"] if X86 else []
        common = [*host_flags(), *x86]
        plain = sorted(path for pattern in ("cpu/core/*.cpp", "cpu/ops/*.cpp", "engine/*.cpp") for path in CSRC.glob(pattern))
        sources = [(path, objects / path.relative_to(CSRC).with_suffix(".o"), common) for path in plain]
        bindings = sorted(path for path in ROOT.glob("python/*.cpp") if path.name != CUDA_BINDING)
        sources += [(path, build / f"{path.stem}.o", [*common, *python_flags()]) for path in bindings]
        for path, isa, flags in isa_sources():
            sources.append((path, objects / path.relative_to(CSRC).with_suffix(f".{isa}.o"), [*common, *flags]))
        ninja(build / "build.ninja", objects, f"{host_compiler()} -shared -fopenmp", sources, target)

    def build_cuda(self, target: Path) -> None:
        compiler = nvcc()
        objects, build = self.objects() / "cuda", Path(self.build_temp).resolve()
        flags = [*(CSRC / "cuda/flags.txt").read_text().split(), *(["-Werror=all-warnings", "-Xcompiler=-Werror"] if WERROR else [])]
        sources = [(path, objects / f"{path.stem}.o", flags) for path in sorted(CSRC.glob("cuda/*/*.cu"))]
        sources.append((ROOT / "python" / CUDA_BINDING, objects / "bind_cuda.o", [*host_flags(), *python_flags()]))
        # With the runtime inside: an import needs no libcudart, and no driver.
        ninja(build / "build-cuda.ninja", objects, f"{shlex.quote(compiler)} -shared -cudart=static", sources, target, compiler)

    def objects(self) -> Path:
        return Path(self.get_finalized_command("build").build_base).resolve() / "csrc"


def announce(text: str, reason: str) -> None:
    print(text.format(reason=reason), file=sys.stderr, flush=True)


def host_compiler() -> str:
    compiler = os.environ.get("CXX") or next((name for name in ("g++", "c++") if shutil.which(name)), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: neither CXX nor g++ or c++ was found")
    return compiler


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if compiler is None:
        raise FileNotFoundError("no nvcc: neither CUDACXX nor one in PATH or CUDA_HOME was found")
    return compiler


def host_flags() -> list[str]:
    return [*(CSRC / "flags.txt").read_text().split(), *(["-Werror"] if WERROR else [])]


def python_flags() -> list[str]:
    import pybind11

    return [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]


def ninja(file: Path, log: Path, link: str, sources: list[tuple[Path, Path, list[str]]], target: Path, nvcc: str = "") -> None:
    """Compiles what of `sources` (source, object, flags) has changed, .cu by nvcc, and links it. log: the folder of ninja's log."""
    file.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"builddir = {ninja_path(log)}",
        "rule compile",
        f"  command = {host_compiler()} $flags -c $in -o $out",
        "rule nvcc",
        f"  command = {shlex.quote(nvcc)} $flags -MMD -MF $depfile -c $in -o $out",
        "rule link",
        f"  command = {link} $in -o $out",
    ]
    for source, output, flags in sources:
        rule = "nvcc" if source.suffix == ".cu" else "compile"
        lines += [
            f"build {ninja_path(output)}: {rule} {ninja_path(source)}",
            f"  depfile = {ninja_path(output.with_suffix('.d'))}",
            f"  flags = {shlex.join(flags)}",
        ]
    lines += [f"build {ninja_path(target)}: link {' '.join(ninja_path(output) for _, output, _ in sources)}", ""]
    file.write_text("\n".join(lines))
    jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
    subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-f", str(file), *jobs], cwd=CSRC, check=True)


def ninja_path(path: Path) -> str:
    """Relative to csrc, where ninja and make run the compiler: both must find in dependency files the paths that they know."""
    return os.path.relpath(path, CSRC).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension(name, sources=[]) for name in ("mvit_kernels._cpu", "mvit_kernels._cuda")],
    cmdclass={"build_ext": BuildNative},
)
