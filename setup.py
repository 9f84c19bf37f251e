"""Builds mvit_kernels._cpu with ninja: every file of csrc/cpu/isa once an instruction set, the rest once.

The kernels are compiled as csrc/Makefile compiles them, with the same flags and into the same files of build/csrc: after an installation,
`make -C csrc test` compiles its tests and no kernel.

MVIT_KERNELS_NATIVE=0 leaves the native kernels out, =1 makes a failed build an error; by default a failed build leaves a package that runs
on its plain torch implementations and says so. MVIT_KERNELS_WERROR=1 makes compiler warnings errors, as csrc/Makefile always does.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in {"x86_64", "amd64"}
NOT_BUILT = """
mvit_kernels: the native CPU kernels were NOT built ({reason}).
The package works without them, on plain PyTorch; importing it names the ops concerned. To get the kernels, install a C++20 compiler
(g++ 11 or newer) and install the package again.
"""


def isa_flags() -> dict[str, list[str]]:
    lines = (CSRC / "cpu/isa/flags.txt").read_text().splitlines()
    table = {isa: flags for isa, *flags in (line.split() for line in lines)}
    return table if X86 else {"scalar": table["scalar"]}


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        required = os.environ.get("MVIT_KERNELS_NATIVE")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)  # one of an earlier build would be installed in place of one that fails
        if required == "0":
            self.announce_missing("MVIT_KERNELS_NATIVE=0")
            return
        try:
            self.build_with_ninja(target)
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if required == "1" or not CSRC.is_dir():  # without its sources, what is being built is damaged
                raise
            self.announce_missing(str(error))

    def announce_missing(self, reason: str) -> None:
        print(NOT_BUILT.format(reason=reason), file=sys.stderr, flush=True)

    def copy_extensions_to_source(self) -> None:
        built = Path(self.build_lib)
        self.extensions = [ext for ext in self.extensions if (built / self.get_ext_filename(ext.name)).exists()]
        super().copy_extensions_to_source()

    def build_with_ninja(self, target: Path) -> None:
        import pybind11

        compiler = os.environ.get("CXX") or next((name for name in ("g++", "c++") if shutil.which(name)), None)
        if compiler is None:
            raise FileNotFoundError("no C++ compiler: neither CXX nor g++ or c++ was found")
        werror = ["-Werror"] if os.environ.get("MVIT_KERNELS_WERROR") == "1" else []
        x86 = ["-DMVIT_BUILD_X86"] if X86 else []
        common = [*(CSRC / "flags.txt").read_text().split(), *werror, *x86]
        python = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]

        objects = Path(self.get_finalized_command("build").build_base).resolve() / "csrc"
        build = Path(self.build_temp).resolve()
        plain = sorted(path for pattern in ("cpu/core/*.cpp", "cpu/ops/*.cpp", "engine/*.cpp") for path in CSRC.glob(pattern))
        sources = [(path, objects / path.relative_to(CSRC).with_suffix(".o"), []) for path in plain]
        sources += [(path, build / f"{path.stem}.o", python) for path in sorted(ROOT.glob("python/*.cpp"))]
        for isa, flags in isa_flags().items():
            define = [f"-DMVIT_ISA={isa}", f"-DMVIT_ISA_{isa.upper()}", *flags]
            for path in sorted(CSRC.glob("cpu/isa/*.cpp")):
                sources.append((path, objects / path.relative_to(CSRC).with_suffix(f".{isa}.o"), define))

        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"builddir = {ninja_path(objects)}",  # of ninja's log
            f"cxx = {compiler}",
            "rule compile",
            "  command = $cxx $flags -c $in -o $out",
            "rule link",
            "  command = $cxx -shared -fopenmp $in -o $out",
        ]
        for source, output, flags in sources:
            lines += [
                f"build {ninja_path(output)}: compile {ninja_path(source)}",
                f"  depfile = {ninja_path(output.with_suffix('.d'))}",
                f"  flags = {shlex.join([*common, *flags])}",
            ]
        lines += [f"build {ninja_path(target)}: link {' '.join(ninja_path(output) for _, output, _ in sources)}", ""]
        (build / "build.ninja").write_text("\n".join(lines))
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if "MAX_JOBS" in os.environ else []
        subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-f", str(build / "build.ninja"), *jobs], cwd=CSRC, check=True)


def ninja_path(path: Path) -> str:
    """Relative to csrc, where ninja and make run the compiler: both must find in dependency files the paths that they know."""
    return os.path.relpath(path, CSRC).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(ext_modules=[Extension("mvit_kernels._cpu", sources=[])], cmdclass={"build_ext": BuildNative})
