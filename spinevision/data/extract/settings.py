"""What an extraction is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from spinevision.data.extract.region import Rectangle


@dataclass(frozen=True)
class Settings:
    """What is taken of a video, and how it is written.

    Args:
        every: every n-th frame, or None.
        fps: frames a second, or None; one of the two is given (:class:`spinevision.data.extract.selection.Sampler`).
        sharpness: least share of the running median of the sharpness, 0 to 1; 0 takes all
            (:class:`spinevision.data.extract.selection.Filter`).
        difference: least difference from the frame kept before, 0 to 255; 0 takes all.
        crop: cut out the rectangle around all fields of view, the same for all frames of a video.
        blank: rectangles that are made black, in pixels of the video's frame.
        blank_text: make black what is outside of the field of view of most frames, and what looks like text inside
            (:class:`spinevision.data.extract.region.Survey`).
        format: ``jpg`` (quality 95, no chroma subsampling) or ``png``.

    Raises:
        ValueError: a value out of its range.
    """

    every: int | None = None
    fps: float | None = None
    sharpness: float = 0.0
    difference: float = 0.0
    crop: bool = False
    blank: tuple[Rectangle, ...] = ()
    blank_text: bool = False
    format: Literal["jpg", "png"] = "jpg"

    def __post_init__(self) -> None:
        if (self.every is None) == (self.fps is None):
            raise ValueError("frames are sampled by count or by time; give either every or fps")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every n-th frame is taken, n from 1, found {self.every}")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"fps is a number of frames a second above 0, found {self.fps}")
        if not 0 <= self.sharpness <= 1:
            raise ValueError(f"sharpness is a share of the running median, from 0 to 1, found {self.sharpness}")
        if not 0 <= self.difference <= 255:
            raise ValueError(f"difference goes from 0 (all frames) to 255, found {self.difference}")
