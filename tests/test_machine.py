"""The conditions of a measurement: which code it was of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mvit_kernels.machine import commit, conditions


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        said = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", "-C", str(tmp_path), *said, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert commit(tmp_path) is None  # nothing is committed
    file, result = tmp_path / "file", tmp_path / "benchmarks" / "results" / "peers.json"
    result.parent.mkdir(parents=True)
    for each in (file, result):
        each.write_text("one")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    result.write_text("two")
    (tmp_path / "other").touch()
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    file.write_text("two")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD") + "+"
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None


def test_installed_packages_have_no_commit(tmp_path: Path) -> None:
    """Not that of a clone around them, in which a virtual environment may lie."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path / "site-packages") is None


def test_conditions_have_the_commit() -> None:
    assert conditions("command")["commit"] == commit()
