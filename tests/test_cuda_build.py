"""What nvcc made of the CUDA kernels: registers, no spills, tensor cores, for every architecture that they are built for."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from marks import slow
from sass import waits_first

from mvit_kernels.ops import cuda_support

pytestmark = pytest.mark.skipif(cuda_support.native is None, reason="the CUDA kernels are not built: no nvcc was found")

ARCHITECTURES = ("sm_80", "sm_90a")
PRODUCTS = ("qgemm_kernel", "qconv2d_kernel")
# (registers, bytes of shared memory), at most: what two blocks of 128 threads and more on a multiprocessor leave for each; of products as
# many as csrc/cuda/ops/qproduct_launch.cuh says.
MOST = {
    "qgemm_kernel": (96, 45088),
    "qconv2d_kernel": (128, 45088),
    "qdepthwise_conv2d_kernel": (128, 8224),
    "separable_attention_scores_kernel": (64, 64),
    "separable_attention_context_kernel": (64, 12288),
    "separable_attention_values_kernel": (80, 0),
    "separable_attention_image_kernel": (255, 0),
    "inverted_residual_kernel": (176, 0),
    "qattention_context_kernel": (48, 0),
    "qattention_values_kernel": (255, 0),
    "qfeed_forward_kernel": (255, 0),
    "qinverted_residual_kernel": (184, 0),
    "qnorm_gemm_kernel": (168, 0),
    "qpatch_attention_kernel": (200, 0),
}


def cuobjdump() -> str | None:
    """On the PATH, beside nvcc, or in Triton's package. It calls nvdisasm, beside it."""
    triton = importlib.util.find_spec("triton")
    packaged = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton is not None and triton.origin else None
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / "cuobjdump" if nvcc else None
    found = [str(path) for path in (beside, packaged) if path is not None and path.is_file()]
    return shutil.which("cuobjdump") or (found[0] if found else None)


@cache
def dump(*options: str) -> str:
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump was found")
    done = subprocess.run([tool, *options, str(cuda_support.native.__file__)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch: str) -> None:
    seen = set()
    for part in re.split(r"^arch = ", dump("--dump-resource-usage"), flags=re.MULTILINE):
        if part.split("\n", 1)[0].strip() != arch:
            continue
        for name, usage in re.findall(r"Function (\S+):\n\s*(.*)", part):
            values = {key: int(value) for key, value in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", usage)}
            kernel = next(each for each in MOST if f"{len(each)}{each}" in name)
            registers, shared = MOST[kernel]
            assert values["STACK"] == values["LOCAL"] == 0, (name, usage)
            assert values["REG"] <= registers, (name, usage)
            assert values["SHARED"] <= shared + 1024, (name, usage)  # from sm_90 on the system has one KB of each block's
            seen.add(kernel)
    assert seen == set(MOST)


def functions_of(arch: str) -> dict[str, str]:
    _, *parts = dump("--gpu-architecture", arch, "--dump-sass").split("Function : ")
    return {name: body for name, _, body in (part.partition("\n") for part in parts)}


@pytest.mark.slow
def test_nothing_touches_memory_before_its_turn() -> None:
    """Where kernels are launched before those in front of them are done: csrc/cuda/primitives/launch.cuh."""
    functions = functions_of("sm_90a")
    assert len(functions) > 60
    assert [name for name, code in functions.items() if not waits_first(code)] == []


@pytest.mark.parametrize("arch", [slow(ARCHITECTURES[0]), ARCHITECTURES[1]])  # to disassemble one takes 10 seconds
@pytest.mark.slow
def test_products_are_of_tensor_cores(arch: str) -> None:
    functions = functions_of(arch)
    for kernel in PRODUCTS:
        bodies = {name: body for name, body in functions.items() if f"{len(kernel)}{kernel}" in name}
        assert len(bodies) == 12  # two kinds of rows, three shapes of blocks, two widths of weights
        for name, body in bodies.items():
            assert re.search(r"IMMA\.16832\.U8\.S8", body)
            # Copies to shared memory beside the computation; of what few channels see and of 6 bits, all goes through registers.
            assert ("LDGSTS" in body) != bool(re.search(r"QThinTapsELi\d+ELi\d+ELi6E", name))
            assert "LDSM" in body
            assert "FMUL.RZ" in body  # which segment of an activation: csrc/cuda/primitives/qsegments.cuh
    depthwise = {name: body for name, body in functions.items() if "24qdepthwise_conv2d_kernel" in name}
    assert len(depthwise) == 22  # two strides; three lengths of runs and three forms of results, and two lengths of any form
    for body in depthwise.values():
        assert re.search(r"IDP\.4A\.U8\.S8", body)
    values = [body for name, body in functions.items() if "separable_attention_values_kernel" in name]
    assert {kind for body in values for kind in re.findall(r"HMMA\.16816\.F32(\.BF16)?", body)} == {"", ".BF16"}
    images = [body for name, body in functions.items() if "32separable_attention_image_kernel" in name]
    assert len(images) == 8  # two types, four widths
    for body in images:
        assert re.search(r"HMMA\.16816\.F32", body)
        assert "LDGSTS" in body
        assert ("UCGABAR" in body) == (arch == "sm_90a")  # clusters
    residuals = [body for name, body in functions.items() if "24inverted_residual_kernel" in name]
    assert len(residuals) == 26  # two types; three tiles with three depths and any other, and a wide one of any
    for body in residuals:
        assert re.search(r"HMMA\.16816\.F32", body)
        assert re.search(r"HMMA\.1688\.F32", body)  # the ninth tap of the filter
        assert "MUFU.TANH" in body
        assert "LDGSTS" in body
    of_bytes = [body for name, body in functions.items() if "25qinverted_residual_kernel" in name]
    assert len(of_bytes) == 4  # two strides, two numbers of columns
    for body in of_bytes:
        assert re.search(r"IMMA\.16832\.U8\.S8", body)
        assert re.search(r"IDP\.4A\.U8\.S8", body)
        assert "VABSDIFF" in body  # a distance and its sum with the entry of a curve
        assert "LDGSTS" in body
    normed = [body for name, body in functions.items() if "17qnorm_gemm_kernel" in name]
    assert len(normed) == 24  # of 32 channels, 64, .. 512, and up to 256 also of 16 rows a warp
    for body in normed:
        assert re.search(r"IMMA\.16832\.U8\.S8", body)
        assert "LDGSTS" in body
    for kernel in ("20qfeed_forward_kernel", "24qattention_values_kernel"):
        halves = [body for name, body in functions.items() if kernel in name]
        assert len(halves) == 12  # of 32 channels, 64, .. 256, and those beyond 128 in smaller blocks
        for body in halves:
            assert re.search(r"IMMA\.16832\.U8\.S8", body)
            assert "LDGSTS" in body
            assert re.search(r"I2IP\.S16\.S32\.SAT", body)
    (context,) = (body for name, body in functions.items() if "25qattention_context_kernel" in name)
    assert len(re.findall(r"IMMA\.16832\.U8\.S8", context)) >= 2  # scores, and sums over pixels
    assert re.search(r"LDSM\.16\.MT88\.4", context)
    phases = {name: body for name, body in functions.items() if "23qpatch_attention_kernel" in name}
    assert len(phases) == 5  # depths of a head
    for name, body in phases.items():
        assert re.search(r"IMMA\.16832\.U8\.U8", body)
        assert "FMUL.SAT" in body  # the place in the table, held between its ends
        assert "LDSM" in body
        functions[name] = body[: body.rindex("IMMA")]  # behind are divisions, which multiply and add and round once
    for name, body in functions.items():
        if not re.search("separable_attention_(scores|context|values|image)_kernel|24inverted_residual", name):
            # Multiply-adds of integer ops are two operations, or bits would differ from the CPU's. (Divisions of float64 have some by 0.)
            assert not re.search(r"FFMA(?! R\d+, RZ,)", body), name
