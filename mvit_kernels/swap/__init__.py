"""`accelerate`, `restore` and `report`: MobileViT modules of any supported library change class in place, and back.

One file a library says which class is replaced by what. `core` assigns the classes, `blocks` holds the forwards that libraries share,
`obstacles` says when a replacement must stand back, `reporting` tells what happened.
"""

from .core import accelerate, restore
from .reporting import Report, ReportRow, report

__all__ = ["Report", "ReportRow", "accelerate", "report", "restore"]
