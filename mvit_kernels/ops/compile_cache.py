"""Keeps torch.compile from running what it compiled for other ops than these.

Its caches on disk outlive a package. Their keys hold the graph that Dynamo sees, where an op is a name; what they keep holds calls of our
ops with every argument, strides that fakes promised, and gradients that were traced. After a change of any of these, code from the cache
would call an op by the schema it had. So the keys get a digest of the code that decides on them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch.compiler.config

_TRACED = ("ops", "reference")  # schemas, fakes and gradients; the plain torch in which some gradients are traced


def code_digest(package: Path) -> str:
    """Of the names and text of all Python files that torch.compile traces ops by."""
    digest = hashlib.sha256()
    for folder in _TRACED:
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def tag_caches() -> None:
    """Add the digest to the tag that torch.compile puts into the keys of all its caches, behind what stands there already."""
    ours = f"mvit_kernels={code_digest(Path(__file__).parents[1])}"
    tag = torch.compiler.config.cache_key_tag
    if ours not in tag.split():
        torch.compiler.config.cache_key_tag = f"{tag} {ours}".lstrip()
