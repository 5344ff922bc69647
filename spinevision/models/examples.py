"""Example frames and what a model says of them, as pictures for its card."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from spinevision.hub.config import ModelFolderError
from spinevision.hub.folder import MAX_EXAMPLES
from spinevision.images import ImageSource, read_frame
from spinevision.phantom import draw_sequence
from spinevision.structures import MaskPrediction

if TYPE_CHECKING:
    from spinevision.models.base import SpineModel

LONGEST_SIDE = 1024
"""Pixels; a larger frame is shown smaller. Ours."""
_GENERATED = ((3, "Generated scene"), (7, "Another generated scene"))
_GENERATED_SIZE = (240, 320)


@dataclass(frozen=True)
class Examples:
    """Pictures by their name in the model folder, and the entries of the card's ``widget`` that show them."""

    pictures: Mapping[str, bytes] = field(default_factory=dict)
    widget: Sequence[Mapping[str, Any]] = ()


NO_EXAMPLES = Examples()


def make_examples(model: SpineModel, frames: Sequence[ImageSource] | None) -> Examples:
    """Ask a model about frames and draw its answers.

    Args:
        model: a segmenter or a classifier.
        frames: what to show, at most eight; the pictures are written anew, so nothing but their pixels is told, and no file name.
            None draws two generated scenes, which no model was made for.

    Raises:
        ModelFolderError: too many.
        ImageError: something that is not a frame.
    """
    if frames is None:
        shown = [(next(draw_sequence(seed, 1, size=_GENERATED_SIZE, empty_fraction=0))[0], title) for seed, title in _GENERATED]
    else:
        shown = [(read_frame(frame), f"Frame {number}") for number, frame in enumerate(frames, 1)]
    if 2 * len(shown) > MAX_EXAMPLES:
        raise ModelFolderError(f"{len(shown)} example frames are too many for a card; give at most {MAX_EXAMPLES // 2}")
    pictures: dict[str, bytes] = {}
    widget = []
    for number, (frame, title) in enumerate(shown, 1):
        answer = model.predict(frame)  # type: ignore[operator]  # of a segmenter or a classifier
        source = f"examples/frame-{number}.png"
        pictures[source] = _png(Image.fromarray(frame))
        entry: dict[str, Any] = {"src": source, "example_title": title}
        if isinstance(answer, MaskPrediction):
            overlay = f"examples/frame-{number}-overlay.png"
            pictures[overlay] = _png(answer.overlay())
            entry["output"] = {"url": overlay}
        else:
            entry["output"] = [{"label": name, "score": round(chance, 4)} for name, chance in answer.probability.items()]
        widget.append(entry)
    return Examples(pictures, widget)


def _png(picture: Image.Image) -> bytes:
    picture = Image.fromarray(np.asarray(picture))  # the pixels alone
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
