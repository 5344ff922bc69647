"""What other programs are told of a frame: a prediction in the Hub's schemas for image segmentation and image classification.

The endpoint's handler answers through here. The result is plain Python data, ready for JSON.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from spinevision.hub.config import nearest, shown
from spinevision.structures import MaskPrediction, PresencePrediction

_SEGMENTATION = ("threshold", "mask_threshold", "overlap_mask_area_threshold", "subtask")
_CLASSIFICATION = ("top_k", "function_to_apply")


def segmentation_answer(prediction: MaskPrediction, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A mask in the Hub's image-segmentation schema: one entry for each class that occurs in it.

    A class that is nowhere has no entry, as in transformers' semantic pipeline, so that a frame without findings is an empty
    list. Unlike there the background has none either: it is what the entries leave, and viewers would paint over the whole frame.

    Args:
        prediction: what a segmenter says of a frame.
        parameters: of the schema, each of them optional; null counts as not given and a number may come as text, as it does in an
            address. ``threshold``, 0 to 1, leaves out entries with a lower score. ``mask_threshold``, between 0 and 1, takes the
            place of a one-class model's own threshold. ``overlap_mask_area_threshold``, 0 to 1, changes nothing, because classes
            do not overlap. ``subtask`` must be ``semantic``.

    Returns:
        In the order of the labels ``{"label": name, "mask": text, "score": number}``. The mask is a PNG in base64, mode L, 255
        where the class is and 0 elsewhere, at the frame's own size. The score is the mean probability of the class over its
        pixels, 0 to 1; it is left out of predictions that have masks alone.

    Raises:
        ValueError: a parameter that does not exist, is out of range or has no meaning for this model.
    """
    asked = _asked(parameters, _SEGMENTATION)
    if asked.get("subtask", "semantic") != "semantic":
        raise ValueError(f"subtask must be semantic, the only one that this model knows, found {shown(asked['subtask'])}")
    lowest, cut = _share(asked, "threshold"), _share(asked, "mask_threshold")
    _share(asked, "overlap_mask_area_threshold")
    chances = prediction.probability
    if chances is None and (lowest is not None or cut is not None):
        raise ValueError("threshold and mask_threshold need probabilities, which this copy of the model does not compute")
    if cut is not None and not prediction.labels.binary:
        raise ValueError("mask_threshold is for models of one class; of several the most probable decides, so leave it out")
    if cut in (0, 1):
        raise ValueError(f"mask_threshold must lie between 0 and 1, found {cut:g}")
    answer = []
    for index, name in prediction.labels.foreground.items():
        chance = None if chances is None else chances[0 if prediction.labels.binary else index]
        region = prediction.mask == index if cut is None or chance is None else chance >= cut
        if not region.any():
            continue
        entry: dict[str, Any] = {"label": name, "mask": _png(region)}
        if chance is not None:
            entry["score"] = min(float(chance[region].mean(dtype=np.float64)), 1.0)
        if lowest is None or entry["score"] >= lowest:
            answer.append(entry)
    return answer


def classification_answer(prediction: PresencePrediction, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """What is in a frame, in the Hub's image-classification schema.

    Args:
        prediction: what a classifier says of a frame.
        parameters: of the schema, each of them optional: ``top_k``, how many labels are wanted; ``function_to_apply``, which must
            be ``sigmoid``, because the labels are independent of each other.

    Returns:
        ``{"label": name, "score": number}`` for each label, the most probable first; the score is its probability, 0 to 1.

    Raises:
        ValueError: a parameter that does not exist or cannot be.
    """
    asked = _asked(parameters, _CLASSIFICATION)
    if asked.get("function_to_apply", "sigmoid") != "sigmoid":
        raise ValueError(
            f"function_to_apply must be sigmoid, as the labels are independent, found {shown(asked['function_to_apply'])}"
        )
    top_k = asked.get("top_k")
    if top_k is not None and (isinstance(top_k, bool) or not str(top_k).isdecimal() or int(top_k) < 1):
        raise ValueError(f"top_k must be a whole number from 1, found {shown(top_k)}")
    ordered = sorted(prediction.probability.items(), key=lambda item: item[1], reverse=True)
    return [{"label": name, "score": float(chance)} for name, chance in ordered[: None if top_k is None else int(top_k)]]


def _asked(parameters: Mapping[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that are given."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"parameters must be names and values, found {shown(parameters)}")
    asked = {name: value for name, value in (parameters or {}).items() if value is not None}
    for name in asked:
        if name not in known:
            near = nearest(str(name), known)
            raise ValueError(f"unknown parameter {shown(name)}{near}; this model takes {', '.join(known)}")
    return asked


def _share(asked: Mapping[str, Any], name: str) -> float | None:
    """A number from 0 to 1, which may come as text; None where it is not given."""
    value = asked.get(name)
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, found {shown(value)}")
    return number


def _png(region: np.ndarray) -> str:
    """A bool array (H, W) as a black-and-white PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(region.astype(np.uint8) * np.uint8(255)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
