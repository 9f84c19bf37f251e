"""A plugin for pytest with xdist, for tests of GPU kernels in limited time: what only a GPU can show comes first, what the slow half of the
suite repeats last; each result is on disk as soon as it is there (`gpu_records.py`); and no test is begun when the time is over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import gpu_records as records
import pytest

LATE = "no time was left to begin it"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.get_closest_marker("gpu") is None, item.get_closest_marker("slow") is not None))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if records.late():
        pytest.skip(LATE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    """A test that leaves the GPU unusable for its process is the last one there: xdist starts another process for those behind it."""
    report = yield
    if report.failed and records.broken():
        records.write(result(report))
        os._exit(1)
    return report


class Recorder:
    """In the process to which all others report."""

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        records.write({"planned": len(ids)})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        records.write({"of": {"test": nodeid}, "begun": True})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            records.write(result(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            records.write(result(report))


def result(report: Any) -> records.Record:
    record = {"of": {"test": report.nodeid}, "outcome": report.outcome, "seconds": round(getattr(report, "duration", 0.0), 2)}
    text = report.longreprtext
    if report.failed:
        errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
        return record | {"error": (errors or [text])[0][:300], "text": text[-3000:]}
    if report.skipped and LATE in text:
        return record | {"outcome": "late"} | ({} if "slow" in report.keywords else {"error": LATE})
    return record
