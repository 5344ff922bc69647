"""The architectures: one file each, one line each in the table below."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

ARCHITECTURES = {
    "UNet": "spinevision.models.unet",
    "AttentionUNet": "spinevision.models.attention_unet",
    "R2UNet": "spinevision.models.r2unet",
    "AR2UNet": "spinevision.models.r2unet",
    "UNetPlusPlus": "spinevision.models.unet_plus_plus",
}
"""Class name to the module that defines it."""


def list_architectures() -> list[str]:
    """The class names of all segmenters and classifiers."""
    return list(ARCHITECTURES)


def find_architecture(name: str) -> type[SpineModel]:
    """The class of an architecture.

    Raises:
        ValueError: no such architecture; the sentence names the nearest.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(ARCHITECTURES)}"
        raise ValueError(f"{name!r} is not an architecture of spinevision; {hint}")
    found: type[SpineModel] = getattr(importlib.import_module(ARCHITECTURES[name]), name)
    return found
