"""What tests ask of the machine code of GPU kernels."""

from __future__ import annotations

import re

_FIRST = re.compile(r"\b(ACQBULK|LDG|LDGSTS|STG|LD|ST|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UBLKCP)\b")


def waits_first(code: str) -> bool:
    """Whether the kernel waits for those launched before it, and touches no memory of the device before that."""
    first = _FIRST.search(code)
    return first is not None and first.group() == "ACQBULK"
