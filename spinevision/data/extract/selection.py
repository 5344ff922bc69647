"""Which frames of a video are taken: sampled by count or by time, not blurred, not nearly the same as the one before."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from spinevision.video import VideoFrame

Verdict = Literal["kept", "blurred", "duplicate"]
"""What becomes of a sampled frame."""

SHARPNESS_SIDE = 512
"""Sharpness is measured on a copy whose longer side has at most this many pixels; ours."""
SHARPNESS_WINDOW = 101
"""How many sampled frames the running median of the sharpness goes back, the frame itself among them; ours."""

_THUMBNAIL = 16
_TIE_S = 1e-4
"""A frame this much before the moment it is due counts as there: times in a file are rounded."""


class Sampler:
    """Takes every n-th frame, or so many a second of the video's own clock; called with each frame in order.

    Args:
        every: take frames 0, every, 2 every, ...; None to go by time.
        fps: take the first frame at or after each multiple of 1 / fps seconds, never one twice: where frames are further apart
            than that, there are fewer. None to go by count.
    """

    def __init__(self, every: int | None, fps: float | None) -> None:
        self._every, self._fps, self._slot = every, fps, -1

    def takes(self, frame: VideoFrame) -> bool:
        """Whether this frame is one of the sample."""
        if self._fps is None:
            return frame.index % (self._every or 1) == 0
        before, self._slot = self._slot, int((frame.time_s + _TIE_S) * self._fps)
        return self._slot > before


class Filter:
    """Judges sampled frames one after another by those before; holds a few hundred numbers.

    Args:
        sharpness: a frame is blurred where its :func:`sharpness` is below this share (0 to 1) of the running median over the last
            :data:`SHARPNESS_WINDOW` sampled frames, its own among them. The first frames of a video are held against few. 0
            takes all.
        difference: a frame is a near-duplicate where its :func:`thumbnail` differs from that of the last kept frame by less than
            this root mean square (0 to 255): the measure and scale of ``spinevision data check``, which speaks of near-duplicates
            below 4. 0 takes all.
        measured: bool (H, W), where sharpness is measured; the pictures have this size.
    """

    def __init__(self, sharpness: float, difference: float, measured: np.ndarray) -> None:
        self._sharpness, self._difference, self._cells = sharpness, difference, sharpness_cells(measured)
        self._recent: deque[float] = deque(maxlen=SHARPNESS_WINDOW)
        self._last: np.ndarray | None = None

    def judge(self, picture: np.ndarray) -> tuple[Verdict, float | None]:
        """What becomes of a picture, uint8 (H, W, 3), and its sharpness where that is asked for."""
        value = sharpness(picture, self._cells) if self._sharpness else None
        if value is not None:
            self.recall(value)
            if value < self._sharpness * statistics.median(self._recent):
                return "blurred", value
        if self._difference:
            look = thumbnail(picture)
            if self._last is not None and rms(look, self._last) < self._difference:
                return "duplicate", value
            self._last = look
        return "kept", value

    def recall(self, sharpness: float) -> None:
        """Note the sharpness of a frame that was judged already."""
        self._recent.append(sharpness)

    def recall_kept(self, picture: np.ndarray) -> None:
        """Note the picture that was the last to be kept."""
        self._last = thumbnail(picture)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """What near-duplicates are told by: grey, float32 (16, 16), 0 to 255, as ``spinevision data check`` makes it."""
    size = (_THUMBNAIL, _THUMBNAIL)
    small = Image.fromarray(picture).resize(size, Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    return np.asarray(small, dtype=np.float32)


def rms(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two thumbnails, 0 to 255."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


def sharpness(picture: np.ndarray, cells: np.ndarray) -> float:
    """Variance of the Laplacian (four neighbours), in squared grey levels; 0 is flat.

    Measured on a grey copy of the size of ``cells``. It grows with contrast and with noise, so it is comparable within one video
    and not between cameras. After Pech-Pacheco et al., ICPR 2000; the scale is ours.

    Args:
        picture: uint8 (H, W, 3).
        cells: what :func:`sharpness_cells` makes; 0 comes back where it holds nothing.
    """
    grey = Image.fromarray(picture).resize(cells.shape[::-1], Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    values = ndimage.laplace(np.asarray(grey, dtype=np.float32), mode="nearest")[cells]
    return float(values.var(dtype=np.float64)) if len(values) else 0.0


def sharpness_cells(measured: np.ndarray) -> np.ndarray:
    """Where sharpness is measured, bool (h, w), the longer side at most :data:`SHARPNESS_SIDE`.

    Cells whose neighbours all lie in ``measured``, bool (H, W), so that the rims of the view and of what is blanked are no edges.
    """
    height, width = measured.shape
    scale = min(1.0, SHARPNESS_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    whole = Image.fromarray(measured.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BOX)
    return ndimage.binary_erosion(np.asarray(whole) == 255)
