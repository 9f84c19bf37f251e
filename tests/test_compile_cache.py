"""What torch.compile keeps on disk is run again only by the code that traced it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import mvit_kernels as mk
from mvit_kernels.ops.compile_cache import code_digest, tag_caches

PACKAGE = Path(mk.__file__).parent


def test_the_digest_is_of_what_is_traced(tmp_path):
    for folder in ("ops", "reference", "engine"):
        (tmp_path / folder).mkdir()
        for path in (PACKAGE / folder).glob("*.py"):
            shutil.copy(path, tmp_path / folder)
    assert code_digest(tmp_path) == code_digest(PACKAGE)
    seen = {code_digest(tmp_path)}
    for name in ("ops/gemm.py", "reference/separable_attention_block.py"):
        path = tmp_path / name
        path.write_text(path.read_text() + "\n")
        seen.add(code_digest(tmp_path))
    (tmp_path / "ops/gemm.py").rename(tmp_path / "ops/gemn.py")
    seen.add(code_digest(tmp_path))
    assert len(seen) == 4
    (tmp_path / "engine/plan.py").write_text("")
    assert code_digest(tmp_path) in seen


@pytest.mark.parametrize("tag", ["", "of the user"])
@pytest.mark.slow
def test_a_tag_of_the_user_stays(tag):
    code = "import mvit_kernels, torch; print(torch.compiler.config.cache_key_tag)"
    env = {**os.environ, "TORCH_COMPILE_CACHE_KEY_TAG": tag}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == f"{tag} mvit_kernels={code_digest(PACKAGE)}\n".lstrip()


def test_tags_are_not_added_twice():
    tag = torch.compiler.config.cache_key_tag
    tag_caches()
    assert torch.compiler.config.cache_key_tag == tag


@pytest.mark.slow
def test_other_code_compiles_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def run() -> tuple[int, int]:
        torch._dynamo.reset()
        counters.clear()
        x = torch.randn(1, 4, 8, 8, requires_grad=True)
        torch.compile(lambda x: mk.ops.group_norm(x, torch.ones(4), torch.zeros(4)))(x).sum().backward()
        return counters["aot_autograd"]["autograd_cache_hit"], counters["aot_autograd"]["autograd_cache_miss"]

    assert run() == (0, 1)
    assert run() == (1, 0)
    with torch.compiler.config.patch(cache_key_tag="mvit_kernels=of another day"):
        assert run() == (0, 1)
