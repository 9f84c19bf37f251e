"""What tests ask of the machine code of GPU kernels."""

from __future__ import annotations

import re

_FIRST = re.compile(r"\b(ACQBULK|LDG|LDGSTS|STG|LD|ST|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UBLKCP)\b")


def waits_first(code: str) -> bool:
    """Whether the kernel waits for those launched before it, and touches no memory of the device before that."""
    first = _FIRST.search(code)
    return first is not None and first.group() == "ACQBULK"


_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/ +([^;]*);")
_BACK = re.compile(r"\bBRA\b.*?0x([0-9a-f]+)")


def lengths(code: str) -> tuple[int, int]:
    """Instructions of a kernel, and of its longest loop."""
    found = _INSTRUCTION.findall(code)
    at = {int(address, 16): i for i, (address, _) in enumerate(found)}
    back = ((i, at.get(int(to.group(1), 16), i + 1)) for i, (_, text) in enumerate(found) if (to := _BACK.search(text)))
    return len(found), max((last - first + 1 for last, first in back if first <= last), default=0)
