"""The range of every result is that from the smallest to the largest value, and 0."""

from __future__ import annotations

from ..representation import representations
from .base import Found, Task


def find(task: Task) -> Found:
    return Found(representations(task.layout, task.ranges, task.config))
