"""A picture of what is cut off and blanked, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from spinevision.data.extract.region import BLANKED, Region
from spinevision.images import contact_sheet

_SHOWN = 4
_CELL = 480
_TINT = np.array([255, 0, 0], np.float32)


def draw_preview(region: Region, frames: Sequence[np.ndarray]) -> Image.Image:
    """A few frames as they were recorded, with what is blanked in red and the crop in yellow, and below them as they are written.

    It shows what is burnt into the video, names too.

    Args:
        region: what is shown of them.
        frames: uint8 (H, W, 3) each.
    """
    chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(_SHOWN, len(frames)))]
    recorded = []
    for frame in chosen:
        tinted = np.where((region.plan == BLANKED)[..., None], 0.5 * frame + 0.5 * _TINT, frame).astype(np.uint8)
        picture = Image.fromarray(tinted)
        x, y, width, height = region.crop
        if (width, height) != picture.size:
            thickness = max(2, max(picture.size) // _CELL)
            ImageDraw.Draw(picture).rectangle((x, y, x + width - 1, y + height - 1), outline="yellow", width=thickness)
        recorded.append(picture)
    written = [Image.fromarray(region.apply(frame)) for frame in chosen]
    captions = ["as recorded: red is blanked, what is outside of the yellow line is cut off", "as written"]
    return contact_sheet([recorded, written], captions, cell=min(_CELL, *recorded[0].size))
