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


_SPILLED = re.compile(r"\b(LDL|STL)\b")


def lengths(code: str) -> tuple[int, int]:
    """Instructions of a kernel, and of its longest loop."""
    found, loops = _loops(code)
    return len(found), max((last - first + 1 for first, last in loops), default=0)


def spills_in_loops(code: str) -> int:
    """Instructions inside of loops that go to local memory."""
    found, loops = _loops(code)
    return sum(any(first <= i <= last for first, last in loops) for i, text in enumerate(found) if _SPILLED.search(text))


def _loops(code: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Instructions of a kernel; the first and the last one of each loop."""
    found = _INSTRUCTION.findall(code)
    at = {int(address, 16): i for i, (address, _) in enumerate(found)}
    back = ((at.get(int(to.group(1), 16), i + 1), i) for i, (_, text) in enumerate(found) if (to := _BACK.search(text)))
    return [text for _, text in found], [(first, last) for first, last in back if first <= last]
