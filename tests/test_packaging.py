"""What a user gets at installation and import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mvit_kernels.ops import cuda_support
from mvit_kernels.ops.backend import Choice, native

ROOT = Path(__file__).parents[1]


def python(code: str, *options: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, env=env, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_is_light() -> None:
    heavy = "timm transformers sklearn matplotlib PIL rich tqdm safetensors mvit_kernels.models mvit_kernels.swap mvit_kernels.training"
    code = f"import torch, sys; before = set(sys.modules); import mvit_kernels; print(set('{heavy}'.split()) & (set(sys.modules) - before))"
    assert python(code).strip() == "set()"


@pytest.mark.skipif(native is None, reason="the native kernels are not built")
def test_one_openmp_runtime_is_loaded() -> None:
    code = """
import torch, mvit_kernels as mk
x = torch.randn(8, 129, 32, 32)
mk.ops.separable_attention(x); torch.nn.functional.conv2d(x, torch.randn(8, 129, 3, 3))
libraries = {line.split()[-1] for line in open("/proc/self/maps") if any(n in line for n in ("libgomp", "libomp", "libiomp"))}
print(len(libraries), libraries)
"""
    assert python(code, OMP_NUM_THREADS="2").startswith("1 ")


@pytest.mark.skipif(native is None, reason="the native kernels are not built")
def test_isa_is_capped_by_the_environment() -> None:
    code = "import mvit_kernels as mk; print(mk.backends()['cpu'].detail)"
    assert python(code, MVIT_KERNELS_ISA="scalar").startswith("scalar")


def test_backend_is_set_by_the_environment() -> None:
    code = """
import torch, mvit_kernels as mk
x = torch.zeros(1, 3, 2, 2)
mk.ops.separable_attention(x)
try: mk.ops.separable_attention(x, backend="cuda")
except ValueError as error: print(error)
with mk.use_backend("triton"):
    try: mk.ops.separable_attention(x)
    except ValueError as error: print(error)
"""
    out = python(code, MVIT_KERNELS_BACKEND="reference")
    assert "backend 'cuda' was requested and cannot take this call: it has no kernel for this op" in out
    assert "backend 'triton' was requested" in out


WRONG_ENVIRONMENT = [
    ("MVIT_KERNELS_BACKEND", "gpu", "MVIT_KERNELS_BACKEND: expected one of auto, cpu, cuda, reference, triton, got 'gpu'"),
    pytest.param(
        "MVIT_KERNELS_ISA",
        "sse9",
        "MVIT_KERNELS_ISA: expected one of scalar",
        marks=pytest.mark.skipif(native is None, reason="the native kernels are not built"),
    ),
]


@pytest.mark.parametrize(("variable", "value", "message"), WRONG_ENVIRONMENT, ids=["backend", "isa"])
@pytest.mark.slow
def test_wrong_environment_is_told_at_first_use(variable: str, value: str, message: str) -> None:
    code = """
import torch, mvit_kernels as mk
x = torch.zeros(1, 3, 2, 2)
uses = mk.backends, mk.use_backend("reference").__enter__, lambda: mk.ops.separable_attention(x)
for use in (*uses, lambda: mk.ops.separable_attention(x, backend="reference")):
    try: use()
    except ValueError as error: print(error)
"""
    assert python(code, **{variable: value}).count(message) == 4


@pytest.mark.parametrize(("variable", "value", "message"), WRONG_ENVIRONMENT, ids=["backend", "isa"])
@pytest.mark.slow
def test_wrong_environment_ends_the_program_in_one_line(variable: str, value: str, message: str) -> None:
    env = {**os.environ, variable: value}
    done = subprocess.run([sys.executable, "-m", "mvit_kernels", "info"], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"mvit-kernels info: {message}")


@pytest.mark.parametrize(("switch", "code"), [("0", 0), ("1", 1)], ids=["switched off", "failed"])
def test_an_older_extension_does_not_stand_for_one_that_is_not_built(switch: str, code: int, tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "python"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "mvit_kernels").mkdir()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    older = [tmp_path / "mvit_kernels" / f"{name}{suffix}" for name in ("_cpu", "_cuda")]
    other = tmp_path / "mvit_kernels" / "_cpu.of-another-python.so"
    for path in (*older, other):
        path.touch()
    env = {**os.environ, "CXX": "/no/such/compiler", "MVIT_KERNELS_NATIVE": switch, "MVIT_KERNELS_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == code, done.stderr
    assert [path.name for path in (*older, other) if path.exists()] == [other.name]


@pytest.mark.slow
def test_installs_without_a_compiler_and_says_what_is_missing(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    skip = shutil.ignore_patterns(".git", ".venv*", "build", "out", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=skip)
    env = {**os.environ, "CXX": "/no/such/compiler"}
    env.pop("MVIT_KERNELS_NATIVE", None)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    # -S and the two paths by hand keep an editable installation of the same package out.
    code = f"""
import sys
sys.path[:0] = [{str(site)!r}, {sysconfig.get_path("purelib")!r}]
import torch, mvit_kernels as mk
print(mk.__file__)
print(mk.backends()["cpu"].reason)
print(mk.ops.separable_attention(torch.zeros(1, 3, 2, 2)).shape)
"""
    out = python(code, "-S")
    assert str(site) in out
    ops = [choice.op for choice in Choice.every if "cpu" in choice.implementations]
    assert "separable_attention" in ops
    assert f"UserWarning: mvit_kernels: {', '.join(ops)} run on plain PyTorch" in out
    assert "install a C++20 compiler" in out
    assert "torch.Size([1, 1, 2, 2])" in out


@pytest.mark.slow
def test_source_distribution_builds_the_kernels(tmp_path: Path) -> None:
    """What `python -m build` does: a wheel from the sdist, not from the checkout. But for objects of the checkout, which take minutes to
    make: one is taken where every file that it was made of is there, as it was, and made again where not."""
    build = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    if (ROOT / "build/csrc").is_dir():
        shutil.copytree(ROOT / "build/csrc", source / "build/csrc", ignore=shutil.ignore_patterns("tests", "races", "avxvnni"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    env = {**os.environ, "MVIT_KERNELS_NATIVE": "1", **({} if cuda_support.native is None else {"MVIT_KERNELS_CUDA": "1"})}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "site")
    paths = [str(tmp_path / "site"), sysconfig.get_path("purelib")]
    code = f"import sys; sys.path[:0] = {paths}; import torch, mvit_kernels._cpu as cpu; print(cpu.__file__)"
    assert python(code, "-S").startswith(paths[0])  # which a file of kernels that is missing would not let it
    assert any(name.startswith("mvit_kernels/_cpu") for name in names)
    assert sum(name.startswith("mvit_kernels/checkpoints/") and name.endswith(".safetensors") for name in names) == 2
    assert not any(name.startswith(("tests/", "csrc/")) for name in names)
