"""A frame and its mask as they go to a browser, which draws classes, outlines and opacity by itself."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from spinevision.structures import MaskPrediction

OUTLINE = 128
"""Added to the label id of a pixel on the outline of its region; ids are below 128."""

LONGEST_SIDE = 1920
"""Larger pictures are sent at this size (pixels, ours)."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame as it is sent.

    Args:
        width: pixels.
        height: likewise.
        lengths: uint32 (N,), the runs of equal codes, row after row.
        codes: uint8 (N,), of each run the label id, plus :data:`OUTLINE` on an outline.
        jpeg: the frame.
        areas: class name to its share of the field of view, 0 to 1.
        presence: probability that the tissue is there at all, or None.
    """

    width: int
    height: int
    lengths: np.ndarray
    codes: np.ndarray
    jpeg: bytes
    areas: dict[str, float]
    presence: float | None


def encode(prediction: MaskPrediction) -> Picture:
    """Prepare a frame for sending: JPEG (quality 90, colour at full size; ours) and the runs of its mask."""
    height, width = prediction.mask.shape
    frame, mask = Image.fromarray(prediction.frame), prediction.mask
    if max(height, width) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(height, width)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        frame = frame.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    file = io.BytesIO()
    frame.save(file, "JPEG", quality=90, subsampling=0)
    lengths, codes = runs(outlined(mask))
    presence = None if prediction.presence is None else float(prediction.presence)
    return Picture(width, height, lengths, codes, file.getvalue(), prediction.area_fraction, presence)


def outlined(mask: np.ndarray) -> np.ndarray:
    """Mark the outline that :func:`spinevision.images.draw_overlay` draws.

    Args:
        mask: uint8 label ids (H, W), below 128.

    Returns:
        uint8 (H, W): the ids, plus :data:`OUTLINE` where a foreground pixel has another class within the outline's thickness,
        counted in steps to the side, up or down.
    """
    edge = np.zeros(mask.shape, dtype=bool)
    for here, there, differs in (
        (np.s_[1:], np.s_[:-1], mask[1:] != mask[:-1]),
        (np.s_[:, 1:], np.s_[:, :-1], mask[:, 1:] != mask[:, :-1]),
    ):
        edge[here] |= differs
        edge[there] |= differs
    for _ in range(max(1, round(min(mask.shape) / 256)) - 1):
        thin = edge.copy()
        edge[1:] |= thin[:-1]
        edge[:-1] |= thin[1:]
        edge[:, 1:] |= thin[:, :-1]
        edge[:, :-1] |= thin[:, 1:]
    return np.where(edge & (mask > 0), mask | OUTLINE, mask).astype(np.uint8)


def runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths, uint32 (N,), and the code of each run, uint8 (N,), of an array read row after row."""
    flat = codes.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return np.diff(np.append(starts, flat.size)).astype("<u4"), flat[starts]


def pack(header: Mapping[str, Any], picture: Picture | None) -> bytes:
    """One message: the header's length (uint32), the header (JSON), and of a picture run lengths, codes and JPEG.

    Numbers are little-endian; the header is filled up with spaces so that the run lengths begin on a multiple of four bytes.
    """
    content = dict(header)
    if picture is not None:
        content |= {"width": picture.width, "height": picture.height, "runs": len(picture.codes)}
        content |= {"areas": picture.areas, "presence": picture.presence}
    text = json.dumps(content, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    start = len(text).to_bytes(4, "little") + text
    if picture is None:
        return start
    return b"".join([start, picture.lengths.tobytes(), picture.codes.tobytes(), picture.jpeg])
