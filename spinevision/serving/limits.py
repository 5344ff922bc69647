"""How large a frame may be that strangers send to a model."""

from __future__ import annotations

from spinevision.images import ImageError
from spinevision.models.cascade import SpineCascade
from spinevision.models.classifier import SpineClassifier
from spinevision.models.segmenter import SpineSegmenter
from spinevision.preprocess import Preprocess

MAX_FRAME_PIXELS = 16 * 2**20
"""Larger frames are refused before they are decoded, whatever their encoded size: 16 Mi pixels, twice a 4K frame; a telephone's
camera fits. This and the other limits are ours."""
MAX_LOGITS = 2**27
"""Pixels times classes of a frame: the numbers behind an answer take at most 512 MiB for each copy of them."""
MAX_INPUT_PIXELS = 2**21
"""What a network takes in that gets frames at their own size (``resize="none"``), with its padding; 1920x1080 fits."""


def max_pixels(model: SpineSegmenter | SpineClassifier) -> int:
    """Pixels of the largest frame that a model is given."""
    limit = min(MAX_FRAME_PIXELS, MAX_LOGITS // model.labels.channels)
    return min(limit, MAX_INPUT_PIXELS) if any(each.resize_policy == "none" for each in _preprocesses(model)) else limit


def check_size(model: SpineSegmenter | SpineClassifier, width: int, height: int, name: str) -> None:
    """Refuse a frame that is too large for a model.

    Raises:
        ImageError: it is; the sentence begins with the name.
    """
    limit = max_pixels(model)
    if width * height > limit:
        raise ImageError(f"{name} is {width}x{height} pixels; at most {limit} are taken, scale it down first")
    for each in _preprocesses(model):
        _, rows, columns = each.place(height, width)
        if each.resize_policy == "none" and rows * columns > MAX_INPUT_PIXELS:
            raise ImageError(f"{name} is {width}x{height} pixels, too narrow for this model; cut it to a usual shape first")


def _preprocesses(model: SpineSegmenter | SpineClassifier) -> list[Preprocess]:
    return [model.preprocess, model.gate_preprocess] if isinstance(model, SpineCascade) else [model.preprocess]
