"""The shipped checkpoints, trained on the stand-in task: fp16 safetensors with their class names and accuracy."""

from __future__ import annotations

from pathlib import Path

from mvit_kernels.messages import shown

SHIPPED = ("mobilevit_xxs", "mobilevitv2_050")


def path(name: str) -> Path:
    """The file of a shipped model's weights. ValueError if none is shipped."""
    if name not in SHIPPED:
        raise ValueError(f"checkpoints: name: expected one of {', '.join(SHIPPED)}, got {shown(name)}")
    return Path(__file__).with_name(f"{name}-standin.safetensors")
