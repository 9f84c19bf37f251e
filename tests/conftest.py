from __future__ import annotations

import gc
import importlib.util
import os

import pytest

# Set before torch loads OpenMP: a thread at the end of one of the many small parallel regions sleeps until the others are there. Waiting
# actively it would keep a core from them, and on a machine with other work the tests take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# timm imports torchvision for its transforms only. The torchvision wheel's C++ ops do not load beside a CPU-only torch, and registering
# their fake kernels then fails at import; skipping those registrations leaves the transforms usable.
_register_fake = torch.library.register_fake


def _skip_torchvision_ops(op, *args, **kwargs):
    if isinstance(op, str) and op.startswith("torchvision::"):
        return lambda fn: fn
    return _register_fake(op, *args, **kwargs)


if importlib.util.find_spec("torchvision") is not None:
    torch.library.register_fake = _skip_torchvision_ops


def pytest_collection_finish() -> None:
    """The million objects of the imported libraries stay: no collection of garbage should look through them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_unconfigure() -> None:
    """Extensions that look for leaks at exit should find what only waits to be collected gone."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poison():
    """Every uninitialized tensor starts as NaN, so an output that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


OTHER_PRODUCTS = {
    "avxvnni": ("engine", "qattention", "qconv2d", "qdepthwise", "qgemm", "qinverted_residual", "qpatch_attention", "qstack", "quant_"),
    "avx512bf16": ("engine",),
    "amx": ("engine", "qattention", "qconv2d", "qgemm", "qinverted_residual", "qpatch_attention", "qstack", "quant_"),
}
"""Sets that are the one before but for products, of bfloat16 or of bytes, and the tests of such bytes and of networks."""


def pytest_collection_modifyitems(config, items):
    """On OTHER_PRODUCTS run tests of bfloat16 and those listed: the rest is what another set runs."""

    def repeats(item) -> bool:
        settings = {*map(str, item.callspec.params.values())} if hasattr(item, "callspec") else set()
        return "torch.bfloat16" not in settings and any(
            isa in settings and not item.path.stem.startswith(tuple(f"test_{name}" for name in names))
            for isa, names in OTHER_PRODUCTS.items()
        )

    config.hook.pytest_deselected(items=[item for item in items if repeats(item)])
    items[:] = [item for item in items if not repeats(item)]


@pytest.fixture
def threads():
    """A function that sets the number of threads; the old number comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads) -> None:
    """For tests of many small calls: threads that wait for each other take several times as long as one."""
    threads(1)


def _isas() -> list[str]:
    from mvit_kernels.ops.backend import native

    return [] if native is None else native.isas_supported()


@pytest.fixture(params=_isas() or [pytest.param("", marks=pytest.mark.skip(reason="the native kernels are not built"))])
def isa(request):
    """Runs the test once on every instruction set of this machine."""
    from mvit_kernels.ops.backend import native

    before = native.isa()
    assert native.set_isa(request.param)
    yield request.param
    native.set_isa(before)


@pytest.fixture(params=["reference", *_isas()])
def backend(request):
    """The name of a backend: plain torch, and the kernels on every instruction set of this machine."""
    from mvit_kernels.ops.backend import native

    if request.param == "reference":
        yield "reference"
        return
    before = native.isa()
    assert native.set_isa(request.param)
    yield "cpu"
    native.set_isa(before)
