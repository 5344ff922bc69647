"""Lightning models on the Hugging Face Hub for spinal endoscopy: frames in, masks with names and numbers out."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from spinevision.models import ARCHITECTURES, list_architectures

if TYPE_CHECKING:
    from spinevision.augment import AugmentSettings as AugmentSettings
    from spinevision.data.datamodule import SpineDataModule as SpineDataModule
    from spinevision.inference.live_video import VideoPredictor as VideoPredictor
    from spinevision.inference.runtime import optimize as optimize
    from spinevision.labels import IGNORE_INDEX as IGNORE_INDEX
    from spinevision.labels import LabelSpace as LabelSpace
    from spinevision.models.attention_unet import AttentionUNet as AttentionUNet
    from spinevision.models.base import SpineModel as SpineModel
    from spinevision.models.cascade import SpineCascade as SpineCascade
    from spinevision.models.classifier import SpineClassifier as SpineClassifier
    from spinevision.models.funet import FUNet as FUNet
    from spinevision.models.hub_export import HubExport as HubExport
    from spinevision.models.improved_unet import ImprovedUNet as ImprovedUNet
    from spinevision.models.mobilenet_v3 import MobileNetV3Classifier as MobileNetV3Classifier
    from spinevision.models.pnsnet import PNSNet as PNSNet
    from spinevision.models.pp_liteseg import PPLiteSeg as PPLiteSeg
    from spinevision.models.r2unet import AR2UNet as AR2UNet
    from spinevision.models.r2unet import R2UNet as R2UNet
    from spinevision.models.resnet import ResNetClassifier as ResNetClassifier
    from spinevision.models.segformer import SegFormer as SegFormer
    from spinevision.models.segmenter import SpineSegmenter as SpineSegmenter
    from spinevision.models.swin_unet import SwinUNet as SwinUNet
    from spinevision.models.training import TrainingSettings as TrainingSettings
    from spinevision.models.transunet import TransUNet as TransUNet
    from spinevision.models.unet import UNet as UNet
    from spinevision.models.unet_plus_plus import UNetPlusPlus as UNetPlusPlus
    from spinevision.preprocess import Preprocess as Preprocess
    from spinevision.structures import FrameBatch as FrameBatch
    from spinevision.structures import MaskPrediction as MaskPrediction
    from spinevision.structures import PresencePrediction as PresencePrediction

try:
    __version__ = version("spinevision")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

_HOMES = {
    "SpineModel": "spinevision.models.base",
    "SpineSegmenter": "spinevision.models.segmenter",
    "SpineClassifier": "spinevision.models.classifier",
    "SpineCascade": "spinevision.models.cascade",
    "TrainingSettings": "spinevision.models.training",
    "SpineDataModule": "spinevision.data.datamodule",
    "AugmentSettings": "spinevision.augment",
    "Preprocess": "spinevision.preprocess",
    "LabelSpace": "spinevision.labels",
    "IGNORE_INDEX": "spinevision.labels",
    "FrameBatch": "spinevision.structures",
    "MaskPrediction": "spinevision.structures",
    "PresencePrediction": "spinevision.structures",
    "VideoPredictor": "spinevision.inference.live_video",
    "HubExport": "spinevision.models.hub_export",
    "optimize": "spinevision.inference.runtime",
}
"""Public names beside the architectures, and the modules that define them."""

__all__ = ["list_architectures", *_HOMES, *ARCHITECTURES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import spinevision`` stays quick."""
    home = _HOMES.get(name) or ARCHITECTURES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return [*{*globals(), *_HOMES, *ARCHITECTURES}]
