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
    "ImprovedUNet": "spinevision.models.improved_unet",
    "SegFormer": "spinevision.models.segformer",
    "TransUNet": "spinevision.models.transunet",
    "SwinUNet": "spinevision.models.swin_unet",
    "PPLiteSeg": "spinevision.models.pp_liteseg",
    "FUNet": "spinevision.models.funet",
    "PNSNet": "spinevision.models.pnsnet",
    "ResNetClassifier": "spinevision.models.resnet",
    "MobileNetV3Classifier": "spinevision.models.mobilenet_v3",
}
"""Class name to the module that defines it."""

COMPOSITES = {"SpineCascade": "spinevision.models.cascade"}
"""Models made of others, likewise."""


def list_architectures() -> list[str]:
    """The class names of all segmenters and classifiers."""
    return list(ARCHITECTURES)


def find_architecture(name: str) -> type[SpineModel]:
    """The class of an architecture or composite.

    Raises:
        ValueError: no such architecture; the sentence names the nearest.
    """
    homes = ARCHITECTURES | COMPOSITES
    if name not in homes:
        near = difflib.get_close_matches(name, homes, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(homes)}"
        raise ValueError(f"{name!r} is not an architecture of spinevision; {hint}")
    found: type[SpineModel] = getattr(importlib.import_module(homes[name]), name)
    return found
